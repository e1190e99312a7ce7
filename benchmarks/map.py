"""Time, memory and quality of `luthier data map` and `data stats`, and how quick the page is in Chromium.

python -m benchmarks.map rows --rows 100000 --out FOLDER     # synthetic rows with planted topics: train and test
python -m benchmarks.map page FOLDER/map.html                # first paint, frames, filter, search, opening a row

The rows are made of word lists (tests/explore/planted.py): 15 topics in the training rows, a sixteenth (cycling) only
among the test rows. The browser runs without a window and without a GPU, driven over a pipe.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.explore.browser import Browser, find_chromium
from tests.explore.planted import write_planted

GAP = ("cycling",)
FRAMES = 40


def make_rows(folder: Path, n: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_planted(folder / "train.jsonl", n - n // 50, topics=16, seed=1, without=GAP)
    write_planted(folder / "test.jsonl", n // 50, topics=16, seed=2)


def measure_page(page: Path, *, ratio: float) -> dict[str, Any]:
    """Milliseconds as the page itself measures them; panning is `FRAMES` moves, each drawn and waited for."""
    chromium = find_chromium()
    assert chromium is not None, "Chromium is not installed"
    with Browser(chromium, ratio=ratio) as tab:
        tab.open(page)
        timings = tab.js("luthierMap.timings")
        found: dict[str, Any] = {
            "rows": tab.js("luthierMap.state.shownCount"),
            "bytes": page.stat().st_size,
            "pixel_ratio": ratio,
            "first_paint_of_the_map_ms": round(timings["first"]),
        }
        frames = tab.js(f"""(async () => {{ const own = [], gaps = []; let last = performance.now();
            for (let k = 0; k < {FRAMES}; k++) {{ luthierMap.view.x += k % 2 ? 9 : -7; luthierMap.moving();
              await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
              own.push(luthierMap.timings.frame); }}
            return own; }})()""")
        found["frame_ms_median"] = round(statistics.median(frames), 1)
        found["frame_ms_worst"] = round(max(frames), 1)
        tab.js("new Promise((go) => setTimeout(go, 400))")
        found["frame_at_rest_ms"] = round(tab.js("(luthierMap.draw(), luthierMap.timings.frame)"), 1)
        tab.js("luthierMap.state.low = 100; luthierMap.applyFilters()")
        found["filter_ms"] = round(tab.js("luthierMap.timings.filter"), 1)
        whole = "const t = performance.now(); luthierMap.applyFilters(); return performance.now() - t;"
        found["filter_with_list_ms"] = round(tab.js(f"(() => {{ {whole} }})()"), 1)
        found["search_ms"] = round(
            tab.js("luthierMap.search('telescope', () => {}).then(() => luthierMap.timings.search)")
        )
        found["rows_found"] = tab.js("luthierMap.state.shownCount")
        opened = "const t = performance.now(); await luthierMap.openRow(5000 % luthierMap.state.shown.length); "
        found["open_a_row_ms"] = round(tab.js(f"(async () => {{ {opened} return performance.now() - t; }})()"), 1)
        heap = tab.call("Runtime.getHeapUsage")
        found["javascript_heap_mib"] = round(heap["usedSize"] / 2**20, 1)
        found["requests"], found["errors"] = tab.requests(), tab.complaints()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    rows = verbs.add_parser("rows")
    rows.add_argument("--rows", type=int, default=100_000)
    rows.add_argument("--out", type=Path, required=True)
    page = verbs.add_parser("page")
    page.add_argument("page", type=Path)
    page.add_argument("--ratio", type=float, default=1.0)
    options = parser.parse_args(arguments)
    if options.verb == "rows":
        make_rows(options.out, options.rows)
    else:
        print(json.dumps(measure_page(options.page, ratio=options.ratio)))


if __name__ == "__main__":
    main()
