"""What there is, and what each thing is: the facts behind `list` and `show`."""

import dataclasses
import inspect
from typing import Any

from robustbench_bio.attacks import ATTACKS
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress
from robustbench_bio.core.registry import Registry, unknown
from robustbench_bio.datasets import DATASETS
from robustbench_bio.nets import NETS
from robustbench_bio.records.space import Space
from robustbench_bio.rules import RULES
from robustbench_bio.search.base import ENGINES
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.facts import model_facts
from robustbench_bio.zoo.loading import DataSource


def listing(kind: str) -> dict[str, str]:
    """Return name → one line for every member of a kind."""
    match kind:
        case "models":
            return {name: _model_line(name) for name in catalog.model_ids()}
        case "attacks":
            return {name: f"{_purpose(cls)} [{', '.join(sorted(cls.norms))}]" for name, cls in ATTACKS.items()}
        case "rules":
            return {name: _purpose(cls) for name, cls in RULES.items()}
        case "datasets":
            return {
                name: f"{len(cls.classes)} classes, {_times(cls.shape)}; {cls.licence}"
                for name, cls in DATASETS.items()
            }
        case "genotypes" | "presets" | "spaces" | "boards":
            return _file_lines(kind)
        case _:
            members: Registry[Any] = ENGINES if kind == "engines" else NETS
            return {name: _purpose(cls) for name, cls in members.items()}


def describe(name: str, source: DataSource, progress: Progress | None = None) -> dict[str, Any]:
    """Return field → value for one thing, such as a model, attack, rule, data set, genotype, preset or board.

    Numbers are numbers, in the unit that the field or its key names. What a model's are: `zoo.facts.model_facts`.
    `source` tells which of a model's networks; `progress` is called while gradients are measured.

    Raises:
        UserError: nothing is called that.
    """
    if name.endswith(".toml") or name in catalog.model_ids():
        model = model_facts(name, source, progress)
        return model | ({"genotype of that name": _file_facts(name)} if name in catalog.genotype_names() else {})
    if name in ATTACKS:
        return _attack_facts(name)
    if name in RULES:
        return {"kind": "rule", "about": inspect.getdoc(RULES.get(name)) or ""}
    if name in DATASETS:
        data = DATASETS.get(name)
        return {"kind": "dataset", "shape": list(data.shape), "classes": list(data.classes), "licence": data.licence}
    files = [*catalog.genotype_names(), *catalog.preset_names(), *catalog.space_names(), *catalog.board_names()]
    if name in [*files, *ENGINES.names()]:
        return _file_facts(name)
    if name in NETS:
        return {"kind": "network", "about": inspect.getdoc(NETS.get(name)) or ""}
    known = [*catalog.model_ids(), *ATTACKS.names(), *RULES.names(), *DATASETS.names(), *files, *ENGINES.names()]
    raise UserError(unknown("name", name, known))


def _attack_facts(name: str) -> dict[str, Any]:
    cls = ATTACKS.get(name)
    about = inspect.getdoc(cls) or ""
    return {"kind": "attack", "norms": sorted(cls.norms), "defaults": _defaults(cls), "about": about}


def _defaults(cls: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(cls)}


def _model_line(name: str) -> str:
    card = catalog.card(name)
    trained = ", ".join(sorted(d for d, entry in card.datasets.items() if entry.weights))
    return f"{card.title} [{trained or 'no weights'}]"


def _file_lines(kind: str) -> dict[str, str]:
    if kind == "genotypes":
        return {name: catalog.any_genotype(name).source for name in catalog.genotype_names()}
    if kind == "boards":
        boards = [catalog.board(name) for name in catalog.board_names()]
        return {board.name: f"{board.title} [{len(catalog.entry_files(board.name))} entries]" for board in boards}
    if kind == "spaces":
        spaces = [catalog.space(name) for name in catalog.space_names()]
        sizes = [
            f"{len(space.primitives)} primitives" if isinstance(space, Space) else f"{len(space.buildable)} motifs"
            for space in spaces
        ]
        return {space.name: f"{space.title} [{size}]" for space, size in zip(spaces, sizes, strict=True)}
    presets = [catalog.preset(name) for name in catalog.preset_names()]
    return {p.name: f"{p.title} [{', '.join(dict.fromkeys(one.attack for one in p.attacks))}]" for p in presets}


def _file_facts(name: str) -> dict[str, Any]:
    if name in catalog.genotype_names():
        return {**catalog.any_genotype(name).model_dump(mode="json"), "kind": "genotype"}
    if name in catalog.board_names():
        entries = [path.stem for path in catalog.entry_files(name)]
        board = catalog.board(name).model_dump(mode="json", exclude_none=True)
        return {"kind": "board", **board, "entries": ", ".join(entries) or "none yet"}
    if name not in catalog.preset_names():
        return _search_facts(name)
    return {"kind": "preset", **catalog.preset(name).model_dump(mode="json", exclude_defaults=True)}


def _search_facts(name: str) -> dict[str, Any]:
    """Return the facts of an engine, of a search space, or of both where they share a name."""
    engine: dict[str, Any] = {}
    if name in ENGINES:
        cls = ENGINES.get(name)
        engine = {"kind": "engine", "defaults": _defaults(cls), "small images": dict(cls.small), "fitness": cls.fitness}
        engine["about"] = inspect.getdoc(cls) or ""
    if name not in catalog.space_names():
        return engine
    space = {**catalog.space(name).model_dump(mode="json"), "kind": "space"}
    space |= {f"default {size}": space.pop(size) for size in ("channels", "layers")}
    return engine | {"space of that name": space} if engine else space


def _purpose(thing: type) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
