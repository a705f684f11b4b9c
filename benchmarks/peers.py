"""Native attacks beside those of torchattacks, foolbox and pyautoattack: same network, images, budget, threads.

Each comparison runs in fresh processes, native and peer by turns, `--repeats` times; each turn gives a ratio of times,
and the median ratio counts. Seconds of the native side are the whole `evaluate`: gate, clean pass, attack and judge,
the network traced already; "first" is the first call, which also traces it. A peer is called as its own users call it,
the plain network in eval mode and all images at once; its seconds are the attack, one clean and one adversarial pass,
after one small gradient has warmed the machine up. Memory is what a side's process grew by at its peak, its imports
and, for native, its first call included.

On CIFAR-10 and a ResNet-20 trained by others where --cifar10 and --reference name their files (or ../shared/data holds
them), else on a network of the zoo and its own images: the aims are then not judged.

    python benchmarks/peers.py [--only pgd] [--repeats 3] [--json FILE] [--markdown] [--quick]
    python benchmarks/peers.py --show FILE [--markdown]
"""

import argparse
import datetime
import json
import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from robustbench_bio.records.threat import Norm

#: A library's attack, ready to go: x, y → x_adv.
Run = Callable[[Any, Any], Any]

#: From the network and a seed, for the libraries that want one, to the attack.
Build = Callable[[Any, int], Run]

Document = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One attack beside one peer.

    Attributes:
        attack: our name of it.
        eps: radius in input units, pixels for l0.
        params: of our attack.
        peer: the library.
        build: makes the library's attack with the same budget.
        n: images at most.
        aim: how many times as fast as the peer it shall be; 1 where no more is wanted than not to be slower.
        norm: of the threat model.
    """

    attack: str
    eps: float
    params: dict[str, Any]
    peer: str
    build: Build
    n: int = 256
    aim: float = 1
    norm: "Norm" = "linf"


def torchattacks(name: str, **settings: Any) -> Build:
    """Return what makes an attack of torchattacks, which draws from the global generators."""

    def build(net: Any, seed: int) -> Run:
        del seed
        run: Run = getattr(import_module("torchattacks"), name)(net, **settings)
        return run

    return build


def foolbox(name: str, eps: float, **settings: Any) -> Build:
    """Return what makes an attack of foolbox, which draws from the global generators."""

    def build(net: Any, seed: int) -> Run:
        del seed
        library = import_module("foolbox")
        model, attack = library.PyTorchModel(net, bounds=(0, 1)), getattr(library.attacks, name)(**settings)
        return lambda x, y: attack(model, x, y, epsilons=eps)[1]

    return build


def autoattack_member(module: str, name: str, **settings: Any) -> Build:
    """Return what makes one member of pyautoattack, run without autograd around it as AutoAttack itself runs it."""

    def build(net: Any, seed: int) -> Run:
        import torch

        attack = getattr(import_module(f"pyautoattack.{module}"), name)(net, norm="Linf", seed=seed, **settings)

        @torch.no_grad()
        def run(x: Any, y: Any) -> Any:
            return attack.perturb(x, y)

        return run

    return build


def autoattack(eps: float) -> Build:
    """Return what makes the whole of pyautoattack."""

    def build(net: Any, seed: int) -> Run:
        attack = import_module("pyautoattack").AutoAttack(net, norm="Linf", eps=eps, version="standard", seed=seed)
        return lambda x, y: attack.run_standard_evaluation(x, y)[0]

    return build


def pgd(eps: float, step: float, peer: str, aim: float = 1) -> Comparison:
    """Return PGD with 40 steps from a random start."""
    name = "PGD" if peer == "torchattacks" else "LinfProjectedGradientDescentAttack"
    theirs = (
        torchattacks(name, eps=eps, alpha=step, steps=40, random_start=True)
        if peer == "torchattacks"
        else foolbox(name, eps, abs_stepsize=step, steps=40, random_start=True)
    )
    return Comparison("pgd", eps, {"steps": 40, "step_size": step}, peer, theirs, aim=aim)


def apgd(loss: str, aim: float = 1) -> Comparison:
    """Return Auto-PGD with 100 steps at 1/255."""
    theirs = autoattack_member("autopgd_base", "APGDAttack", eps=1 / 255, n_iter=100, loss=loss)
    return Comparison(f"apgd-{loss}", 1 / 255, {"steps": 100}, "pyautoattack", theirs, aim=aim)


def swift(steps: int) -> Comparison:
    """Return what shall take a tenth of the time of the whole of pyautoattack, at a radius in 255ths."""
    return Comparison("swift", steps / 255, {}, "pyautoattack", autoattack(steps / 255), n=64, aim=10)


def square(eps: float) -> Comparison:
    """Return Square with 1,000 queries, the schedule of both stretched to them; the peer's first point is one more."""
    theirs = autoattack_member("square", "SquareAttack", eps=eps, n_queries=999)
    return Comparison("square", eps, {"queries": 1000}, "pyautoattack", theirs, aim=2)


APGD_T = autoattack_member("autopgd_base", "APGDAttack_targeted", eps=1 / 255, n_iter=20, n_target_classes=9)
FAB_T = autoattack_member("fab_pt", "FABAttack_PT", eps=1 / 255, n_iter=10, n_target_classes=9, targeted=True)
TEN_STEPS: dict[str, Any] = {"steps": 10, "step_size": 2 / 255}

COMPARISONS: dict[str, Comparison] = {
    "PGD-40, 8/255, step 2/255": pgd(8 / 255, 2 / 255, "torchattacks", aim=25),
    "PGD-40, 8/255, step 2/255 (foolbox)": pgd(8 / 255, 2 / 255, "foolbox", aim=25),
    "PGD-40, 1/255, step 0.25/255": pgd(1 / 255, 0.25 / 255, "torchattacks", aim=7),
    "PGD-40, 1/255, step 0.25/255 (foolbox)": pgd(1 / 255, 0.25 / 255, "foolbox", aim=7),
    "FGSM, 8/255": Comparison("fgsm", 8 / 255, {}, "torchattacks", torchattacks("FGSM", eps=8 / 255)),
    "FGSM, 8/255 (foolbox)": Comparison("fgsm", 8 / 255, {}, "foolbox", foolbox("LinfFastGradientAttack", 8 / 255)),
    "MI-FGSM-10, 8/255, step 2/255": Comparison(
        "mi-fgsm", 8 / 255, TEN_STEPS, "torchattacks", torchattacks("MIFGSM", eps=8 / 255, alpha=2 / 255, steps=10)
    ),
    "TPGD-10, 8/255, step 2/255": Comparison(
        "tpgd", 8 / 255, TEN_STEPS, "torchattacks", torchattacks("TPGD", eps=8 / 255, alpha=2 / 255, steps=10)
    ),
    "APGD-CE-100, 1/255": apgd("ce", aim=5),
    "APGD-DLR-100, 1/255": apgd("dlr"),
    "APGD-T-20, 9 targets, 1/255": Comparison("apgd-t", 1 / 255, {"steps": 20, "targets": 9}, "pyautoattack", APGD_T),
    "FAB-T-10, 9 targets, 1/255": Comparison("fab-t", 1 / 255, {"steps": 10, "targets": 9}, "pyautoattack", FAB_T),
    "Square-1000, 2/255": square(2 / 255),
    "Square-1000, 8/255": square(8 / 255),
    "One-Pixel, 10 members, 10 generations": Comparison(
        "one-pixel", 1, {"population": 10, "generations": 10}, "torchattacks",
        torchattacks("OnePixel", pixels=1, steps=10, popsize=10), aim=8, norm="l0",
    ),
    "AutoAttack standard, 1/255": Comparison("autoattack", 1 / 255, {}, "pyautoattack", autoattack(1 / 255), n=64),
    "Swift beside AutoAttack standard, 1/255": swift(1),
    "Swift beside AutoAttack standard, 8/255": swift(8),
}  # fmt: skip


def native(comparison: Comparison, options: argparse.Namespace) -> dict[str, float]:
    """Run our side in this process: robust accuracy, seconds warm and first, MiB."""
    import robustbench_bio as rb

    net, x, y = common.network(options, min(comparison.n, options.n))
    before = common.memory_now()

    def work() -> float:
        result = rb.evaluate(
            net,
            (x, y),
            attack=comparison.attack,
            norm=comparison.norm,
            eps=comparison.eps,
            seed=options.seed,
            **comparison.params,
        )
        return result.robust_accuracy

    first, warm = common.timed(work), common.timed(work)
    return warm | {"first": first["seconds"], "memory": common.memory_peak() - before}


def peer(comparison: Comparison, options: argparse.Namespace) -> dict[str, float]:
    """Run the peer's side in this process: robust accuracy, seconds, MiB."""
    import numpy as np
    import torch

    net, x, y = common.network(options, min(comparison.n, options.n))
    before = common.memory_now()
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002
    run = comparison.build(net, options.seed)
    few = x[:8].clone().requires_grad_()
    torch.autograd.grad(net(few).sum(), few)

    def work() -> float:
        x_adv = run(x, y)
        with torch.no_grad():
            robust = (net(x).argmax(1) == y) & (net(x_adv).argmax(1) == y)
        return float(robust.float().mean())

    return common.timed(work) | {"memory": common.memory_peak() - before}


def measure(name: str, options: argparse.Namespace) -> Document:
    """Run both sides of a comparison by turns in processes of their own; return all that they measured."""
    comparison = COMPARISONS[name]
    runs: dict[str, list[dict[str, float]]] = {"native": [], "peer": []}
    for turn in range(options.repeats):
        for side, measured in runs.items():
            settings = ["--n", str(options.n), "--threads", str(options.threads), "--seed", str(turn)]
            if options.cifar10:
                settings += ["--cifar10", str(options.cifar10), "--reference", str(options.reference)]
            measured.append(common.in_fresh_process(__file__, *settings, "--one", side, name))
            common.note(f"  {side}: {measured[-1]['seconds']:.2f} s")
    return {
        "comparison": name,
        "peer": f"{comparison.peer} {metadata.version(comparison.peer)}",
        "network": "reference" if options.cifar10 else f"{common.OWN_NETWORK} on {common.OWN_DATASET}",
        "n": min(comparison.n, options.n),
        "machine": common.machine(options.threads),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "runs": runs,
    }


@dataclass(frozen=True)
class Row:
    """What a document of `measure` says about a comparison: medians over its turns."""

    document: Document

    @property
    def name(self) -> str:
        return str(self.document["comparison"])

    @property
    def comparison(self) -> Comparison:
        return COMPARISONS[self.name]

    @property
    def complete(self) -> bool:
        """Whether the comparison had the reference network and all of its images."""
        return bool(self.document["network"] == "reference" and self.document["n"] == self.comparison.n)

    @property
    def ratios(self) -> list[float]:
        """The peer's seconds over ours, smallest first."""
        runs = self.document["runs"]
        return sorted(
            theirs["seconds"] / mine["seconds"] for theirs, mine in zip(runs["peer"], runs["native"], strict=True)
        )

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def growth(self) -> float:
        """How much more memory we take than the peer, in MiB."""
        return self.middle("native", "memory") - self.middle("peer", "memory")

    @property
    def weakness(self) -> float:
        """Our robust accuracy less the peer's."""
        return self.middle("native", "robust") - self.middle("peer", "robust")

    @property
    def tolerance(self) -> float:
        """The share of the images that decides nothing, since the sides draw differently: 1 %, at least one image."""
        return max(1 / int(self.document["n"]), 0.01)

    def middle(self, side: str, key: str) -> float:
        """Return the median of a figure of one side."""
        return float(statistics.median(run[key] for run in self.document["runs"][side]))

    def texts(self) -> list[str]:
        """Return the row of the table, in the order of `COLUMNS`."""
        low, high = self.ratios[0], self.ratios[-1]
        return [
            self.name.removesuffix(" (foolbox)"), self.document["peer"], str(self.document["n"]),
            f"{self.middle('peer', 'seconds'):.2f}", f"{self.middle('native', 'seconds'):.2f}",
            f"{self.middle('native', 'first'):.2f}", _times(self.ratio), f"{_times(low)}–{_times(high)}",
            f"{100 * self.middle('peer', 'robust'):.1f}", f"{100 * self.middle('native', 'robust'):.1f}",
            f"{self.middle('peer', 'memory'):.0f}", f"{self.middle('native', 'memory'):.0f}",
        ]  # fmt: skip


COLUMNS = ("attack", "peer", "n", "peer s", "native s", "first s", "ratio", "range", "peer robust %",
           "native robust %", "peer MiB", "native MiB")  # fmt: skip


def verdicts(rows: list[Row]) -> list[str]:
    """Say in a line each which aims are met, from the comparisons that were measured in full."""
    judged = [row for row in rows if row.complete]
    lines = [
        f"{_met(row.ratio >= aim)}: {row.name}, wanted {aim:g} times as fast, got {_times(row.ratio)}"
        for row in judged
        if (aim := row.comparison.aim) > 1
    ]
    aims: list[tuple[str, Callable[[Row], bool], Callable[[Row], str]]] = [
        ("slower than its peer", lambda row: row.ratio < 1, lambda row: f"ratio {_times(row.ratio)}"),
        ("with more memory than its peer", lambda row: row.growth > 0, lambda row: f"{row.growth:.0f} MiB more"),
        (
            "weaker than its peer by more than 1 % of the images and one image",
            lambda row: row.weakness > row.tolerance + 1e-9,
            lambda row: f"{100 * row.weakness:.1f} points more robust",
        ),
    ]
    for aim, missed, figure in aims if judged else []:
        names = [f"{row.name} ({figure(row)})" for row in judged if missed(row)]
        lines.append(f"{_met(not names)}: no attack {aim}{': ' if names else ''}{', '.join(names)}")
    full = "on the reference network with all of their images"
    return [*lines, f"{len(judged)} of {len(COMPARISONS)} comparisons measured {full}, the others are not judged"]


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def _met(true: bool) -> str:
    return "met" if true else "MISSED"


def report(rows: list[Row], markdown: bool) -> None:
    """Print the table and what became of the aims."""
    titles = sorted({f"{row.document['network']}, {row.document['machine']}" for row in rows})
    if markdown:
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for row in rows:
            print(f"| {' | '.join(row.texts())} |")
        print()
    else:
        table = Table(title="; ".join(titles))
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in {"attack", "peer"} else "right")
        for row in rows:
            table.add_row(*row.texts())
        Console(width=170).print(table)
    print("\n".join(f"- {line}" for line in verdicts(rows)))


def documents(file: Path) -> list[Document]:
    """Return the last document of every comparison in a file that `--json` wrote, in the order of `COMPARISONS`."""
    read = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    last = {document["comparison"]: document for document in read}
    return [last[name] for name in COMPARISONS if name in last]


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = common.parser(__doc__)
    common.add_network(parser)
    parser.add_argument("--only", default="", help="run the comparisons whose name or peer contains this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every comparison's runs, a document a line")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show what --json wrote")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/speed.md")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure, or show what was measured."""
    parser = arguments()
    options = parser.parse_args()
    if options.one:
        logging.getLogger("auto-attack").setLevel(logging.ERROR)  # its advice to its users is not ours to print
        side, name = options.one
        print(json.dumps((native if side == "native" else peer)(COMPARISONS[name], options)))
        return
    if options.show:
        rows = [Row(document) for document in documents(options.show) if _wanted(document["comparison"], options)]
        report(rows, options.markdown)
        return
    if options.quick:
        options.n, options.repeats, options.threads, options.only = 16, 1, 1, options.only or "MI-FGSM"
    names = [name for name in COMPARISONS if _wanted(name, options)]
    if not names or options.repeats < 1:
        parser.error(f"expected --repeats >= 1 and --only to be part of one of: {'; '.join(COMPARISONS)}")
    common.find_network(options)
    rows = []
    for name in common.steps(_installed(names)):
        rows.append(Row(measure(name, options)))
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1].document) + "\n")
    if rows:
        report(rows, options.markdown)


def _installed(names: list[str]) -> list[str]:
    """Return the comparisons whose peer is installed; note the others."""
    absent = sorted({COMPARISONS[name].peer for name in names if find_spec(COMPARISONS[name].peer) is None})
    for library in absent:
        common.note(f"skipped {library}: it is not installed, `pip install -e '.[backends]'` brings it")
    return [name for name in names if COMPARISONS[name].peer not in absent]


def _wanted(name: str, options: argparse.Namespace) -> bool:
    return options.only.lower() in f"{name} {COMPARISONS[name].peer}".lower()


if __name__ == "__main__":
    common.command_line(main)
