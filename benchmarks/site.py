"""How long the site of large boards takes to build, and to sort in a browser: 500 entries on 5 boards.

python benchmarks/site.py [--entries 500] [--boards 5] [--n 1000] [--quick]
"""

import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"build": 20.0, "sort": 0.1, "filter": 0.1}

#: What a step is called, where its name does not say all.
NAMES = {"work": "build, processor time", "sort": "sort, as the page opens", "every": "sort, every row shown"}

#: Sorts or filters, and returns milliseconds until the new table is laid out.
CLICKS = """() => {
  const body = document.querySelector("#entries tbody");
  const timed = (act) => {
    const started = performance.now();
    act();
    body.getBoundingClientRect();
    return performance.now() - started;
  };
  const buttons = [...document.querySelectorAll("thead button")];
  const search = document.querySelector("input[name=q]");
  const type = (text) => {
    search.value = text;
    search.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const sort = [...buttons, ...buttons].map((button) => timed(() => button.click()));
  const filter = ["m", "m1", "m", ""].map((text) => timed(() => type(text)));
  document.getElementById("more").click();
  const every = buttons.map((button) => timed(() => button.click()));
  return { sort, filter, every, rows: body.rows.length };
}"""


def boards(entries: int, boards: int, n: int) -> dict[str, Any]:
    """Return boards of synthetic entries with cells, curves and galleries of 16 images."""
    sys.path.insert(0, str(ROOT / "tests" / "report"))
    from test_site import board, card_of, entry, gallery_of

    from robustbench_bio.zoo import catalog

    cells, shape = catalog.genotype("biodarts"), (3, 32, 32)
    gallery = gallery_of(shape, n=16)
    made = {}
    for b in range(boards):
        contest = board(f"board-{b}", n_examples=n, dataset=f"data-{b}")
        mine = []
        for i in range(entries // boards):
            name, rule = f"m{i}-darts", ("genotype", "usf", "random:0", "bp")[i % 4]
            card = card_of(name, rule=rule, net={"name": "cells", "genotype": "biodarts"})
            verdict = ("masked", "sound", "inconclusive")[i % 3]
            one = entry(
                name, contest, 0.02 + 0.0005 * i, i, card=card, genotype=cells, verdict=verdict, gallery=gallery
            )
            mine.append(one)
        made[contest.name] = (contest, mine)
    return made


def clicks(page_address: str) -> dict[str, Any] | None:
    """Return milliseconds of every sort and filter in Chromium; None where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if found is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{page_address}#board=all")
        measured = page.evaluate(CLICKS)
        browser.close()
    return dict(measured)


def main() -> int:
    parser = common.parser(__doc__)
    for name, value in (("--entries", 500), ("--boards", 5), ("--n", 1000)):
        parser.add_argument(name, type=int, default=value)
    options = parser.parse_args()
    if options.quick:
        options.entries, options.boards, options.n = 8, 2, 100
    from robustbench_bio.report import site

    common.note("1 of 3: synthetic entries")
    made = boards(options.entries, options.boards, options.n)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "site"
        common.note("2 of 3: the site is built")
        started, worked = time.perf_counter(), time.process_time()
        paths = site.build_site(made, out)
        seconds = {"build": [time.perf_counter() - started], "work": [time.process_time() - worked]}
        size = sum(path.stat().st_size for path in paths)
        common.note("3 of 3: tables are sorted and filtered in a browser")
        measured = clicks((out / "index.html").as_uri())
    if measured is None:
        common.note("skipped sorting and filtering: no Chromium, or no playwright")
    else:
        assert measured["rows"] == options.entries // options.boards * options.boards
        seconds |= {name: [ms / 1000 for ms in measured[name]] for name in ("sort", "filter", "every")}
    title = f"{options.entries} entries, {options.boards} boards, n = {options.n}: {len(paths)} files, {size >> 20} MiB"
    table = Table("step", title=f"{title}\n{common.machine(os.cpu_count() or 1)}")
    for name in ("median s", "worst s", "limit s"):
        table.add_column(name, justify="right")
    for name, runs in seconds.items():
        limit = f"{LIMITS[name]:g}" if name in LIMITS else "–"
        table.add_row(NAMES.get(name, name), f"{statistics.median(runs):.3f}", f"{max(runs):.3f}", limit)
    Console(width=100).print(table)
    late = any(statistics.median(runs) > LIMITS.get(name, math.inf) for name, runs in seconds.items())
    return int(late and not options.quick)


if __name__ == "__main__":
    common.command_line(main)
