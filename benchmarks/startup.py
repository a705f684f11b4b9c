"""How long a person waits before anything happens: import, --help, and the main job.

python benchmarks/startup.py [--repeats 5] [--quick]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from rich.console import Console
from rich.table import Table

BIN = Path(sys.executable).parent
COMMANDS = {
    "import robustbench_bio": ([sys.executable, "-c", "import robustbench_bio"], 1.0),
    "biorobust --help": ([str(BIN / "biorobust"), "--help"], 1.0),
    "biorobust eval --model bionas-darts --attack pgd": (
        [str(BIN / "biorobust"), "eval", "--model", "bionas-darts", "--attack", "pgd"],
        20.0,
    ),
}


def seconds(command: list[str]) -> float:
    with tempfile.TemporaryDirectory() as home:
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"BIOROBUST_HOME": home})  # noqa: S603
        return time.perf_counter() - started


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
    table = Table("command", title=common.machine(os.cpu_count() or 1))
    for column in ("median s", "worst s", "limit s"):
        table.add_column(column, justify="right")
    late = False
    for name in common.steps(COMMANDS):
        command, limit = COMMANDS[name]
        if options.quick and "eval" in command:
            command = [*command, "--n-examples", "16", "--steps", "2"]
        runs = [seconds(command) for _ in range(options.repeats)]
        late |= statistics.median(runs) > limit
        table.add_row(name, f"{statistics.median(runs):.2f}", f"{max(runs):.2f}", f"{limit:.0f}")
    Console(width=100).print(table)
    return int(late and not options.quick)


if __name__ == "__main__":
    common.command_line(main)
