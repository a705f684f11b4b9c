"""Packages of other people, which join through entry points."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import Registry

Install = Callable[..., Path]

ATTACK = '''
"""An attack."""
from dataclasses import dataclass
from typing import ClassVar
import torch
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal

@ATTACKS.register("my-attack")
@dataclass(frozen=True, kw_only=True)
class MyAttack(Attack):
    """One step upwards at every pixel."""

    norms: ClassVar[frozenset[str]] = frozenset({"linf"})
    steps: int = 1

    def perturb(self, model, x, y, threat, rng):
        ones = torch.ones(len(x), dtype=torch.int64)
        return Proposal((x + threat.eps).clamp(0, 1), ones, ones)
'''

RULE = '''
"""A rule."""
from dataclasses import dataclass
from robustbench_bio.rules.base import RULES
from robustbench_bio.rules.feedback import FeedbackRule
from robustbench_bio.rules.options import RuleOptions

@dataclass(frozen=True)
class MyOptions(RuleOptions):
    my_scale: float = 1.0

@RULES.register("my-rule")
class MyRule(FeedbackRule):
    """B = c·W."""

    takes = MyOptions
    suffix = "my"

    def matrix(self, layer):
        return self.options.my_scale * layer.weight
'''

DATASET = '''
"""A data set."""
import numpy as np
from robustbench_bio.datasets.base import DATASETS, Dataset, Examples, count

@DATASETS.register("my-data")
class MyData(Dataset):
    """Dark and light squares."""

    classes = ("dark", "light")
    shape = (1, 8, 8)
    mean = (0.5,)
    std = (0.4,)
    licence = "mine"

    def load(self, split, root, n_examples=None):
        n = count(n_examples, 96)
        y = np.arange(n) % 2
        x = np.random.default_rng(len(split)).integers(0, 60, (n, 1, 8, 8)) + 190 * y[:, None, None, None]
        return Examples(x.astype(np.uint8), y, np.arange(n))
'''

CARD = """
id = "my-model"
title = "Mine"
rule = "my-rule"
net = { name = "mlp", hidden = [8] }

[rule_options]
my_scale = 0.5

[datasets.my-data]
recipe = { epochs = 2, batch_size = 16 }
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return what puts a package into a folder on the path, as pip would: its files and their entry points."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def put(name: str, points: dict[str, str], **modules: str) -> Path:
        """`points`: "group: name" → object reference; `modules`: name → source."""
        (folder / name).mkdir()
        for module, source in {"__init__": "", **modules}.items():
            (folder / name / f"{module}.py").write_text(source)
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = []
        for point, reference in points.items():
            group, _, label = point.partition(": ")
            lines += [f"[{group}]", f"{label} = {reference}"]
        (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
        return folder

    return put


def registry(install: Install, name: str, **modules: str) -> "Registry[object]":
    """A registry with the member "square" of its own package `name`."""
    source = f"from robustbench_bio.core.registry import Registry\nSHAPES = Registry({name + '-shape'!r}, {name!r})\n"
    square = f"from {name} import SHAPES\n@SHAPES.register('square')\nclass Square: ...\n"
    install(name, {}, **{"__init__": source, "square": square, **modules})
    shapes = __import__(name).SHAPES
    assert isinstance(shapes, Registry)
    return shapes


def test_a_plug_in_adds_its_members_after_those_of_the_package(install: Install) -> None:
    shapes = registry(install, "shapes_a")
    circle = "from shapes_a import SHAPES\n@SHAPES.register('circle')\nclass Circle: ...\n"
    install("extra_a", {"robustbench_bio.shapes_a-shapes: round": "extra_a.circle"}, circle=circle)
    assert shapes.names() == ["circle", "square"]


def test_a_plug_in_that_fails_is_told_in_one_line_and_hides_no_one(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    shapes = registry(install, "shapes_b")
    circle = "from shapes_b import SHAPES\n@SHAPES.register('circle')\nclass Circle: ...\n"
    install("broken_b", {"robustbench_bio.shapes_b-shapes: a": "broken_b.oops"}, oops="raise OSError('two\\nlines')")
    install("missing_b", {"robustbench_bio.shapes_b-shapes: b": "missing_b.nowhere"})
    install("extra_b", {"robustbench_bio.shapes_b-shapes: c": "extra_b.circle"}, circle=circle)
    with caplog.at_level(logging.WARNING):
        assert shapes.names() == ["circle", "square"]
        assert "square" in shapes
    lines = sorted(record.getMessage() for record in caplog.records)
    group = "robustbench_bio.shapes_b-shapes"
    assert lines == [
        f"plug-in 'a' of broken_b ({group}) failed to load: OSError: two lines",
        f"plug-in 'b' of missing_b ({group}) failed to load: ModuleNotFoundError: No module named 'missing_b.nowhere'",
    ]
    with pytest.raises(UserError, match=r"unknown shapes_b-shape 'round'.*; plug-in 'a' of broken_b"):
        shapes.get("round")


SQUARE = "from {0} import SHAPES\n@SHAPES.register('square')\nclass Mine: ...\n"


def test_a_name_of_the_package_is_refused_to_a_plug_in(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    shapes = registry(install, "shapes_c")
    point = {"robustbench_bio.shapes_c-shapes: mine": "extra_c.square:Mine"}
    install("extra_c", point, square=SQUARE.format("shapes_c"))
    assert shapes.get("square").__module__ == "shapes_c.square"
    assert "'square' is registered twice, by shapes_c.square.Square and by extra_c.square.Mine" in caplog.text


def test_a_name_of_the_package_is_refused_to_who_is_imported_before_it(install: Install) -> None:
    shapes = registry(install, "shapes_d")
    install("extra_d", {}, square=SQUARE.format("shapes_d"))
    with pytest.raises(ValueError, match=r"by shapes_d\.square\.Square and by extra_d\.square\.Mine"):
        __import__("extra_d.square")
    assert shapes.get("square").__module__ == "shapes_d.square"


@pytest.mark.slow
def test_attack_rule_and_data_set_of_another_package_work_from_the_command_line(
    install: Install, tmp_path: Path
) -> None:
    points = {f"robustbench_bio.{kind}s: mine": f"my_plugins.{kind}" for kind in ("attack", "rule", "dataset")}
    folder = install("my_plugins", points, attack=ATTACK, rule=RULE, dataset=DATASET)
    card, models = tmp_path / "my-model.toml", tmp_path / "models"
    card.write_text(CARD)

    def biorobust(*args: object) -> dict[str, object]:
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        code = "from robustbench_bio.cli import main; main()"
        command = [sys.executable, "-c", code, *map(str, args), "--json"]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    for kind, name in {"attacks": "my-attack", "rules": "my-rule", "datasets": "my-data"}.items():
        assert name in json.dumps(biorobust("list", kind))
    biorobust("train", "--model", card, "--dataset", "my-data", "--out", models)
    asked = ("--model", models / "my-model.toml", "--dataset", "my-data", "--attack", "my-attack")
    answer = biorobust("eval", *asked, "--n-examples", 20, "--eps", "8/255", "--gradient", "both")
    assert answer["clean_accuracy"] > 0.9
    assert {result["attack"] for result in answer["results"]} == {"my-attack"}
    assert {result["gradient"] for result in answer["results"]} <= {"exact", "rule"}
