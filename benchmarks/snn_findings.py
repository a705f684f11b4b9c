"""Does a score without training find good spiking networks? `python benchmarks/snn_findings.py [--out runs/snn]`.

Three questions on digits, in the space mse-nas with its small settings (6 cells, C = 4, T = 4):

1. Do scores of untrained networks predict the accuracy after training? Spearman's ρ over random genomes, with the 95 %
   interval of a bootstrap over genomes.
2. Does evolution find better ones than as many random genomes? Paired over seeds: score and accuracy of both winners.
3. What do spikes cost? Spikes and synaptic operations for an image, and their energy beside that of the same network
   with ReLU: 0.9 pJ for an addition, 4.6 pJ for a multiply-accumulate (Horowitz 2014), arithmetic only.

Networks learn from one half of the train split and are judged on the other. What is finished is kept in --out, so the
same command continues where an interrupted one stopped.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import common
import numpy as np
from rich.console import Console
from rich.table import Table

console = Console()


@dataclass(frozen=True)
class Setup:
    """What decides every number."""

    dataset: str = "digits"
    channels: int = 4
    layers: int = 6
    steps: int = 4
    epochs: int = 6
    lr: float = 0.003


def kept(folder: Path, name: str, asked: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `work` returns, or what it returned before to the same question."""
    from robustbench_bio.core.files import write_atomically

    path = folder / f"{name}.json"
    if path.exists() and (found := json.loads(path.read_text()))["asked"] == asked:
        return found["found"]  # type: ignore[no-any-return]
    started = time.perf_counter()
    found = work()
    document = {"asked": asked, "found": found, "seconds": time.perf_counter() - started}
    write_atomically(path, json.dumps(document, indent=1).encode())
    console.print(f"{name}: {document['seconds']:.0f} s", highlight=False)
    return found


def task(setup: Setup, fitness: str, seed: int) -> Any:
    """Return a task of the search, as the command line would make it."""
    from robustbench_bio.search import run as searches

    request = searches.SearchRequest(
        space="mse-nas", engine="mse-nas", dataset=setup.dataset, fitness=fitness, seed=seed, workers=1,
        channels=setup.channels, layers=setup.layers,
    )  # fmt: skip
    return searches.prepare_search(request)[1]


def random_genotypes(setup: Setup, count: int, seed: int) -> list[Any]:
    """Return genotypes drawn uniformly from the genomes."""
    from robustbench_bio.core.rng import torch_generator
    from robustbench_bio.search.motifs.genome import GenomeCode
    from robustbench_bio.zoo import catalog

    code = GenomeCode(catalog.space("mse-nas"), setup.layers)  # type: ignore[arg-type]
    seeds = torch_generator("snn findings", seed).initial_seed()
    genomes = np.random.default_rng(seeds).integers(code.lower, np.array(code.upper) + 1, (count, code.length))
    return [code.decode([int(g) for g in row], name=f"random-{i}", source="Drawn.") for i, row in enumerate(genomes)]


def scored(setup: Setup, genotype: Any, fitness: str, seed: int) -> dict[str, float]:
    """Return the scores of one genotype as the engine mse-nas would."""
    from robustbench_bio.search.engines.mse_nas import MseNas
    from robustbench_bio.search.executors import LocalExecutor

    engine = MseNas(steps=setup.steps, lr=setup.lr, epochs=setup.epochs)
    scorer = engine.scorer(task(setup, fitness, seed))
    ((_, scores),) = LocalExecutor(1).scores(scorer, [genotype])
    return scores


TERMS = "rdm:hamming,rdm:jaccard,rdm:cosine,rdm:pearson,rdm:manhattan,rdm:released,sahd"


def predict(setup: Setup, count: int, folder: Path) -> None:
    """Answer the first question."""
    from scipy.stats import spearmanr

    trained = f"trained:{setup.epochs}"
    rows = []
    genotypes = list(enumerate(random_genotypes(setup, count, 0)))
    for i, genotype in common.steps(genotypes, lambda pair: f"prediction, genome {pair[0]}"):
        asked = asdict(setup) | {"genome": list(genotype.genome)}
        rows.append(kept(folder, f"random-{i}", asked, lambda g=genotype: scored(setup, g, f"{TERMS},{trained}", 0)))  # type: ignore[misc]
    accuracy = np.array([row[trained] for row in rows])
    table = Table(title=f"Does it predict the accuracy after {setup.epochs} epochs? {count} random genomes, accuracy "
                        f"{100 * accuracy.min():.1f} to {100 * accuracy.max():.1f} %, median "
                        f"{100 * np.median(accuracy):.1f} %")  # fmt: skip
    for name in ("before training", "Spearman's ρ", "95 % interval"):
        table.add_column(name)
    draws = np.random.default_rng(0).integers(count, size=(2000, count))
    for name in [*TERMS.split(","), "spikes", "parameters", "dead"]:
        values = np.array([row[name] for row in rows])
        with np.errstate(all="ignore"):
            boot = [spearmanr(values[d], accuracy[d]).statistic for d in draws if np.ptp(values[d]) > 0]
            rho = spearmanr(values, accuracy).statistic
        low, high = np.nanpercentile(boot, [2.5, 97.5]) if boot else (np.nan, np.nan)
        table.add_row(name, f"{rho:+.2f}", f"{low:+.2f} to {high:+.2f}")
    console.print(table)


def evolve(setup: Setup, seeds: int, population: int, generations: int, folder: Path) -> None:
    """Answer the second question."""
    from robustbench_bio.search.engines.mse_nas import MseNas

    trained = f"trained:{setup.epochs}"

    def best(seed: int, generations: int) -> dict[str, Any]:
        engine = MseNas(population=population if generations > 1 else population * budget, offspring=population,
                        generations=generations, steps=setup.steps, batches=1)  # fmt: skip
        found = engine.search(task(setup, "rdm", seed))
        after = scored(setup, found.genotype, trained, seed)
        return {"rdm": found.trace[-1]["best_fitness"], "accuracy": after[trained]}

    budget = generations
    rows = []
    for seed in common.steps(range(seeds), lambda seed: f"evolution, seed {seed}"):
        asked = asdict(setup) | {"population": population, "generations": generations, "seed": seed}
        evolved = kept(folder, f"evolved-s{seed}", asked, lambda s=seed: best(s, generations))  # type: ignore[misc]
        drawn = kept(folder, f"drawn-s{seed}", asked, lambda s=seed: best(s, 1))  # type: ignore[misc]
        rows.append([evolved["rdm"], drawn["rdm"], 100 * evolved["accuracy"], 100 * drawn["accuracy"]])
    table = Table(title=f"The best of {population * generations} candidates by rdm:hamming, {seeds} seeds")
    for name in ("", "evolved", "drawn at random", "difference, 95 % interval"):
        table.add_column(name)
    values = np.array(rows)
    for name, a, b, digits in (("rdm:hamming", 0, 1, 4), (f"accuracy after {setup.epochs} epochs, %", 2, 3, 1)):
        mean, low, high = _paired(values[:, a] - values[:, b])
        table.add_row(name, *(f"{values[:, c].mean():.{digits}f}" for c in (a, b)),
                      f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})")  # fmt: skip
    console.print(table)


def _paired(differences: Any) -> tuple[float, float, float]:
    """Return mean and 95 % t-interval."""
    from scipy.stats import t

    n = len(differences)
    half = t.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5
    return differences.mean(), differences.mean() - half, differences.mean() + half


def operations(net: Any, x: Any) -> dict[str, float]:
    """Return additions (input of spikes), multiply-accumulates (any other input) and spikes of an image, means over x.

    The stem's product with a still image is counted once, as it is computed; `biorobust show` has both counts.
    """
    from robustbench_bio.nets.firing import firing

    found = firing(net, x)
    return {
        "additions": found.total.accumulates,
        "macs": found.total.macs - found.total.repeated,
        "spikes": found.spikes,
    }


def energy(setup: Setup, count: int, folder: Path) -> None:
    """Answer the third question."""
    from robustbench_bio.nets.cost import spiking_picojoules

    table = Table(title=f"The same weights with spikes (T = {setup.steps}) and with ReLU, each trained "
                        f"{setup.epochs} epochs; means of {count} random genomes")  # fmt: skip
    for name in ("", "accuracy, %", "spikes", "additions", "multiply-accumulates", "nJ"):
        table.add_column(name)
    rows: dict[str, list[list[float]]] = {"lif": [], "relu": []}
    genotypes = list(enumerate(random_genotypes(setup, count, 1)))
    for i, genotype in common.steps(genotypes, lambda pair: f"energy, genome {pair[0]}"):
        for kind, found in rows.items():
            asked = asdict(setup) | {"genome": list(genotype.genome), "neurons": kind}
            row = kept(folder, f"energy-{i}-{kind}", asked, lambda g=genotype, k=kind: _trained(setup, g, k))  # type: ignore[misc]
            picojoules = spiking_picojoules(row["additions"], row["macs"])
            found.append([100 * row["accuracy"], row["spikes"], row["additions"], row["macs"], picojoules / 1000])
    for kind, found in rows.items():
        accuracy, *others = np.array(found).mean(0)
        table.add_row(kind, f"{accuracy:.1f}", *(f"{value:,.0f}" for value in others))
    console.print(table)


def _trained(setup: Setup, genotype: Any, neurons: str) -> dict[str, float]:
    from robustbench_bio import nets, rules
    from robustbench_bio.search.engines.mse_nas import MseNas
    from robustbench_bio.training import loop, steps

    engine = MseNas(steps=setup.steps, lr=setup.lr)
    scorer = engine.scorer(task(setup, f"trained:{setup.epochs}", 0))
    net = nets.build("motifs", scorer.inputs, seed=0, genotype=genotype, channels=setup.channels, steps=setup.steps,
                     neurons=neurons)  # fmt: skip
    rules.attach(net, "bp", seed=0)
    loop.train(net, scorer.prepare().examples, scorer.recipe, seed=0)
    return {
        "accuracy": steps.accuracy(net, *scorer.validation),
        **operations(net, scorer.validation.x[:200].float() / 255),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/snn-findings"))
    parser.add_argument("--genomes", type=int, default=48, help="of the first question")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--networks", type=int, default=5, help="of the third question")
    parser.add_argument("--epochs", type=int, default=Setup.epochs)
    parser.add_argument("--only", choices=["predict", "evolve", "energy"], action="append")
    options = parser.parse_args()
    if options.quick:
        options.genomes, options.seeds, options.population, options.generations = 2, 2, 5, 2
        options.networks, options.epochs, options.out = 1, 1, Path(mkdtemp())
    setup = Setup(epochs=options.epochs, **({"channels": 2, "steps": 2} if options.quick else {}))
    asked = options.only or ["energy", "predict", "evolve"]
    if "energy" in asked:
        energy(setup, options.networks, options.out)
    if "predict" in asked:
        predict(setup, options.genomes, options.out)
    if "evolve" in asked:
        evolve(setup, options.seeds, options.population, options.generations, options.out)


if __name__ == "__main__":
    common.command_line(main)
