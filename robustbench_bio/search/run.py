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
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.progress import Progress
from robustbench_bio.core.registry import unknown
from robustbench_bio.datasets import load_examples, open_dataset
from robustbench_bio.nets.base import Inputs
from robustbench_bio.records.base import Precision
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.search.base import ENGINES, Engine, SearchResult, SearchTask, halves, make_engine
from robustbench_bio.search.executors import make_executor
from robustbench_bio.search.fitness import Fitness
from robustbench_bio.zoo import catalog

#: Images smaller than this take an engine's `small` settings.
SMALL_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What a search is asked to be; None leaves the choice to the engine, the space or the machine.

    Attributes:
        space: name of a search space, or path of one that ends in .toml.
        dataset: name of a data set, or path of an .npz.
        params: hyper-parameters of the engine.
        fitness: see `Fitness.read`.
        executor: "local" or "ray".
        workers: processes that score candidates; as many as there are cores by default, one on a GPU.
        precision: "float32" or "bfloat16", of forward and backward passes.
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
class SearchRun:
    """A search and what it left; `folder` holds genotype, trace, plots and checkpoint."""

    request: SearchRequest
    engine: Engine[Any]
    task: SearchTask[Any]
    result: SearchResult
    folder: Path

    @property
    def genotype_file(self) -> Path:
        """Where the genotype lies once there is one."""
        return self.folder / "genotype.toml"


def run_search(
    request: SearchRequest, folder: Path, *, max_minutes: float | None = None, progress: Progress | None = None
) -> SearchRun:
    """Search cells for a data set, from its train split only: one half fits weights, the other judges.

    Writes `genotype.toml`, `trace.csv` and `checkpoint.safetensors` into the folder, and the front of several
    objectives into `front/`; the same call continues where an interrupted one stopped. A search that ran out of
    time leaves the best genotype so far.

    Images smaller than 16 pixels take the settings in `Engine.small` where nothing else is given: the published
    ones would take hours and need larger images. Raises `UserError` for an unknown name, a value out of its range, or a
    data set too small to split.
    """
    started = time.monotonic()
    if max_minutes is not None and not max_minutes > 0:
        raise UserError(f"expected max-minutes > 0, got {max_minutes:g}")
    engine, task = prepare_search(request)
    deadline = math.inf if max_minutes is None else started + 60 * max_minutes
    task = replace(task, checkpoint=folder / "checkpoint.safetensors", deadline=deadline)
    try:
        run = SearchRun(request, engine, task, engine.search(task, progress), folder)
    finally:
        task.executor.close()
    write_result(run.result, folder)
    return run


def write_result(result: SearchResult, folder: Path) -> None:
    """Write the trace of a search, its genotype and those of a front into a folder."""
    write_csv(result.trace, folder / "trace.csv")
    for genotype in result.front:
        write_atomically(folder / "front" / f"{genotype.name}.toml", genotype.to_toml().encode())
    if result.genotype is not None:
        write_atomically(folder / "genotype.toml", result.genotype.to_toml().encode())


def prepare_search(request: SearchRequest) -> tuple[Engine[Any], SearchTask[Any]]:
    """Return engine and task of a request, without checkpoint and deadline; raises `UserError` as `run_search` does."""
    space = catalog.space(request.space)
    kind = ENGINES.get(request.engine)
    if not isinstance(space, kind.searches):
        fitting = "the engine mse-nas" if isinstance(space, MotifSpace) else "the space mse-nas"
        raise UserError(f"expected a {kind.searches.__name__} for the engine {request.engine}, got {space.name}: "
                        f"take {fitting}")  # fmt: skip
    source = open_dataset(request.dataset, request.data_file)
    small = dict(kind.small) if max(source.shape[1:]) < SMALL_SIDE else {}
    channels, layers = small.pop("channels", space.channels), small.pop("layers", space.layers)
    engine = make_engine(request.engine, small | dict(request.params))
    if request.precision not in get_args(Precision):
        raise UserError(unknown("precision", request.precision, get_args(Precision)))
    fitness = _fitness(request, kind)
    executor = make_executor(request.executor, _workers(request, kind), request.device)
    at_least(seed=(request.seed, 0))
    examples = load_examples(request.dataset, "train", data_root=request.data_root, data_file=request.data_file)
    fit, validation = halves(examples, request.seed)
    if (partial := getattr(space, "partial", 1)) > 1:  # enough to leave four to the operations, which see only a part
        channels = max(channels, 4 * partial)
    stem = Path(request.dataset).stem
    choices = f"engine {request.engine}, space {space.name}, data {stem}, seed {request.seed}"
    return engine, SearchTask(
        space=space,
        inputs=Inputs(source.shape, len(source.classes), source.mean, source.std),
        fit=fit,
        validation=validation,
        channels=channels if request.channels is None else request.channels,
        layers=layers if request.layers is None else request.layers,
        fitness=fitness,
        seed=request.seed,
        device=request.device,
        precision=cast("Precision", request.precision),
        crop=max(1, min(source.shape[1:]) // 8) if "crop" in source.augmentation else 0,  # the usual 4 pixels of 32
        flip="flip" in source.augmentation,
        executor=executor,
        name=re.sub(r"[^A-Za-z0-9._-]", "-", f"{space.name}-{request.engine}-{stem}-s{request.seed}"),
        source=f"Found by biorobust search: {choices}.",
    )


def _fitness(request: SearchRequest, kind: type[Engine[Any]]) -> Fitness:
    fitness = kind.read_fitness(kind.fitness if request.fitness is None else request.fitness)
    if foreign := fitness.kinds - kind.terms:
        raise UserError(
            f"expected a fitness of {' and '.join(sorted(kind.terms))} for the engine {request.engine}, got "
            f"{' and '.join(sorted(foreign))}: take the engine random or evolution for that"
        )
    if not kind.scores_candidates and fitness != kind.read_fitness(kind.fitness):
        raise UserError(f"expected the fitness {kind.fitness} for the engine {request.engine}, got {request.fitness!r}")
    return fitness


def _workers(request: SearchRequest, kind: type[Engine[Any]]) -> int:
    if kind.scores_candidates:
        cores = os.cpu_count() or 1 if request.device == "cpu" else 1
        return cores if request.workers is None else request.workers
    if request.executor != "local" or request.workers not in (None, 1):
        raise UserError(
            f"expected --executor local with one worker for the engine {request.engine}, got {request.executor} with "
            f"{request.workers or 1}: it scores no candidates, it trains one network"
        )
    return 1
