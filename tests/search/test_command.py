import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.image
import numpy as np
import pytest

from robustbench_bio.cli import app as cli
from robustbench_bio.records.base import read_toml
from robustbench_bio.records.genotype import Genotype
from robustbench_bio.search.base import ENGINES
from robustbench_bio.zoo import catalog

SPACE = """
name = "tiny"
title = "Tiny"
nodes = 1
primitives = ["max_pool_3x3", "skip_connect_u", "dil_conv_3x3_br"]
"""

SMALL = ["--epochs", "1", "--channels", "2", "--layers", "3"]

FAST = {
    "darts": SMALL,
    "eg-nas": [*SMALL, "--set", "warm_start=0", "--set", "population=2", "--workers", "1"],
    "random": [*SMALL, "--set", "candidates=2", "--workers", "1"],
    "evolution": [*SMALL, "--set", "candidates=3", "--set", "population=2", "--set", "sample=2", "--workers", "1"],
}


class Said(NamedTuple):
    status: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Return a caller of `biorobust` in this process, in a working directory that holds tiny.toml."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "tiny.toml").write_text(SPACE)
    monkeypatch.chdir(work)

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["biorobust", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        return Said(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--space", "bionsa"], "unknown space 'bionsa': did you mean bionas"),
        (["--space", "none.toml"], "cannot read none.toml: "),
        (["--engine", "dart"], "unknown engine 'dart': did you mean darts?"),
        (["--dataset", "digitz"], "unknown dataset 'digitz': did you mean digits?"),
        (["--epochs", "0"], "expected epochs >= 1, got 0"),
        (["--epochs", "2", "--set", "epochs=3"], "expected each name once, got 'epochs' twice"),
        (["--set", "alpha_rl=1"], "unknown parameter of darts 'alpha_rl': did you mean alpha_"),
        (["--set", "order=third"], "expected order of darts to be 'first' or 'second', got 'third'"),
        (["--max-minutes", "0"], "expected max-minutes > 0, got 0"),
        (["--max-minutes=-1"], "expected max-minutes > 0, got -1"),
        (["--max-minutes", "nan"], "expected max-minutes > 0, got nan"),
        (["--channels", "0"], "expected channels to be a whole number >= 1, got 0"),
        (["--layers", "2"], "expected layers >= 3, got 2: fewer do not hold both kinds of cell"),
        (["--seed", "-1"], "expected seed >= 0, got -1"),
        (["--precision", "float16"], "unknown precision 'float16': did you mean "),
        (["--device", "tpu"], "expected a device that is here (auto, cpu, cuda, cuda:N), got 'tpu': "),
        (["--fitness", "accuracy"], "expected a fitness of loss for the engine darts, got accuracy: take the engine "),
        (["--fitness", "loss=2"], "expected the fitness loss for the engine darts, got 'loss=2'"),
        (
            ["--engine", "eg-nas", "--fitness", "robust"],
            "expected a fitness of accuracy and loss for the engine eg-nas",
        ),
        (["--engine", "random", "--fitness", "speed"], "unknown term of a fitness 'speed'"),
        (["--engine", "random", "--workers", "0"], "expected workers >= 1, got 0"),
        (["--engine", "random", "--executor", "slurm"], "unknown executor 'slurm'"),
        (["--workers", "2"], "expected --executor local with one worker for the engine darts, got local with 2"),
        (["--executor", "ray"], "expected --executor local with one worker for the engine darts, got ray with 1"),
        (["--space", "eg-nas", "--channels", "6"], "expected channels to be a multiple of 4, got 6"),
        (
            ["--engine", "evolution", "--set", "sample=9"],
            "expected sample <= population <= candidates, got 9, 6 and 20",
        ),
    ],
)
def test_a_mistake_in_a_search_is_one_line(arguments: list[str], expected: str, call: Call, tmp_path: Path) -> None:
    space = [] if "--space" in arguments else ["--space", "bionas"]
    before = sorted(tmp_path.rglob("*"))
    for last in ([], ["--json"]):
        said = call("search", *space, *arguments, *last)
        assert (said.status, said.out) == (2, "")
        assert said.err.startswith(f"error: {expected}")
        assert said.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def test_ray_that_is_missing_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = call("search", "--space", "tiny.toml", "--engine", "random", "--executor", "ray")
    assert said.status == 2
    assert said.err == (
        "error: expected Ray for the executor 'ray', got none: run pip install 'robustbench-bio[ray]', or take local\n"
    )


def test_a_data_set_too_small_to_split_is_one_line(call: Call, tmp_path: Path) -> None:
    packed = tmp_path / "few.npz"
    np.savez(packed, train_images=np.zeros((3, 8, 8), np.uint8), train_labels=np.array([0, 0, 1]))
    said = call("search", "--space", "tiny.toml", "--dataset", "digits", "--data-file", packed)
    assert said.status == 2
    assert said.err.startswith(
        "error: expected two or more images of each class to split for a search, got 1 of class 1"
    )


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz with 60 of the digits."""
    from robustbench_bio.datasets import load_examples

    examples = load_examples("digits", "train", 60)
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, train_images=examples.x[:, 0], train_labels=examples.y)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("engine", FAST)
def test_every_engine_leaves_a_genotype_that_train_takes(engine: str, call: Call, few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    command = ["search", "--space", "tiny.toml", "--engine", engine, "--data-file", few, "--out", folder, *FAST[engine]]
    said = call(*command, "--json")
    assert said.status == 0, said.err
    assert said.out.count("\n") == 1
    document = json.loads(said.out)
    assert document["finished"] is True
    assert (document["space"], document["engine"], document["seed"]) == ("tiny", engine, 0)
    assert document["parameters"]["epochs"] == 1
    genotype = read_toml(Genotype, folder / "genotype.toml")
    assert genotype.model_dump(mode="json") == document["genotype"]
    assert genotype.name == f"tiny-{engine}-digits-s0"
    for name in ("trace", "cells"):
        assert matplotlib.image.imread(folder / f"{name}.png").std() > 0.01
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
    assert len((folder / "trace.csv").read_text().splitlines()) == 1 + len(document["trace"])
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in {".toml", ".csv"}}
    again = call(*command)  # continues at its end
    assert again.status == 0
    hint = f"biorobust train --genotype {folder / 'genotype.toml'} --dataset digits --data-file {few}"
    assert f"{hint} --set net.channels=2 --set net.layers=3\n" in again.out
    assert files == {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in {".toml", ".csv"}}
    sizes = ["--set", "net.channels=2", "--set", "net.layers=3", "--epochs", "1"]
    trained = call("train", "--genotype", folder / "genotype.toml", "--data-file", few, *sizes, "--json")
    assert trained.status == 0, trained.err
    assert json.loads(trained.out)["finished"] is True


def test_time_that_is_up_leaves_cells_and_the_same_command_continues(call: Call, few: Path, tmp_path: Path) -> None:
    command = ["search", "--space", "tiny.toml", "--data-file", few, "--out", tmp_path / "s", *SMALL]
    said = call(*command, "--max-minutes", "0.0000001")
    assert said.status == 0
    assert "the same command continues" in said.out
    assert (tmp_path / "s" / "genotype.toml").exists()
    assert not (tmp_path / "s" / "trace.csv").exists()
    assert json.loads(call(*command, "--json").out)["finished"] is True
    other = call(*command, "--seed", "1")
    assert other.status == 2
    assert "belongs to a search with other settings" in other.err


def test_spaces_and_engines_are_listed_and_shown(call: Call) -> None:
    engines = json.loads(call("list", "engines", "--json").out)["engines"]
    assert sorted(engines) == sorted([*FAST, "mse-nas"]) == ENGINES.names()
    spaces = json.loads(call("list", "spaces", "--json").out)["spaces"]
    assert sorted(spaces) == catalog.space_names()
    assert spaces["bionas"].endswith("[22 primitives]")
    for name in {*engines, *spaces}:
        facts = json.loads(call("show", name, "--json").out)
        assert facts["kind"] == ("engine" if name in engines else "space")
        assert ("space of that name" in facts) == (name in engines and name in spaces)
        assert call("show", name).status == 0
    assert json.loads(call("show", "darts", "--json").out)["defaults"]["epochs"] == 50


@pytest.mark.slow
def test_a_search_that_is_killed_continues_to_the_same_genotype(few: Path, tmp_path: Path) -> None:
    space = tmp_path / "tiny.toml"
    space.write_text(SPACE)
    code = "from robustbench_bio import cli; from robustbench_bio.training import checkpoint; "
    code += "checkpoint.CHECKPOINT_SECONDS = -1.0; cli.main()"

    def command(folder: str) -> list[str]:
        options = ["--data-file", str(few), "--channels", "2", "--layers", "3", "--epochs", "12", "--json"]
        return [sys.executable, "-c", code, "search", "--space", str(space), "--out", str(tmp_path / folder), *options]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = subprocess.run(command("whole"), env=environment, capture_output=True, timeout=300, check=True)  # noqa: S603
    killed = subprocess.Popen(command("killed"), env=environment, stdout=subprocess.DEVNULL)  # noqa: S603
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    while killed.poll() is None and not checkpoint.exists():
        pass
    killed.kill()
    assert killed.wait() < 0, "it ended before it could be killed"
    assert not (tmp_path / "killed" / "genotype.toml").exists()
    continued = subprocess.run(command("killed"), env=environment, capture_output=True, timeout=300, check=True)  # noqa: S603
    one, other = json.loads(whole.stdout), json.loads(continued.stdout)
    assert one["trace"] == other["trace"]
    assert one["genotype"] == other["genotype"]


@pytest.mark.slow
def test_worker_processes_come_to_the_same_genotype(few: Path, tmp_path: Path) -> None:
    space = tmp_path / "tiny.toml"
    space.write_text(SPACE)
    found = []
    for workers in ("1", "2"):
        command = [sys.executable, "-c", "from robustbench_bio.cli import main; main()", "search"]
        command += ["--space", str(space), "--engine", "evolution", "--data-file", str(few), *FAST["evolution"][:-2]]
        command += [
            "--fitness",
            "accuracy=1,robust=0.5",
            "--workers",
            workers,
            "--out",
            str(tmp_path / workers),
            "--json",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=True)  # noqa: S603
        found.append(json.loads(done.stdout))
    assert found[0]["trace"] == found[1]["trace"]
    assert found[0]["genotype"] == found[1]["genotype"]
