"""Native attacks beside those of torchattacks, foolbox and pyautoattack: same network, images, budget, threads.

Each cell runs in a process of its own, native and peer by turns, `--repeats` times; the medians are compared.
"Seconds" of the native side are the whole `evaluate`: gate, clean pass, attack and judge; of the peer, attack and
one clean and one adversarial pass. Native is timed warm; "first" adds what the first call on a network costs.

    python benchmarks/peers.py [--only pgd] [--repeats 3]
"""

import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import common
from rich.console import Console
from rich.table import Table

#: name → (attack, eps·255, parameters of the native attack, peer)
CELLS: dict[str, tuple[str, float, dict[str, Any], str]] = {
    "PGD-40, 8/255": ("pgd", 8, {"steps": 40, "step_size": 2 / 255}, "torchattacks"),
    "PGD-40, 1/255": ("pgd", 1, {"steps": 40, "step_size": 0.25 / 255}, "torchattacks"),
    "PGD-40, 8/255 (foolbox)": ("pgd", 8, {"steps": 40, "step_size": 2 / 255}, "foolbox"),
}


def native(cell: str, options: Any) -> dict[str, float]:
    import robustbench_bio as rb

    attack, eps, params, _ = CELLS[cell]
    net, x, y = common.reference(options)

    def work() -> float:
        return rb.evaluate(net, (x, y), attack=attack, eps=eps / 255, **params).robust_accuracy

    first = common.timed(work)
    warm = common.timed(work)
    return warm | {"first": first["seconds"], "memory": first["memory"]}


def peer(cell: str, options: Any) -> dict[str, float]:
    import torch

    attack, eps, params, library = CELLS[cell]
    net, x, y = common.reference(options)
    run = PEERS[library, attack](net, eps / 255, params)

    def work() -> float:
        x_adv = run(x, y)
        with torch.no_grad():
            stands = (net(x).argmax(1) == y) & (net(x_adv).argmax(1) == y)
        return stands.float().mean().item()

    return common.timed(work)


def torchattacks_pgd(net: Any, eps: float, params: dict[str, Any]) -> Callable[[Any, Any], Any]:
    import torchattacks

    return torchattacks.PGD(net, eps=eps, alpha=params["step_size"], steps=params["steps"], random_start=True)  # type: ignore[no-any-return]


def foolbox_pgd(net: Any, eps: float, params: dict[str, Any]) -> Callable[[Any, Any], Any]:
    import foolbox

    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=params["step_size"], steps=params["steps"])
    return lambda x, y: attack(wrapped, x, y, epsilons=eps)[1]


PEERS: dict[tuple[str, str], Callable[[Any, float, dict[str, Any]], Callable[[Any, Any], Any]]] = {
    ("torchattacks", "pgd"): torchattacks_pgd,
    ("foolbox", "pgd"): foolbox_pgd,
}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run the cells whose name contains this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "CELL"), help="run one cell here and print JSON")
    options = parser.parse_args()
    if options.one:
        side, cell = options.one
        sys.stdout.write(json.dumps((native if side == "native" else peer)(cell, options)) + "\n")
        return
    table = Table("attack", "peer", title=common.machine(options.threads))
    columns = ("peer s", "native s", "first s", "ratio", "peer robust %", "native robust %", "peer MiB", "native MiB")
    for column in columns:
        table.add_column(column, justify="right")
    for cell in (c for c in CELLS if options.only.lower() in c.lower()):
        runs: dict[str, list[dict[str, float]]] = {"native": [], "peer": []}
        for _ in range(options.repeats):
            for side, found in runs.items():
                shared = ["--n", str(options.n), "--threads", str(options.threads)]
                paths = ["--data-file", str(options.data_file), "--weights", str(options.weights)]
                found.append(common.in_fresh_process(__file__, *shared, *paths, "--one", side, cell))
        mid = {
            side: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for side, found in runs.items()
        }
        mine, theirs = mid["native"], mid["peer"]
        table.add_row(
            cell, CELLS[cell][3], f"{theirs['seconds']:.2f}", f"{mine['seconds']:.2f}", f"{mine['first']:.2f}",
            f"{theirs['seconds'] / mine['seconds']:.1f}",
            f"{100 * theirs['robust']:.1f}", f"{100 * mine['robust']:.1f}",
            f"{theirs['memory']:.0f}", f"{mine['memory']:.0f}",
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
