import email
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import robustbench_bio

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"


def relative(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that pip builds from the checkout; skipped where the build tools cannot be had."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    if done.returncode and re.search(r"hatchling|No module named pip|connection|network", done.stderr, re.IGNORECASE):
        pytest.skip(f"pip cannot fetch the build tools here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def outside(code: str, unpacked: Path, cwd: Path) -> str:
    """Run code with the unpacked package first on the path, away from the checkout."""
    environment = os.environ | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel: Path, unpacked: Path) -> None:
    assert wheel.name == f"robustbench_bio-{robustbench_bio.__version__}-py3-none-any.whl"
    for folder in ("models", "attacks", "spaces"):
        data = unpacked / "robustbench_bio" / "_data" / folder
        assert relative(data) == relative(ROOT / folder)
        for name in relative(data):
            assert (data / name).read_bytes() == (ROOT / folder / name).read_bytes()
    built = {path.name for path in (unpacked / "robustbench_bio" / "_data").iterdir()}
    assert built == {name for name in ("models", "attacks", "spaces", "leaderboards") if (ROOT / name).is_dir()}
    package = ROOT / "robustbench_bio"
    sources = {name for name in relative(package) if not name.endswith(".pyc")}
    assert {name for name in relative(unpacked / "robustbench_bio") if not name.startswith("_data/")} == sources
    assert "py.typed" in sources
    assert {path.name for path in unpacked.iterdir()} == {
        "robustbench_bio", f"robustbench_bio-{robustbench_bio.__version__}.dist-info",
    }  # fmt: skip


@pytest.mark.slow
def test_the_wheel_says_what_it_is(unpacked: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    about = email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))
    assert about["Name"] == "robustbench-bio"
    assert about["Version"] == robustbench_bio.__version__
    assert about["License-Expression"] == "MIT"
    assert "biorobust = robustbench_bio.cli:main" in (info / "entry_points.txt").read_text()
    core = [line for line in about.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in core if re.match(r"torchattacks|foolbox|pyautoattack", line)]
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.slow
def test_an_unpacked_wheel_finds_its_models_from_anywhere(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "import json, robustbench_bio\n"
        "from robustbench_bio.zoo import catalog\n"
        "print(json.dumps([robustbench_bio.__file__, str(catalog.data_folder('models')), catalog.model_ids(),"
        " catalog.genotype_names(), catalog.preset_names(), catalog.card('bionas-darts').id]))"
    )
    file, folder, models, genotypes, presets, card = json.loads(outside(code, unpacked, tmp_path))
    assert Path(file).is_relative_to(unpacked)
    assert Path(folder) == unpacked / "robustbench_bio" / "_data" / "models"
    assert models == sorted(path.stem for path in MODELS.glob("*.toml"))
    assert genotypes == sorted(path.stem for path in (MODELS / "genotypes").glob("*.toml"))
    assert presets == sorted(path.stem for path in (ROOT / "attacks").glob("*.toml"))
    assert card == "bionas-darts"


@pytest.mark.slow
def test_an_unpacked_wheel_evaluates_its_models(unpacked: Path, tmp_path: Path) -> None:
    if not (MODELS / "weights" / "bionas-darts-digits.safetensors").exists():
        pytest.skip("bionas-darts has no weights yet")
    code = (
        "import sys; sys.argv[1:] = 'eval --model bionas-darts --n-examples 8 --steps 2 --json'.split()\n"
        "from robustbench_bio.cli import main; main()"
    )
    assert json.loads(outside(code, unpacked, tmp_path))["n"] == 8


def test_the_version_is_told_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d*)?", robustbench_bio.__version__)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert robustbench_bio.__version__ in changes or "Unreleased" in changes


def test_what_the_outside_may_rely_on_is_there() -> None:
    for name in robustbench_bio.__all__:
        assert getattr(robustbench_bio, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'evalute'"):
        robustbench_bio.evalute  # noqa: B018
