"""The only reader of the data folders that ship with the package."""

from pathlib import Path

from robustbench_bio.errors import UserError
from robustbench_bio.genotype import Genotype
from robustbench_bio.records import AttackPreset, ModelCard, read_toml
from robustbench_bio.registry import unknown
from robustbench_bio.search.space import Space

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Return the folder `models`, `attacks` or `spaces`, in a checkout or in an installed wheel."""
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def model_ids() -> list[str]:
    """Return the ids of the zoo in alphabetical order."""
    return sorted(path.stem for path in data_folder("models").glob("*.toml"))


def genotype_names() -> list[str]:
    """Return the names of the published genotypes in alphabetical order."""
    return sorted(path.stem for path in (data_folder("models") / "genotypes").glob("*.toml"))


def card(model: str) -> ModelCard:
    """Return the card of a zoo model, or of a card file.

    Args:
        model: an id of the zoo, or a path that ends in .toml.

    Raises:
        UserError: no such model, or a card that is not valid.
    """
    if model.endswith(".toml"):
        return read_toml(ModelCard, Path(model))
    if model not in model_ids():
        raise UserError(unknown("model", model, model_ids()))
    found = read_toml(ModelCard, data_folder("models") / f"{model}.toml")
    if found.id != model:
        raise UserError(f"models/{model}.toml: field 'id': expected the file's name {model!r}, got {found.id!r}")
    return found


def weights_path(model: str, file: str) -> Path:
    """Return where the weights of a card lie: beside a card file, or in the zoo's folder `weights`."""
    if model.endswith(".toml"):
        return Path(model).parent / file
    return data_folder("models") / "weights" / file


def genotype(name: str) -> Genotype:
    """Return a published genotype by name, or one from a path that ends in .toml.

    Raises:
        UserError: no such genotype, or one that is not valid.
    """
    if name.endswith(".toml"):
        return Genotype.read(Path(name))
    if name not in genotype_names():
        raise UserError(unknown("genotype", name, genotype_names()))
    return Genotype.read(data_folder("models") / "genotypes" / f"{name}.toml")


def preset_names() -> list[str]:
    """Return the names of the attack presets in alphabetical order."""
    return sorted(path.stem for path in data_folder("attacks").glob("*.toml"))


def preset(name: str) -> AttackPreset:
    """Return an attack preset by name, or one from a path that ends in .toml.

    Raises:
        UserError: no such preset, or one that is not valid.
    """
    if name.endswith(".toml"):
        return read_toml(AttackPreset, Path(name))
    if name not in preset_names():
        raise UserError(unknown("preset", name, preset_names()))
    found = read_toml(AttackPreset, data_folder("attacks") / f"{name}.toml")
    if found.name != name:
        raise UserError(f"attacks/{name}.toml: field 'name': expected the file's name {name!r}, got {found.name!r}")
    return found


def space_names() -> list[str]:
    """Return the names of the search spaces in alphabetical order."""
    return sorted(path.stem for path in data_folder("spaces").glob("*.toml"))


def space(name: str) -> Space:
    """Return a search space by name, or one from a path that ends in .toml.

    Raises:
        UserError: no such space, or one that is not valid.
    """
    if name.endswith(".toml"):
        return read_toml(Space, Path(name))
    if name not in space_names():
        raise UserError(unknown("space", name, space_names()))
    found = read_toml(Space, data_folder("spaces") / f"{name}.toml")
    if found.name != name:
        raise UserError(f"spaces/{name}.toml: field 'name': expected the file's name {name!r}, got {found.name!r}")
    return found
