"""Every benchmark starts, runs in its smallest size, says what it skips, and stops in one line."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")

#: The one that takes least time.
CHEAPEST = "rdm"


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a benchmark as its own process would find it, under a name that hides nothing of the standard library."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    return loaded("common", monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_how_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = loaded(name, monkeypatch)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert not stopped.value.code
    assert "--quick" in capsys.readouterr().out
    assert "common.command_line(main)" in (FOLDER / f"{name}.py").read_text(), "Ctrl-C would end in a traceback"


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == CHEAPEST else pytest.mark.slow) for n in NAMES])
def test_a_quick_run_ends_well_and_says_how_far_it_is(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert " of " in done.stderr


def test_ctrl_c_ends_in_one_line(common: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        common.command_line(interrupted)
    assert stopped.value.code == 130
    assert capsys.readouterr() == ("", "stopped before the end by Ctrl-C\n")


def test_the_time_left_is_told_from_the_second_step_on(common: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(common.steps(["a", "b", "c"])) == ["a", "b", "c"]
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "1 of 3: a"
    assert others == ["2 of 3: b, about 0 s left", "3 of 3: c, about 0 s left"]


def test_without_cifar10_a_network_of_the_zoo_is_measured_and_that_is_said(
    common: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "DEFAULT_DATA", tmp_path)
    parser = common.parser("peers")
    common.add_network(parser)
    options = parser.parse_args(["--threads", "1"])
    common.find_network(options)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"skipped CIFAR-10: no {tmp_path}")
    net, x, y = common.network(options, 16)
    assert not net.training
    assert x.shape == (16, 1, 8, 8)
    assert (net(x).argmax(1) == y).float().mean() > 0.5


@pytest.mark.parametrize("option", ["--cifar10", "--reference"])
def test_a_file_that_was_named_must_be_there(
    option: str, common: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = common.parser("peers")
    common.add_network(parser)
    with pytest.raises(SystemExit) as stopped:
        common.find_network(parser.parse_args([option, str(tmp_path / "none")]))
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
