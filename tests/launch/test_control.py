"""Contract: launchers agree on who takes part, what machines share, what was prepared, and what ended the run."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import luthier.launch.control
import luthier.launch.meet
from luthier.launch.attempts import Ended, run_attempts
from luthier.launch.control import Control, Nodes
from luthier.launch.meet import Shared, find_shared, introduce, prepare_everywhere
from luthier.launch.network import interface_to, on_interface, split_address
from luthier.runtime.env import read_plain
from luthier.runtime.errors import (
    DataError,
    EnvironmentProblem,
    Interrupted,
    LuthierError,
    MachineLost,
    RecipeError,
    RunFailed,
)
from tests.launch.support import free_port

pytestmark = pytest.mark.slow  # `make test-processes`, which CI runs


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setenv("LUTHIER_MACHINE_SECONDS", "60")  # of two threads that share a busy machine none is lost
    monkeypatch.setattr(luthier.launch.control, "LEAVE_SECONDS", 1.0)
    monkeypatch.setattr(luthier.launch.control, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(luthier.launch.meet, "LOOK_SECONDS", 0.5)


def together(*actions: Callable[[Control], object]) -> list:
    """Each action as one machine, in a thread; what it gave or raised."""
    at = f"127.0.0.1:{free_port()}"
    opened = threading.Barrier(len(actions))

    def one(rank: int) -> object:
        control = Control(Nodes(count=len(actions), rank=rank, rendezvous=at))
        opened.wait(20)
        with control.watching():
            try:
                return actions[rank](control)
            except LuthierError as error:
                return error

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(one, range(len(actions))))


def asked(**changes: str) -> dict[str, str]:
    return {"recipe": "r", "command": "c", "version": "v", **changes}


def test_machines_know_each_other_and_their_processes():
    def meet(control: Control) -> object:
        interface = introduce(control, processes=control.nodes.rank + 2, asked=asked())
        return interface.name, list(control._my_ranks()), control.name(1)

    zero, one = together(meet, meet)
    assert zero[:2] == ("lo", [0, 1]) and one[:2] == ("lo", [2, 3, 4])
    assert zero[2].startswith("machine 1 (")


@pytest.mark.parametrize("what", ["recipe", "version"])
def test_another_recipe_or_version_is_refused_on_all(what):
    def meet(control: Control) -> object:
        changes = {what: "other"} if control.nodes.rank else {}
        return introduce(control, processes=1, asked=asked(**changes))

    for error in together(meet, meet):
        assert isinstance(error, RecipeError) and error.problems[0].code == "L214"
        assert f"another {what}" in str(error)


def test_two_machines_with_one_number_are_refused():
    def meet(control: Control) -> object:
        if control.nodes.rank == 0:
            control.count_up("joined/1")  # what an earlier machine 1 did
            control.set("it is there", True)
            return None
        control.wait("it is there", 0, "it counts")
        return introduce(control, processes=1, asked=asked())

    _, error = together(meet, meet)
    assert isinstance(error, RecipeError) and error.problems[0].code == "L213"
    assert "machine 1 already" in error.problems[0].message


def test_what_is_shared_is_found_out_and_nothing_is_left(tmp_path):
    def look(control: Control) -> Shared:
        return find_shared(control, run=tmp_path / "run", cache=tmp_path / f"cache{control.nodes.rank}")

    assert together(look, look) == [Shared(run=True, cache=False)] * 2
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def prepared(shared: Shared, hashes: list[dict[str, str]], did: list[str]) -> list:
    def one(control: Control) -> None:
        rank = control.nodes.rank
        prepare_everywhere(
            control, shared=shared, whole=lambda: did.append(f"whole {rank}"),
            cached=lambda: did.append(f"cache {rank}"), hashes=lambda: hashes[rank],
        )  # fmt: skip

    return together(one, one)


SAME = [{"data": "d", "base": "b"}] * 2


@pytest.mark.parametrize(("shared", "did"), [
    (Shared(run=True, cache=True), ["whole 0"]), (Shared(run=True, cache=False), ["cache 1", "whole 0"]),
    (Shared(run=False, cache=False), ["whole 0", "whole 1"]),
])  # fmt: skip
def test_who_prepares(shared, did):
    done: list[str] = []
    assert prepared(shared, SAME, done) == [None, None]
    assert sorted(done) == did


def test_different_data_and_bases_are_named_with_their_machines():
    other = [{"data": "d", "base": "b"}, {"data": "x", "base": "y"}]
    for error in prepared(Shared(run=False, cache=False), other, []):
        assert isinstance(error, EnvironmentProblem)
        assert [one.code for one in error.problems] == ["L215", "L215"]
        assert "machine 1" in error.problems[0].message and " x" in error.problems[0].message


def test_a_machine_that_cannot_prepare_stops_all():
    def fail() -> None:
        raise DataError(code="D210", message="row 7 is wrong")

    def one(control: Control) -> None:
        prepare_everywhere(
            control, shared=Shared(run=False, cache=False), whole=fail if control.nodes.rank else lambda: None,
            cached=fail, hashes=lambda: SAME[0],
        )  # fmt: skip

    zero, one_ = together(one, one)
    assert isinstance(one_, DataError)
    assert zero.problems[0].code == "L217" and "row 7 is wrong" in str(zero)


# -- how it ended


def ends(*endings: list[LuthierError | None], restarts: int = 0, signals: dict[int, str] | None = None) -> list:
    """By machine, how each of its attempts ends."""

    def one(control: Control) -> int:
        rank = control.nodes.rank
        control.about = {number: {"host": f"h{number}", "processes": 1} for number in range(len(endings))}
        attempts = []

        def start(attempt: int) -> Ended:
            attempts.append(attempt)
            return Ended(error=endings[rank][attempt], signal=(signals or {}).get(rank))

        run_attempts(start, max_restarts=restarts, control=control)
        return len(attempts)

    return together(*[one] * len(endings))


FOLLOWED = RunFailed(code="L141", message="process 0 lost the others")
KILLED = RunFailed(code="L143", message="process 1 was ended by SIGKILL")


def test_the_cause_is_told_on_all_machines_with_the_machine():
    for error in ends([FOLLOWED], [KILLED]):
        assert error.problems[0].code == "L143"
        assert error.problems[0].message == "machine 1 (h1): process 1 was ended by SIGKILL"


def test_a_stop_names_the_machine_that_was_told_to():
    saved = Interrupted(code="T480", message="stopped after step 3 of 9")
    for error in ends([saved], [saved], signals={1: "SIGTERM"}):
        assert isinstance(error, Interrupted)
        assert "machine 1 (h1) got SIGTERM: stopped after step 3 of 9" in str(error)


def test_all_start_again_together_as_often_as_they_may():
    assert ends([FOLLOWED, None], [KILLED, None], restarts=1) == [2, 2]
    for error in ends([FOLLOWED, FOLLOWED], [KILLED, KILLED], restarts=1):
        assert error.problems[0].code == "L143"


@pytest.mark.parametrize("error", [RecipeError(code="C100", message="wrong"), Interrupted(code="T480", message="x")])
def test_what_would_come_again_is_not_tried_again(error):
    assert [type(found) for found in ends([FOLLOWED, None], [error, None], restarts=1)] == [type(error)] * 2


def test_one_machine_starts_again_alone():
    said = iter([KILLED, None])
    run_attempts(lambda attempt: Ended(error=next(said)), max_restarts=1)
    with pytest.raises(RunFailed):
        run_attempts(lambda attempt: Ended(error=KILLED), max_restarts=2)


def test_a_silent_machine_is_lost_by_its_name(monkeypatch):
    monkeypatch.setenv("LUTHIER_MACHINE_SECONDS", "2")
    gone = threading.Event()

    def zero(control: Control) -> object:
        control.about[1] = {"host": "h1", "processes": 1}
        with control.watching():
            run_attempts(
                lambda attempt: Ended(error=FOLLOWED if gone.wait(30) else None), max_restarts=0, control=control
            )
        return None

    def one(control: Control) -> object:
        """Its beats stop."""
        control._done.set()
        gone.set()
        threading.Event().wait(3.5)
        return "gone"

    lost, _ = together(zero, one)
    assert isinstance(lost, MachineLost) and lost.exit_code == 7
    assert "machine 1 (h1) is lost: it has not answered for" in str(lost)


# -- addresses


def test_interfaces_by_routes(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    found = interface_to("127.0.0.1")
    assert (found.name, found.address) == ("lo", "127.0.0.1")
    assert interface_to("no-such-host.invalid") is None
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    with on_interface(found, reaches="machine 1"):
        assert (read_plain("GLOO_SOCKET_IFNAME"), read_plain("NCCL_SOCKET_IFNAME")) == ("lo", "ib0")
    assert read_plain("GLOO_SOCKET_IFNAME") is None


def test_addresses():
    assert split_address("[fd00::1]:29500") == ("fd00::1", 29500)
    for text in ("host", "host:", ":29500", "host:x", "host:0", "host:70000"):
        with pytest.raises(RecipeError, match="is no address"):
            split_address(text)
