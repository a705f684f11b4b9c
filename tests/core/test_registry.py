import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_bio.attacks import ATTACKS
from robustbench_bio.attacks.external.base import BACKENDS
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import Registry, unknown
from robustbench_bio.datasets import DATASETS
from robustbench_bio.nets import NETS
from robustbench_bio.records.genotype import OPERATIONS, SUFFIXES
from robustbench_bio.rules import RULES
from robustbench_bio.search.base import ENGINES

Package = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Return a maker of importable packages: module name → source; `SHAPES` is their registry."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, **modules: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(
            f"from robustbench_bio.core.registry import Registry\nSHAPES = Registry('shape', {name!r})\n"
        )
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(f"from {name} import SHAPES\n{source}\n")
        return name

    return make


def shapes(name: str) -> Registry[object]:
    registry = __import__(name).SHAPES
    assert isinstance(registry, Registry)
    return registry


def test_every_module_of_the_folder_adds_its_members(package: Package) -> None:
    name = package(
        "plug_a", square="@SHAPES.register('square')\ndef square(): return 4", flat="SHAPES.register('b')(2)"
    )
    registry = shapes(name)
    assert registry.names() == ["b", "square"]
    assert registry.get("square")() == 4  # type: ignore[operator]
    assert dict(registry.items())["b"] == 2
    assert "b" in registry
    assert "c" not in registry


def test_the_folder_is_read_when_a_name_is_first_needed(package: Package) -> None:
    name = package("plug_b", late="raise SystemError('imported')")
    registry = shapes(name)
    with pytest.raises(SystemError, match="imported"):
        registry.names()


def test_a_broken_plug_in_stays_an_error_and_heals(package: Package, tmp_path: Path) -> None:
    name = package("plug_c", a="SHAPES.register('a')(1)", b="raise SystemError('broken')", c="SHAPES.register('c')(3)")
    registry = shapes(name)
    for _ in range(2):
        with pytest.raises(SystemError, match="broken"):
            registry.get("a")
    (tmp_path / name / "b.py").write_text("")
    sys.path_importer_cache.clear()
    assert registry.names() == ["a", "c"]


def test_a_name_taken_twice_is_an_error(package: Package) -> None:
    name = package("plug_d", a="SHAPES.register('same')(1)", b="SHAPES.register('same')(2)")
    with pytest.raises(ValueError, match="shape 'same' is registered twice"):
        shapes(name).names()


def test_a_near_miss_is_suggested(package: Package) -> None:
    name = package("plug_e", a="SHAPES.register('square')(1); SHAPES.register('circle')(2)")
    with pytest.raises(UserError, match=r"^unknown shape 'sqare': did you mean square\?$"):
        shapes(name).get("sqare")


def test_a_far_miss_lists_what_there_is() -> None:
    assert unknown("shape", "zzz", ["square", "circle"]) == "unknown shape 'zzz': choose from circle, square"
    assert unknown("shape", "zzz", []) == "unknown shape 'zzz': choose from none"
    assert unknown("shape", "a\nb", ["c"]).count("\n") == 0


@pytest.mark.parametrize("registry", [ATTACKS, DATASETS, NETS, RULES], ids=lambda r: r.kind)
def test_every_member_of_the_package_says_what_it_is(registry: Registry[type]) -> None:
    members = dict(registry.items())
    assert members
    for name, cls in members.items():
        assert name == name.lower()
        assert cls.__doc__, name
        assert registry.get(name) is cls


def test_entry_points_are_grouped_by_kind() -> None:
    groups = {registry.group for registry in (ATTACKS, RULES, DATASETS, NETS, ENGINES, BACKENDS)}
    kinds = ("attacks", "rules", "datasets", "networks", "engines", "backends")
    assert groups == {f"robustbench_bio.{kind}" for kind in kinds}
    assert (SUFFIXES.group, OPERATIONS.group) == (RULES.group, NETS.group)
    text = (Path(__file__).parents[2] / "docs" / "adding.md").read_text()
    assert all(f"`{group}`" in text for group in groups)


@pytest.mark.slow
def test_importing_one_member_directly_does_not_hide_the_others() -> None:
    code = (
        "import robustbench_bio.attacks.fgsm\n"
        "from robustbench_bio.attacks import ATTACKS\n"
        "assert {'fgsm', 'pgd', 'tpgd'} <= set(ATTACKS.names())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)  # noqa: S603
