"""A search by name: space, engine, data set, and the folder that holds what came of it."""

import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import write_atomically, write_csv
from robustbench_bio.core.registry import unknown
from robustbench_bio.datasets import load_examples, open_dataset
from robustbench_bio.datasets.base import Dataset
from robustbench_bio.nets.base import Inputs
from robustbench_bio.records.base import Precision
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.records.space import Space
from robustbench_bio.search.base import ENGINES, Engine, Found, Labelled, Task, halves, make
from robustbench_bio.search.executor import executor
from robustbench_bio.search.fitness import Fitness
from robustbench_bio.training.loop import Progress
from robustbench_bio.zoo import catalog

#: Images smaller than this take an engine's `small` settings.
SMALL_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a search is asked to be; None leaves the choice to the engine, the space or the machine.

    Attributes:
        space: name of a search space, or path of one that ends in .toml.
        engine: name of an engine.
        dataset: name of a data set, or path of an .npz.
        params: hyper-parameters of the engine.
        channels, layers: size of the networks; the space's own by default.
        seed: of everything random.
        fitness: what makes a candidate good, see `Fitness.read`.
        executor: "local" or "ray".
        workers: processes that score candidates; as many as there are cores by default, one on a GPU.
        device: where networks are.
        precision: "float32" or "bfloat16", of forward and backward passes.
        data_root: where data sets lie.
        data_file: an .npz that stands in for the data set.
    """

    space: str
    engine: str
    dataset: str
    params: Mapping[str, Any] = field(default_factory=dict)
    channels: int | None = None
    layers: int | None = None
    seed: int = 0
    fitness: str | None = None
    executor: str = "local"
    workers: int | None = None
    device: str = "cpu"
    precision: str = "float32"
    data_root: Path | None = None
    data_file: Path | None = None


@dataclass(frozen=True)
class Search:
    """A search and what it left.

    Attributes:
        order: what was asked for.
        engine: with its hyper-parameters.
        task: what it searched with.
        found: genotype and trace.
        folder: holds genotype, trace, plots and checkpoint.
    """

    order: Order
    engine: Engine[Any]
    task: Task[Any]
    found: Found
    folder: Path

    @property
    def genotype_file(self) -> Path:
        """Where the genotype lies once there is one."""
        return self.folder / "genotype.toml"


def search(order: Order, folder: Path, *, max_minutes: float | None = None, progress: Progress | None = None) -> Search:
    """Search cells for a data set, from its train split only: one half fits weights, the other judges.

    Writes `genotype.toml`, `trace.csv` and `checkpoint.safetensors` into the folder, and the front of several
    objectives into `front/`; the same call continues where an interrupted one stopped. A search that ran out of
    time leaves the best genotype so far.

    Images smaller than 16 pixels take the settings in `Engine.small` where nothing else is given: the published
    ones would take hours and need larger images.

    Args:
        order: what to search.
        folder: where the outcome goes.
        max_minutes: stop after this time; the next call continues.
        progress: called as the search goes on.

    Raises:
        UserError: an unknown name, a value out of its range, or a data set too small to split.
    """
    started = time.monotonic()
    if max_minutes is not None and not max_minutes > 0:
        raise UserError(f"expected max-minutes > 0, got {max_minutes:g}")
    engine, task = prepare(order)
    deadline = math.inf if max_minutes is None else started + 60 * max_minutes
    task = replace(task, checkpoint=folder / "checkpoint.safetensors", deadline=deadline)
    try:
        run = Search(order, engine, task, engine.search(task, progress), folder)
    finally:
        task.executor.close()
    write_found(run.found, folder)
    return run


def write_found(found: Found, folder: Path) -> None:
    """Write the trace of a search, its genotype and those of a front into a folder."""
    write_csv(found.trace, folder / "trace.csv")
    for genotype in found.front:
        write_atomically(folder / "front" / f"{genotype.name}.toml", genotype.to_toml().encode())
    if found.genotype is not None:
        write_atomically(folder / "genotype.toml", found.genotype.to_toml().encode())


def prepare(order: Order) -> tuple[Engine[Any], Task[Any]]:
    """Return engine and task of an order, without checkpoint and deadline; raises `UserError` as `search` does."""
    space = catalog.space(order.space)
    kind = ENGINES.get(order.engine)
    if not isinstance(space, kind.searches):
        fitting = "the engine mse-nas" if isinstance(space, MotifSpace) else "the space mse-nas"
        raise UserError(f"expected a {kind.searches.__name__} for the engine {order.engine}, got {space.name}: "
                        f"take {fitting}")  # fmt: skip
    source = open_dataset(order.dataset, order.data_file)
    small = dict(kind.small) if max(source.shape[1:]) < SMALL_SIDE else {}
    channels, layers = small.pop("channels", space.channels), small.pop("layers", space.layers)
    engine = make(order.engine, small | dict(order.params))
    precision = _precision(order.precision)
    fitness = _fitness(order, kind)
    crew = executor(order.executor, _workers(order, kind), order.device)
    fit, validation = _halves(order)
    stem = Path(order.dataset).stem
    found = f"Found by biorobust search: engine {order.engine}, space {space.name}, data {stem}, seed {order.seed}."
    return engine, Task(
        space=space,
        inputs=Inputs(source.shape, len(source.classes), source.mean, source.std),
        fit=fit,
        validation=validation,
        channels=_channels(space, channels) if order.channels is None else order.channels,
        layers=layers if order.layers is None else order.layers,
        fitness=fitness,
        seed=order.seed,
        device=order.device,
        precision=precision,
        crop=_crop(source),
        flip="flip" in source.augmentation,
        executor=crew,
        name=re.sub(r"[^A-Za-z0-9._-]", "-", f"{space.name}-{order.engine}-{stem}-s{order.seed}"),
        source=found,
    )


def _channels(space: Space | MotifSpace, channels: int) -> int:
    """Return enough channels to leave four to the operations where only a part goes through them."""
    partial = space.partial if isinstance(space, Space) else 1
    return max(channels, 4 * partial) if partial > 1 else channels


def _halves(order: Order) -> tuple[Labelled, Labelled]:
    if order.seed < 0:
        raise UserError(f"expected seed >= 0, got {order.seed}")
    examples = load_examples(order.dataset, "train", data_root=order.data_root, data_file=order.data_file)
    return halves(examples, order.seed)


def _crop(source: Dataset) -> int:
    """Return the usual shift: 4 pixels of 32, in proportion."""
    return max(1, min(source.shape[1:]) // 8) if "crop" in source.augmentation else 0


def _precision(text: str) -> Precision:
    known = get_args(Precision)
    if text not in known:
        raise UserError(unknown("precision", text, list(known)))
    return cast("Precision", text)


def _fitness(order: Order, kind: type[Engine[Any]]) -> Fitness:
    fitness = kind.read_fitness(kind.fitness if order.fitness is None else order.fitness)
    if foreign := fitness.kinds - kind.terms:
        raise UserError(
            f"expected a fitness of {' and '.join(sorted(kind.terms))} for the engine {order.engine}, got "
            f"{' and '.join(sorted(foreign))}: take the engine random or evolution for that"
        )
    if not kind.scores_candidates and fitness != kind.read_fitness(kind.fitness):
        raise UserError(f"expected the fitness {kind.fitness} for the engine {order.engine}, got {order.fitness!r}")
    return fitness


def _workers(order: Order, kind: type[Engine[Any]]) -> int:
    if kind.scores_candidates:
        cores = os.cpu_count() or 1 if order.device == "cpu" else 1
        return cores if order.workers is None else order.workers
    if order.executor != "local" or order.workers not in (None, 1):
        raise UserError(
            f"expected --executor local with one worker for the engine {order.engine}, got {order.executor} with "
            f"{order.workers or 1}: it scores no candidates, it trains one network"
        )
    return 1
