"""Do the published claims hold? Writes docs/claims.md and its plot: `python benchmarks/claims.py`.

Measures every network of the claims that the zoo has weights for: PGD at six radii, FGSM, PGD, APGD and One-Pixel at
a small radius and at the released one, the quirks of the published evaluation, and the noise of gradients. All is kept
in --store, so the same command continues where it was interrupted, and a run without anything new only writes the page.

    python benchmarks/claims.py --data-file CIFAR.npz [--n 846] [--models '*-resnet20'] [--device auto]
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp

import common

#: Seconds between two lines of progress on the same network.
EVERY = 20.0

#: How often the batches are drawn over which gradients vary.
NOISE_DRAWS = 5

#: Of a quick run: networks that are small, on images that come with scikit-learn.
QUICK_MODELS = "bp-resnet20,usf-resnet20,random-resnet20"


class Lines:
    """Progress of one network in a line now and then, with the time that is left."""

    def __init__(self) -> None:
        self.started = self.told = time.perf_counter()
        self.total = 0

    def __call__(self, done: int, total: int, line: str, /) -> None:
        now = time.perf_counter()
        if total != self.total or done == 0:
            self.started, self.total = now, total
        if now - self.told > EVERY:
            self.told = now
            common.note(f"{done:,} of {total:,}: {line}{common.remaining(self.started, done, total)}")


def networks(models: Sequence[str]) -> Iterator[str]:
    """Yield the networks, and say which it is and how long all may take."""
    return common.steps(models, str)


def options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-file", type=Path, metavar="FILE.npz", help="images that stand in for the data set")
    parser.add_argument("--data-root", type=Path, help="where data sets lie")
    parser.add_argument("--n", type=int, default=846, help="images that are attacked, the first of the test split")
    parser.add_argument("--models", default="*", help="ids and patterns with *, separated by commas")
    parser.add_argument(
        "--noise-draws", type=int, default=NOISE_DRAWS, help="of the batches of gradients; 0 leaves them out"
    )
    parser.add_argument("--store", type=Path, default=Path("runs/claims"), help="where measurements are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/claims.md"), help="the page; its plot goes beside it")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None, help="of torch, on a CPU")
    asked = parser.parse_args()
    if asked.quick:
        folder = Path(mkdtemp())
        asked.dataset, asked.data_file, asked.n, asked.models, asked.noise_draws = "digits", None, 8, QUICK_MODELS, 2
        asked.store, asked.out = folder / "store", folder / "claims.md"
    return asked


def command(asked: argparse.Namespace) -> str:
    """Return the command that writes the same page, without the places of this machine."""
    words = ["python benchmarks/claims.py"]
    words += [f"--dataset {asked.dataset}"] if asked.dataset != "cifar10" else []
    words += [f"--data-file {asked.data_file.name}"] if asked.data_file else []
    words += [f"--n {asked.n}"]
    words += [f"--models '{asked.models}'"] if asked.models != "*" else []
    words += [f"--noise-draws {asked.noise_draws}"] if asked.noise_draws != NOISE_DRAWS else []
    return " ".join(words)


def write(asked: argparse.Namespace) -> None:
    """Measure, and write page and plot."""
    import torch
    from evidence.document import document
    from evidence.figure import write_curves
    from evidence.records import Published
    from evidence.study import Study

    from robustbench_bio.core.files import write_atomically
    from robustbench_bio.evaluation.planning import read_settings
    from robustbench_bio.evaluation.store import Store
    from robustbench_bio.zoo.loading import DataSource

    if asked.threads:
        torch.set_num_threads(asked.threads)
    source = DataSource(asked.dataset, asked.data_root, asked.data_file)
    settings = read_settings(seed=0, batch_size=asked.batch_size, precision="float32", device=asked.device)
    study = Study(
        Published.load(),
        source,
        Store(asked.store),
        asked.n,
        asked.noise_draws,
        settings,
        asked.quick,
        networks,
        Lines(),
    )
    evidence = study.run(study.models(asked.models))
    write_curves(study.published, evidence, asked.out.with_name(f"{asked.out.stem}-curve"))
    text = document(study.published, evidence, command(asked), f"{asked.out.stem}-curve")
    write_atomically(asked.out, text.encode())
    print(f"{asked.out}: {len(evidence.networks)} networks, {asked.n} images")


def main() -> int:
    from robustbench_bio.core.errors import UserError

    asked = options()
    try:
        write(asked)
    except UserError as error:
        common.note(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    common.command_line(main)
