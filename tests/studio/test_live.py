"""Streams: a snapshot, then every line once, across reconnects, rewrites and a writer that never waits."""

import asyncio
import json
import random
import threading
import time

import pytest

from luthier.runs.folder import RunFolder
from luthier.studio.http.sse import encoded
from luthier.studio.runs.live import RunStream, list_stream
from luthier.studio.runs.logs import thin
from luthier.studio.runs.tail import Place, read_from
from tests.studio.asking import Desk
from tests.studio.folders import make_run


@pytest.fixture
def desk(tmp_path):
    with Desk(tmp_path) as made:
        make_run(tmp_path / "runs" / "a", finished=False)
        yield made


def stream_of(desk, last_id=None, **keys):
    stream = RunStream(desk.studio.index, desk.studio.system, "a", desk.studio.folder("a"), **keys)
    stream.begin(last_id)
    return stream


async def take(stream, *, enough, seconds=10.0):
    """Events as a browser gets them: [(name, data, id)], until `enough` says so."""
    found = []

    async def read():
        async for event in stream.events():
            text = encoded(event)
            assert text.endswith("\n\n") and "\n\n" not in text[:-2]
            found.append(event)
            if enough(found):
                return

    await asyncio.wait_for(read(), seconds)
    return found


def steps(events):
    rows = []
    for name, data, _ in events:
        if name == "snapshot":
            rows = [row["step"] for row in data["metrics"]["rows"] if "loss" in row]
        elif name == "metrics":
            rows += [row["step"] for row in data["rows"] if "loss" in row]
    return rows


def test_a_snapshot_comes_first(desk):
    ((name, data, ident),) = asyncio.run(take(stream_of(desk), enough=lambda found: True))
    assert name == "snapshot" and ident.count(".") == 2
    assert data["run"]["id"] == "a" and data["metrics"]["total"] == 4 and not data["metrics"]["thinned"]
    assert [event["event"] for event in data["events"]][-1] == "training_started"
    assert [stage["state"] for stage in data["stages"]] == [
        "done",
        "waiting",
        "stopped",
        "waiting",
        "waiting",
        "waiting",
    ]
    json.dumps(data, allow_nan=False)


def test_every_line_once_and_in_order_over_many_reconnects(desk):
    folder, last = RunFolder(desk.studio.folder("a")), 600

    def write():
        for step in range(4, last + 1):
            if step % 50 == 0:
                folder.event("checkpoint_saved", step=step, seconds=0.1)
            folder.metric(step=step, loss=1.0 / step)
            time.sleep(0.001)

    writer = threading.Thread(target=write)
    random.seed(5)
    seen, saved, ident, connections = [], [], None, 0
    writer.start()
    while not seen or seen[-1] != last:
        connections += 1
        some = random.randint(1, 6)
        # The writer may be done: a connection after it gets one event with all that is left, and no second.
        events = asyncio.run(
            take(
                stream_of(desk, ident),
                enough=lambda found, some=some: len(found) >= some or last in steps(found),
                seconds=30,
            )
        )
        assert (events[0][0] == "snapshot") == (ident is None), "a reconnect goes on, it does not begin again"
        for name, data, event_id in events:
            ident = event_id or ident
            if name == "metrics":
                seen += [row["step"] for row in data["rows"]]
            elif name == "snapshot":
                seen += [row["step"] for row in data["metrics"]["rows"] if "loss" in row]
            for event in data.get("events", []) if name in ("snapshot", "events") else []:
                saved += [event["fields"]["step"]] if event["event"] == "checkpoint_saved" else []
    writer.join()
    assert connections > 5
    assert [step for step in seen if step] == list(range(1, last + 1))
    if saved and saved[-1] != last:
        saved += [
            e["fields"]["step"]
            for e in asyncio.run(take(stream_of(desk), enough=lambda f: True))[0][1]["events"]
            if e["event"] == "checkpoint_saved" and e["fields"]["step"] > saved[-1]
        ]
    assert saved == list(range(50, last + 1, 50))


def test_a_log_that_was_rewritten_replaces_everything(desk):
    folder = RunFolder(desk.studio.folder("a"))

    async def go():
        stream = stream_of(desk)
        found = []
        async for event in stream.events():
            found.append(event)
            if len(found) == 1:
                folder.roll_back("metrics.jsonl", step=1)
                folder.metric(step=2, loss=9.0)
            elif event[0] == "snapshot":
                return found
        return found

    events = asyncio.run(asyncio.wait_for(go(), 10))
    rows = events[-1][1]["metrics"]["rows"]
    assert [(row["step"], row.get("loss")) for row in rows] == [(1, 2.0), (2, 9.0)]


def test_an_id_into_a_file_that_is_no_more_begins_again(desk):
    (first,) = asyncio.run(take(stream_of(desk), enough=lambda found: True))
    RunFolder(desk.studio.folder("a")).roll_back("metrics.jsonl", step=2)
    events = asyncio.run(take(stream_of(desk, first[2]), enough=lambda found: found[-1][0] == "snapshot"))
    assert steps(events) == [1, 2]


@pytest.mark.parametrize("ident", ["", "x", "1-2-3", "1-2-3.4-5-6", "a.b.c", "-1-0-0.0-0-0.0-0-0", "9" * 500, "\n"])
def test_an_id_that_is_none_begins_with_a_snapshot(desk, ident):
    events = asyncio.run(take(stream_of(desk, ident), enough=lambda found: True))
    assert events[0][0] == "snapshot"


def test_a_torn_line_waits_for_its_end(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b'{"step": 1}\n{"st')
    lines, place = read_from(file, Place())
    assert lines == [(0, {"step": 1})] and place.line == 1
    assert read_from(file, place) == ([], place)
    with file.open("ab") as stream:
        stream.write(b'ep": 2}\nnot json\n[1]\n{"step": 3}\n')
    lines, after = read_from(file, place)
    assert lines == [(1, {"step": 2}), (4, {"step": 3})] and after.line == 5
    assert Place.parse(str(after)) == after
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes() + b'{"step": 4}\n')
    other.replace(file)
    assert read_from(file, after) is None, "another file, though a longer one"
    lines, after = read_from(file, Place())
    file.write_bytes(b"")
    assert read_from(file, after) is None
    file.unlink()
    assert read_from(file, after) is None and read_from(file, Place()) == ([], Place())


def test_a_hundred_idle_streams_let_others_through(desk):
    async def go():
        tasks = [asyncio.create_task(take(stream_of(desk), enough=lambda found: False, seconds=60)) for _ in range(100)]
        await asyncio.sleep(1.0)
        waits = []
        for _ in range(10):
            started = time.perf_counter()
            await asyncio.sleep(0)
            await asyncio.to_thread(desk.studio.index.one, "a")
            waits.append(time.perf_counter() - started)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return sorted(waits)[5]

    assert asyncio.run(go()) < 10.0, "streams that held threads would hold these for ever"


def test_silence_is_filled_with_comments(desk):
    events = asyncio.run(take(stream_of(desk, silence=0.05), enough=lambda found: len(found) == 3))
    assert [encoded(event) for event in events[1:]] == [": idle\n\n"] * 2


def test_the_list_tells_changes(desk, tmp_path):
    desk.studio.index.scan()

    async def go():
        async for name, data, _ in list_stream(desk.studio.index):
            if name == "runs" and data["changed"] and data["changed"][0]["id"] == "b":
                return data
        return None

    async def both():
        task = asyncio.create_task(go())
        await asyncio.sleep(0.1)
        make_run(tmp_path / "runs" / "b")
        return await asyncio.wait_for(task, 20)

    assert [line["name"] for line in asyncio.run(both())["changed"]] == ["b"]


def test_events_are_one_line_whatever_is_in_them():
    text = encoded(("x", {"text": "a\nb\r\n\ndata: y\u2028"}, "1"))
    assert text.count("\n") == 4 and "\r" not in text


def test_thinning_keeps_peaks_ends_and_validations():
    rows = [{"step": step, "loss": 5.0 if step == 777 else 1.0} for step in range(5_000)]
    rows[123] = {"step": 123, "eval_loss": 3.0}
    kept, thinned = thin(rows, 200)
    assert thinned and len(kept) <= 210
    found = {row["step"] for row in kept}
    assert {0, 123, 777, 4_999} <= found
    assert [row["step"] for row in kept] == sorted(found)
    assert thin(rows[:100], 200) == (rows[:100], False)
    kept, _ = thin([*rows, {"step": 4_999, "eval_loss": 2.0}], 200)
    assert [row for row in kept if "loss" in row][-1]["step"] == 4_999, "the newest loss is shown as the run's"


def test_what_processes_say_they_do(tmp_path):
    from luthier.studio.runs.spread import beats_of

    assert beats_of(tmp_path) == []
    (tmp_path / "processes").mkdir()
    for rank in (10, 2):
        beat = {"rank": rank, "host": "n\u202e", "operation": "backward", "step": 3, "idle_seconds": 0.5, "pid": 7}
        (tmp_path / "processes" / f"rank-{rank}.json").write_text(json.dumps(beat))
    (tmp_path / "processes" / "rank-0.json").write_text("{half")
    assert [beat["rank"] for beat in beats_of(tmp_path)] == [2, 10]
    assert beats_of(tmp_path)[0] == {
        "rank": 2, "host": "n\ufffd", "operation": "backward", "step": 3, "idle_seconds": 0.5,
    }  # fmt: skip
