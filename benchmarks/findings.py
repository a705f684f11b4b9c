"""Does mixing learning rules help? The evidence of docs/findings.md, anew: `python benchmarks/findings.py`.

Trains every network of the study on `digits` (or another data set), five seeds each, and prints the tables. Seeds are
paired: the networks of one seed share the split, the order of the images and the seed of weights and feedback. What
is finished is kept in --out, so the same command continues where an interrupted one stopped.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Arm of the study → (cells, rules). "searched" and "drawn" cells differ from seed to seed.
ARMS: dict[str, tuple[str, str]] = {
    "searched": ("searched", "genotype"),
    "drawn": ("drawn", "genotype"),
    "mixed": ("biodarts", "genotype"),
    "random-rules": ("biodarts", "random"),
    "usf": ("biodarts", "usf"),
    "frsf": ("biodarts", "frsf"),
    "brsf": ("biodarts", "brsf"),
    "fa": ("biodarts", "fa"),
    "bp": ("biodarts", "bp"),
}
SINGLE = ("usf", "frsf", "brsf", "fa")

#: What is measured of every network, larger is better but for the variance.
MEASURES = {
    "test": "clean accuracy, %",
    "robust": "robust accuracy, exact gradient, %",
    "rule": "robust accuracy, rule's gradient, %",
    "noise": "gradient noise over signal, rule",
}


@dataclass(frozen=True)
class Job:
    """One network of the study, and all that decides what is measured of it."""

    arm: str
    seed: int
    dataset: str
    epochs: int
    channels: int
    layers: int
    eps: str
    n_attack: int
    out: str
    data_root: str | None

    @property
    def folder(self) -> Path:
        return Path(self.out) / f"{self.arm}-s{self.seed}"


def run(job: Job) -> dict[str, Any]:
    """Train and measure one network, or read what was measured before."""
    import torch

    torch.set_num_threads(1)
    found = job.folder / "measured.json"
    asked = asdict(job) | {"out": "", "data_root": ""}
    if found.exists() and (kept := json.loads(found.read_text()))["job"] == asked:
        return kept  # type: ignore[no-any-return]
    from robustbench_bio.core.files import write_atomically
    from robustbench_bio.training import run as runs
    from robustbench_bio.zoo import card_options

    started = time.perf_counter()
    cells, rule = ARMS[job.arm]
    card = card_options.card_from_options(
        model=None, genotype=genotype(job, cells), rule=f"random:{job.seed}" if rule == "random" else rule,
        dataset=job.dataset, name=f"{job.arm}-s{job.seed}", seed=job.seed,
        changes=[
            f"recipe.epochs={job.epochs}", "recipe.crop=1", f"net.channels={job.channels}", f"net.layers={job.layers}",
        ],
    )  # fmt: skip
    root = None if job.data_root is None else Path(job.data_root)
    trained = runs.train_card(card, job.dataset, job.folder, data_root=root)
    document = {"job": asked, "measured": measured(job, trained.net, root), "seconds": time.perf_counter() - started}
    write_atomically(found, json.dumps(document, indent=1).encode())
    return document


def genotype(job: Job, cells: str) -> str:
    """Return the name or file of the cells of a job: published, found by a search, or drawn from the same space."""
    from robustbench_bio.core.files import write_atomically
    from robustbench_bio.core.rng import torch_generator
    from robustbench_bio.search import run as searches
    from robustbench_bio.search.cells import draw_genotype
    from robustbench_bio.zoo import catalog

    if cells == "searched":
        root = None if job.data_root is None else Path(job.data_root)
        order = searches.Order(space="bionas", engine="darts", dataset=job.dataset, seed=job.seed, data_root=root)
        return str(searches.search(order, job.folder / "search").genotype_file)
    if cells == "drawn":
        path = job.folder / "genotype.toml"
        generator = torch_generator(job.seed, "findings", "drawn")
        found = draw_genotype(catalog.space("bionas"), generator, name=f"drawn-s{job.seed}", source="Drawn at random.")
        write_atomically(path, found.to_toml().encode())
        return str(path)
    return cells


def measured(job: Job, net: Any, root: Path | None) -> dict[str, float]:
    """Return accuracies as fractions, and how noisy the gradients of train batches are."""
    import torch

    from robustbench_bio import evaluate, load_data
    from robustbench_bio.records.threat import parse_eps
    from robustbench_bio.zoo.measures import gradient_variance

    data = load_data(job.dataset, "test", data_root=root)
    few = tuple(part[: job.n_attack] for part in data)
    with torch.no_grad():
        parts = zip(torch.split(data[0], 256), torch.split(data[1], 256), strict=True)
        test = sum(int((net(x).argmax(1) == y).sum()) for x, y in parts) / len(data[1])
    found = {"test": test}
    gradients = {"robust": "exact"} if job.arm == "bp" else {"robust": "exact", "rule": "rule"}
    for name, gradient in gradients.items():
        result = evaluate(net, few, attack="pgd", steps=20, eps=parse_eps(job.eps), gradient=gradient)
        found[name] = result.robust_accuracy
    x, y = load_data(job.dataset, "train", data_root=root)
    rows = min(len(y), 1024)
    noise = gradient_variance(net, x[:rows], y[:rows], batches=16, batch_size=rows // 16, seed=job.seed)
    for name, variance in (("noise", noise.by_rule), ("noise_exact", noise.exact)):
        if variance is not None and variance.relative is not None:
            found[name] = variance.relative
    return found


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Return mean and 95 % t-interval of paired differences."""
    from scipy.stats import t

    mean, n = statistics.fmean(differences), len(differences)
    half = t.ppf(0.975, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - float(half), mean + float(half)


def paired(table: dict[str, dict[int, dict[str, float]]], a: str, b: str, measure: str) -> str:
    """Return the mean of a − b over the seeds that both have, with its interval; accuracies in points."""
    seeds = sorted(table[a].keys() & table[b].keys())
    scale = 1 if measure.startswith("noise") else 100
    pairs = [(table[a][seed].get(measure), table[b][seed].get(measure)) for seed in seeds]
    known = [scale * (one - other) for one, other in pairs if one is not None and other is not None]
    if len(known) < 2:
        return "–"
    mean, low, high = interval(known)
    sign = "no difference seen" if low <= 0 <= high else "a > b" if low > 0 else "a < b"
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}], n = {len(known)}: {sign}"


def report(table: dict[str, dict[int, dict[str, float]]]) -> str:
    """Return the tables of docs/findings.md."""
    lines = ["| arm | seeds | " + " | ".join(MEASURES.values()) + " |", "|---|--:|" + "--:|" * len(MEASURES)]
    for arm, seeds in table.items():
        cells = [arm, str(len(seeds))]
        for measure in MEASURES:
            scale = 1 if measure.startswith("noise") else 100
            values = [scale * found[measure] for found in seeds.values() if measure in found]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.2f}{spread}" if values else "–")
        lines.append(f"| {' | '.join(cells)} |")
    singles = [arm for arm in SINGLE if arm in table]
    questions = [("searched", "drawn"), ("random-rules", "mixed"), ("mixed", "bp")]
    if singles and "mixed" in table:
        questions += [("mixed", arm) for arm in singles]
    lines += ["", "| a − b, paired by seed | " + " | ".join(MEASURES.values()) + " |", "|---|" + "---|" * len(MEASURES)]
    for a, b in questions:
        if a in table and b in table:
            lines.append(f"| {a} − {b} | " + " | ".join(paired(table, a, b, measure) for measure in MEASURES) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--eps", default="16/255")
    parser.add_argument("--n-attack", type=int, default=500, help="test images that are attacked")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="networks at once, a thread each")
    parser.add_argument("--out", default="runs/findings")
    parser.add_argument("--data-root", default=None)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers
    jobs = [
        Job(arm, seed, options.dataset, options.epochs, options.channels, options.layers, options.eps,
            options.n_attack, options.out, options.data_root)
        for seed in range(options.seeds) for arm in options.arms.split(",")
    ]  # fmt: skip
    table: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in options.arms.split(",")}
    started = time.perf_counter()
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as crew:
        waiting = {crew.submit(run, job): job for job in jobs}
        for done, future in enumerate(as_completed(waiting), 1):
            job = waiting[future]
            table[job.arm][job.seed] = future.result()["measured"]
            spent = (time.perf_counter() - started) / 60
            print(f"{done} of {len(jobs)} after {spent:.1f} min: {job.arm} s{job.seed} {table[job.arm][job.seed]}")
    print(report({arm: found for arm, found in table.items() if found}))


if __name__ == "__main__":
    main()
