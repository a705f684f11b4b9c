"""Boards: what is submitted is checked, what is claimed can be proved, and what differs by chance shares a rank."""

import base64
import copy
import csv
import hashlib
import io
import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import result
from scipy.stats import binomtest

from robustbench_bio.cli import app as cli
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.stats import mcnemar
from robustbench_bio.datasets import open_dataset
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.evaluation.migration import first_fingerprint
from robustbench_bio.evaluation.plan import Slice, Subject
from robustbench_bio.leaderboard import remeasure as replay
from robustbench_bio.leaderboard import submission as candidates
from robustbench_bio.leaderboard import verify as verifying
from robustbench_bio.leaderboard.folders import Folders, measurements_of
from robustbench_bio.leaderboard.migrate import migrate
from robustbench_bio.leaderboard.ranking import rank_entries
from robustbench_bio.leaderboard.remeasure import Outcome, differences
from robustbench_bio.leaderboard.sampling import DIAGNOSIS, expected_cost, sample, workloads
from robustbench_bio.leaderboard.submit import entry_text
from robustbench_bio.leaderboard.verify import verify
from robustbench_bio.nets.base import Net
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import ModelCard, Recipe, TrainedNet
from robustbench_bio.records.diagnosis import Check
from robustbench_bio.records.entry import SCHEMA, Entry, Measured, pack, scored
from robustbench_bio.records.genotype import Edge
from robustbench_bio.records.gradient import EXACT, RULE
from robustbench_bio.records.motifs import Motif, MotifGenotype, read_genotype
from robustbench_bio.records.result import EvalSpec, Provenance
from robustbench_bio.records.threat import Threat
from robustbench_bio.report import boards as show
from robustbench_bio.report import site
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import HEADER, DataSource, network, packed

BOARD = """
name = "tiny"
title = "Tiny & quick"
dataset = "digits"
n_examples = 24
preset = "quick"
curve = "eps-curve"

[rank_by]
norm = "linf"
eps = "8/255"
"""
N = 24


class Place(NamedTuple):
    """A board with one entry, the zoo that it belongs to, and the card and weights that were submitted."""

    folders: Folders
    card: Path
    weights: Path

    @property
    def board(self) -> Board:
        return self.folders.board("tiny")

    @property
    def file(self) -> Path:
        return self.folders.entry_path("tiny", "tiny-fa")

    def entry(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["biorobust", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def submitted(trained_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The tiny network of the tests, submitted from the command line."""
    root = tmp_path_factory.mktemp("boards")
    place = Place(Folders(root / "models", root / "leaderboards"), root / "tiny-fa.toml", root / "given.safetensors")
    for folder in place.folders.models, place.folders.leaderboards:
        folder.mkdir()
    (place.folders.leaderboards / "tiny.toml").write_text(BOARD)
    text = trained_card.read_text()
    place.card.write_text("\n".join(line for line in text.splitlines() if not line.startswith("weights")))
    shutil.copy(trained_card.parent / "tiny-fa-digits.safetensors", place.weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIOROBUST_HOME", str(root / "home"))
        assert command(patch, *order(place), "--json") == 0
    return place


def order(place: Place, *more: object, card: Path | None = None) -> list[object]:
    weights = [] if "--weights" in more else ["--weights", place.weights]
    return ["submit", card or place.card, *weights, "--board", "tiny", "--zoo", place.folders.models,
            "--leaderboards", place.folders.leaderboards, *more]  # fmt: skip


@pytest.fixture
def place(submitted: Place, tmp_path: Path) -> Place:
    """A copy that a test may spoil."""
    root = submitted.card.parent
    shutil.copytree(root, tmp_path / "copy")
    own = tmp_path / "copy"
    return Place(Folders(own / "models", own / "leaderboards"), own / "tiny-fa.toml", own / "given.safetensors")


def snapshot(place: Place) -> dict[str, bytes]:
    files = [*place.folders.models.rglob("*"), *place.folders.leaderboards.rglob("*")]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


# What an entry is


def test_a_submission_writes_card_weights_and_an_entry_that_follows_from_its_outcomes(submitted: Place) -> None:
    folders = submitted.folders
    assert sorted(path.name for path in folders.models.rglob("*") if path.is_file()) == [
        "tiny-fa-digits.safetensors", "tiny-fa.toml",
    ]  # fmt: skip
    assert (folders.models / "weights" / "tiny-fa-digits.safetensors").read_bytes() == submitted.weights.read_bytes()
    entry = catalog.entry(submitted.file)
    assert entry.n == N
    assert len(entry.measurements) == len(measurements_of(submitted.board))
    assert entry.finding is not None
    assert entry.gallery is not None
    assert entry.facts["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    assert sum(v for name, v in entry.facts.items() if name.startswith("percent")) == pytest.approx(100)
    stands = [True] * N
    for measured in entry.measurements:  # recomputed without the package's own worst case
        if (measured.spec.threat.norm, round(measured.spec.threat.eps * 255)) == ("linf", 8):
            stands = [a and b for a, b in zip(stands, measured.robust_correct(), strict=True)]
    assert entry.scores.worst_case == sum(stands) / N
    net = folders.network(entry.card, "digits")
    data = Slice.load(DataSource(), N)
    again = evaluate(net, (data.x, data.y), attack="pgd", eps=8 / 255, steps=20, gradient="rule")
    (kept,) = [m for m in entry.measurements if m.spec.gradient == RULE and m.spec.params.get("steps") == 20
               and round(m.spec.threat.eps * 255) == 8]  # fmt: skip
    assert kept.robust_correct() == again.outcomes_record.robust_correct()


def test_the_gallery_is_what_the_network_sees(submitted: Place) -> None:
    entry = catalog.entry(submitted.file)
    assert entry.gallery is not None
    data, net = Slice.load(DataSource(), N), submitted.folders.network(entry.card, "digits")
    import base64

    import numpy as np

    shape = (len(entry.gallery.ids), *entry.gallery.shape)
    x = np.frombuffer(base64.b64decode(entry.gallery.x), np.uint8).reshape(shape)
    delta = np.frombuffer(base64.b64decode(entry.gallery.delta), np.int8).reshape(shape).astype(np.float32)
    assert np.abs(delta).max() <= 127
    shown = torch.from_numpy((x / np.float32(255) + delta / 127 * entry.gallery.eps).clip(0, 1))
    assert net(shown).argmax(1).tolist() == entry.gallery.predictions
    rows = [data.ids.index(i) for i in entry.gallery.ids]
    assert torch.equal((data.x[rows] * 255).round().to(torch.uint8), torch.from_numpy(x.copy()))


def test_a_submission_that_was_measured_is_read_from_the_store(
    place: Place, submitted: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIOROBUST_HOME", str(submitted.card.parent / "home"))

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("robustbench_bio.evaluation.measure.judge", never)
    before = place.entry()
    assert command(monkeypatch, *order(place)) == 0
    assert command(monkeypatch, "submit", "tiny-*", "--board", "tiny", "--zoo", place.folders.models,
                   "--leaderboards", place.folders.leaderboards) == 0  # fmt: skip
    after = place.entry()
    assert {**after, "commit": ""} == {**before, "commit": ""}


# What is refused, before anything is written


def spoiled_card(old: str, new: str) -> Callable[[Place], list[object]]:
    def spoil(place: Place) -> list[object]:
        text = place.card.read_text()
        assert old in text
        place.card.write_text(text.replace(old, new))
        return order(place)

    return spoil


def spoiled_weights(change: Callable[[Path], object]) -> Callable[[Place], list[object]]:
    def spoil(place: Place) -> list[object]:
        change(place.weights)
        return order(place)

    return spoil


def with_nan(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path)


def with_noise(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path)


def pickled(path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 * 10_000 + HEADER + 1_000_000)


def zeroed(path: Path) -> None:
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def genotype_card(name: str) -> Callable[[Place], list[object]]:
    return spoiled_card('name = "mlp"', f'name = "cells"\ngenotype = "{name}"')


BAD: dict[str, tuple[Callable[[Place], list[object]], str]] = {
    "an id that is a path": (spoiled_card('id = "tiny-fa"', 'id = "../../etc/x"'), "field 'id': expected lower-case"),
    "weights that are a path": (
        spoiled_card("[datasets.digits]", f'[datasets.digits]\nweights = "../x"\nweights_sha256 = "{"0" * 64}"'),
        "weights': expected a plain file name without folders"),
    "a genotype that is a path": (genotype_card("../../x.toml"), "field 'net.genotype': expected a name or a file"),
    "a genotype that is not there": (genotype_card("x.toml"), "No such file"),
    "an unknown genotype": (genotype_card("biodart"), "did you mean biodarts"),
    "another data set": (spoiled_card("datasets.digits", "datasets.cifar10"), "a network for digits, got cifar10"),
    "an unknown field": (spoiled_card("title", "titel"), "field 'title': expected a value"),
    "a terminal's escapes": (spoiled_card('title = "', 'title = "\\u001b[2J'), "expected printable text"),
    "a huge number": (spoiled_card("hidden = [", "hidden = [100000000,"), "field 'net.hidden': expected at most"),
    "a number of a thousand digits": (
        spoiled_card("hidden = [", f"hidden = [0x{'f' * 5000},"), "expected integers of at most 63 bits"),
    "many numbers": (spoiled_card("hidden = [", f"hidden = [{'9,' * 70}"), "field 'net.hidden': expected at most"),
    "many parameters": (spoiled_card("hidden = [", f"hidden = [{'4096,' * 30}"), "parameters, got"),
    "a TOML bomb": (spoiled_card('title = "', 'title = "' + "x" * 90_000), "expected at most 20,000 characters"),
    "a TOML bomb within the file's limit": (
        spoiled_card('id = "tiny-fa"', f'id = "tiny-fa"\n{"a." * 9_000}a = 1'), "keys of at most 32 parts"),
    "nested TOML": (spoiled_card('id = "tiny-fa"', f'id = "tiny-fa"\na = {"[" * 5000}{"]" * 5000}'), "expected TOML"),
    "truncated weights": (spoiled_weights(truncate), "expected safetensors"),
    "huge weights": (spoiled_weights(huge), "expected a file of at most"),
    "no weights": (spoiled_weights(Path.unlink), "No such file"),
    "a folder for weights": (spoiled_weights(lambda path: (path.unlink(), path.mkdir())), "got a folder"),
    "NaN": (spoiled_weights(with_nan), "hold NaN or infinity"),
    "a pickle": (spoiled_weights(pickled), "got a pickle"),
    "other weights under an id that is taken": (spoiled_weights(with_noise), "in that one's place with --replace"),
    "another network under an id that is taken": (spoiled_card('rule = "fa"', 'rule = "bp"'), "do not fit|--replace"),
}  # fmt: skip


def of_nothing(place: Place) -> list[object]:
    zeroed(place.weights)
    return order(place, "--replace")


BAD["what has learnt nothing"] = (
    of_nothing,
    "tiny-fa is no classifier: it answers class 0 for all 24 examples: train it",
)


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_submission_is_refused_and_nothing_is_written(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = BAD[name]
    refused(spoil, expected, place, monkeypatch, capsys)


def refused(
    spoil: Callable[[Place], list[object]],
    expected: str,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fail unless what a function spoils is refused in one line that says one of the parts, and nothing is written."""
    arguments, before = spoil(place), snapshot(place)
    monkeypatch.setattr("robustbench_bio.leaderboard.submit.assess", lambda *_: pytest.fail("it was measured"))
    assert command(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert any(part in said for part in expected.split("|")), said
    assert snapshot(place) == before


def test_weights_without_a_card_are_asked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--weights, or train them with --train"):
        candidates.from_file(place.card, place.board, place.folders, candidates.SubmissionOptions(), None)


def test_another_network_takes_the_place_only_if_told(place: Place) -> None:
    with_noise(place.weights)
    options = candidates.SubmissionOptions(weights=place.weights, replace=True)
    found = candidates.from_file(place.card, place.board, place.folders, options, None)
    assert found.card.datasets["digits"].weights_sha256 != place.entry()["weights_sha256"]


def test_networks_for_other_data_sets_survive(place: Place) -> None:
    path = place.folders.models / "tiny-fa.toml"
    card = ModelCard.from_toml(path.read_text(), "card")
    more = {**card.datasets, "mnist": TrainedNet(recipe=Recipe())}
    path.write_text(card.model_copy(update={"datasets": more}).to_toml())
    options = candidates.SubmissionOptions(weights=place.weights)
    assert set(candidates.from_file(place.card, place.board, place.folders, options, None).card.datasets) == {
        "digits",
        "mnist",
    }


def test_own_cells_come_with_the_card_and_may_not_take_a_published_name(place: Place) -> None:
    text = place.card.read_text().replace(
        'name = "mlp"', 'name = "cells"\ngenotype = "mine.toml"\nlayers = 2\nchannels = 2'
    )
    place.card.write_text(re.sub(r"hidden = \[[^]]*\]", "", text))
    cells = catalog.genotype("biodarts").model_copy(update={"name": "mine"})
    (place.card.parent / "mine.toml").write_text(cells.to_toml())
    options = candidates.SubmissionOptions(weights=place.weights)
    with pytest.raises(UserError, match="do not fit the network"):  # so the cells were read and built
        candidates.from_file(place.card, place.board, place.folders, options, None)
    other = catalog.genotype("nasnet").model_copy(update={"name": "biodarts"})
    (place.card.parent / "mine.toml").write_text(other.to_toml())
    with pytest.raises(UserError, match="genotype 'biodarts' is in the zoo already, as another one"):
        candidates.from_file(place.card, place.board, place.folders, options, None)


# Motifs, the other kind of genotype


def learnt(*_: object) -> Check:
    """Stand in for the question whether an untrained network is a classifier."""
    return Check(name="no-classifier", fired=False, implies="inconclusive", detail="")


def circuit(**changes: Any) -> MotifGenotype:
    """Four cells, of which the last three halve the map."""
    cell = Motif(name="mine", nodes=((Edge("conv_3x3_p", 0), Edge("none", 1)), (Edge("skip_connect", 0),
                 Edge("conv_3x3_n", 2))), feedback=(Edge("conv_3x3_p", 0),))  # fmt: skip
    fields = {"name": "mine", "source": "By hand.", "inputs": 2, "cells": (cell,) * 4}
    return MotifGenotype(**fields | changes)


@pytest.fixture(scope="module")
def spiking(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An untrained network of motifs, submitted from the command line with its genotype beside the card."""
    root = tmp_path_factory.mktemp("motifs")
    place = Place(Folders(root / "models", root / "leaderboards"), root / "tiny-fa.toml", root / "given.safetensors")
    for folder in place.folders.models, place.folders.leaderboards:
        folder.mkdir()
    board = BOARD.replace('curve = "eps-curve"', "").replace("n_examples = 24", "n_examples = 6")
    (place.folders.leaderboards / "tiny.toml").write_text(board)
    (root / "mine.toml").write_text(circuit().to_toml())
    params: dict[str, Any] = {"name": "motifs", "genotype": "mine.toml", "channels": 1, "steps": 1}
    entry = TrainedNet(recipe=Recipe(init="network"))
    card = ModelCard(id="tiny-fa", title="Motifs", rule="bp", net=params, datasets={"digits": entry})
    place.card.write_text(card.to_toml())
    place.weights.write_bytes(packed(network(card, entry, open_dataset("digits"), circuit())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustbench_bio.leaderboard.submit.classifies", learnt)
        patch.setenv("BIOROBUST_HOME", str(root / "home"))
        assert command(patch, *order(place), "--json") == 0
    return place


@pytest.fixture
def motifs(spiking: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy that a test may spoil."""
    monkeypatch.setattr("robustbench_bio.leaderboard.entry_checks.classifies", learnt)
    own = tmp_path / "copy"
    shutil.copytree(spiking.card.parent, own)
    return Place(Folders(own / "models", own / "leaderboards"), own / "tiny-fa.toml", own / "given.safetensors")


def test_an_entry_holds_the_motifs_of_its_network_and_is_verified_against_the_zoo(motifs: Place) -> None:
    kept = read_genotype(motifs.folders.models / "genotypes" / "mine.toml")
    entry = catalog.entry(motifs.file)
    assert entry.genotype == kept == circuit()
    assert entry.card.net["genotype"] == "mine"
    assert Entry.from_json(entry_text(entry), "again") == entry
    assert any(measured.spec.gradient.surrogate for measured in entry.measurements)
    assert verify(motifs.board, motifs.folders, fraction=0.01).faults == {}
    written = site.build_site({"tiny": (motifs.board, [entry])}, motifs.card.parent / "site")
    (page,) = [path for path in written if path.name == "tiny-fa.html"]
    assert "Cell 0: mine" in page.read_text()


def test_motifs_that_are_not_the_zoos_do_not_pass(motifs: Place) -> None:
    told = "genotype: not the one that the card names"
    forge(motifs, lambda d: d["genotype"]["cells"][0].update(feedback=[]))
    assert told in faults(motifs)
    forge(motifs, lambda d: d.update(genotype=catalog.genotype("biodarts").model_dump(mode="json")))
    assert told in faults(motifs)
    forge(motifs, lambda d: d.update(genotype=None))
    assert told in faults(motifs)


def test_motifs_named_with_the_order_may_not_take_a_name_that_is_taken(motifs: Place) -> None:
    file = motifs.card.parent / "elsewhere.toml"
    options = candidates.SubmissionOptions(weights=motifs.weights, genotype=file)
    for taken in "biodarts", "mine":
        other = circuit(name=taken, cells=circuit().cells[:3])
        file.write_text(other.to_toml())
        with pytest.raises(UserError, match=f"genotype '{taken}' is in the zoo already, as another one"):
            candidates.from_file(motifs.card, motifs.board, motifs.folders, options, None)
    file.write_text(circuit(name="free").to_toml())
    options = candidates.SubmissionOptions(weights=motifs.weights, genotype=file, replace=True)
    found = candidates.from_file(motifs.card, motifs.board, motifs.folders, options, None)
    assert (found.own_cells, found.cells, found.card.net["genotype"]) == (True, circuit(name="free"), "free")


def spoiled_motifs(old: str, new: str, *, given: bool = False) -> Callable[[Place], list[object]]:
    def spoil(place: Place) -> list[object]:
        text = circuit().to_toml()
        assert old in text
        file = place.card.parent / ("elsewhere.toml" if given else "mine.toml")
        file.write_text(text.replace(old, new, 1))
        return order(place, *(["--genotype", file] if given else []))

    return spoil


def cells_for_motifs(place: Place) -> list[object]:
    (place.card.parent / "mine.toml").write_text(catalog.genotype("biodarts").to_toml())
    return order(place)


EMPTY_CELL = '[[cells]]\nname = "m"\nnodes = [[["none", 0], ["none", 1]]]\n\n'

BAD_MOTIFS: dict[str, tuple[Callable[[Place], list[object]], str]] = {
    "a name that is a path": (spoiled_motifs('name = "mine"', 'name = "../../x"'), "field 'name': "),
    "a name that is a path, by --genotype": (spoiled_motifs('"mine"', '"/x"', given=True), "field 'name': "),
    "a long name": (spoiled_motifs('name = "mine"', f'name = "{"x" * 300}"'), "field 'name': "),
    "a genotype that is a path": (spoiled_card("mine.toml", "../../x.toml"), "expected a name or a file beside"),
    "a genotype that is not there": (spoiled_card("mine.toml", "yours.toml"), "No such file"),
    "an unknown link": (spoiled_motifs("conv_3x3_n", "conv_9x9_n"), "unknown link 'conv_9x9_n'"),
    "a link to nowhere": (spoiled_motifs('"skip_connect", 0', '"skip_connect", 99'), "a state in 0..2, got 99"),
    "a huge state": (spoiled_motifs('"skip_connect", 0', f'"skip_connect", 0x{"f" * 5000}'), "of at most 63 bits"),
    "huge inputs": (spoiled_motifs("inputs = 2", "inputs = 1000000"), "field 'inputs': "),
    "a huge gene": (spoiled_motifs("inputs = 2", "inputs = 2\ngenome = [1000000]"), "field 'genome.0': "),
    "many cells": (
        spoiled_motifs("[[cells]]", 30 * EMPTY_CELL + "[[cells]]"),
        "field 'cells': "),
    "an unknown kind": (spoiled_motifs('kind = "motifs"', 'kind = "cells"'), "field 'kind': "),
    "no kind": (spoiled_motifs('kind = "motifs"', ""), "field 'normal': expected a value, got none"),
    "cells in place of motifs": (cells_for_motifs, "a genotype of motifs for the network motifs, got Genotype"),
    "motifs in place of cells": (
        spoiled_card('name = "motifs"', 'name = "cells"'), "unknown parameter of the network cells 'steps'"),
    "motifs in place of cells, else right": (
        spoiled_card('name = "motifs"\ngenotype = "mine.toml"\nchannels = 1\nsteps = 1',
                     'name = "cells"\ngenotype = "mine.toml"'),
        "expected a genotype of cells for the network cells, got MotifGenotype"),
    "a terminal's escapes": (spoiled_motifs("By hand.", "\\u001b[2J"), "expected printable text"),
    "a huge width": (spoiled_card("channels = 1", "channels = 1000000"), "field 'net.channels': expected at most"),
    "many parameters": (spoiled_card("channels = 1", "channels = 4000"), "parameters, got"),
    "weights of other motifs": (spoiled_motifs('"conv_3x3_n", 2', '"none", 2'), "fit the network|as another one"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD_MOTIFS))
def test_bad_motifs_are_refused_and_nothing_is_written(
    name: str, motifs: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = BAD_MOTIFS[name]
    refused(spoil, expected, motifs, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "motif"}, "field 'genotype.motifs.kind': "),
        ({"kind": None}, "field 'genotype.cells.normal': expected a value"),
        ({"inputs": "2"}, "field 'genotype.motifs.inputs': "),
        ({"inputs": True}, "field 'genotype.motifs.inputs': "),
        ({"layers": 4}, "unknown field 'layers': choose from cells, genome, inputs, kind, name, source"),
        ({"name": "../x"}, "field 'genotype.motifs.name': "),
        ({"genome": [10**400]}, "an integer of more than 63 bits"),
        ({"genome": [256]}, "field 'genotype.motifs.genome.0': "),
        ({"normal": []}, "unknown field 'normal'"),
    ],
)
def test_an_entry_with_faulty_motifs_is_refused_in_one_line(
    change: dict[str, Any], expected: str, motifs: Place
) -> None:
    document = motifs.entry()
    document["genotype"] |= change
    motifs.file.write_text(json.dumps(document))
    with pytest.raises(UserError) as caught:
        catalog.entry(motifs.file)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "file", [path for name in catalog.board_names() for path in catalog.entry_files(name)], ids=str
)
def test_committed_entries_are_read_as_they_were_written(file: Path) -> None:
    entry = catalog.entry(file)
    assert entry_text(entry) == file.read_text("utf-8")
    assert isinstance(entry.genotype, MotifGenotype) == (entry.card.net["name"] == "motifs")


# Entries of the first schema


def first_schema(document: dict[str, Any], network_sha256: str) -> dict[str, Any]:
    """Return an entry's document as the first schema had it."""
    for measured in document["measurements"]:
        spec = measured["spec"]
        assert spec.pop("batch_size") is None
        spec |= spec.pop("threat") | {"votes": spec.pop("draws"), "schema_version": 1}
        del spec["network_sha256"]
        spec["weights_sha256"] = network_sha256
        spec["gradient"] = spec["gradient"].replace("surrogate:triangle", "surrogate:qgate")
    return document | {"schema_version": 1, "rank_by": {"norm": "linf", "eps": "8/255"}}


def test_an_entry_of_the_first_schema_is_brought_up_to_date_without_measuring(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = place.file.read_text()
    place.file.write_text(json.dumps(first_schema(json.loads(today), first_fingerprint(network_of(place)))))
    with pytest.raises(UserError, match="leaderboard migrate"):
        catalog.entry(place.file)
    monkeypatch.setattr("robustbench_bio.evaluation.measure.measure", lambda *_: pytest.fail("it was measured"))
    assert migrate(place.board, place.folders) == [place.file]
    assert place.file.read_text() == today
    assert migrate(place.board, place.folders) == []


def test_an_entry_of_another_network_is_not_brought_up_to_date(place: Place) -> None:
    before = json.dumps(first_schema(json.loads(place.file.read_text()), "5" * 64))
    place.file.write_text(before)
    with pytest.raises(UserError, match="expected a measurement of the zoo's network"):
        migrate(place.board, place.folders)
    assert place.file.read_text() == before


@pytest.mark.parametrize(
    "text",
    ["{", "[" * 100_000, "[]", '{"schema_version": 1}', '{"schema_version": 1, "measurements": [5], "rank_by": {}}'],
    ids=["half", "deep", "list", "empty", "numbers"],
)
def test_what_is_no_entry_of_the_first_schema_is_one_line_and_nothing_is_written(place: Place, text: str) -> None:
    old = json.dumps(first_schema(json.loads(place.file.read_text()), first_fingerprint(network_of(place))))
    place.file.write_text(old)
    zoo_card = place.folders.models / "tiny-zz.toml"
    zoo_card.write_text((place.folders.models / "tiny-fa.toml").read_text().replace('"tiny-fa"', '"tiny-zz"'))
    place.file.with_name("tiny-zz.json").write_text(text)
    with pytest.raises(UserError, match=r"tiny-zz\.json: ") as caught:
        migrate(place.board, place.folders)
    assert "\n" not in str(caught.value)
    assert place.file.read_text() == old, "the entry before the bad one is as it was"


def network_of(place: Place) -> Net:
    return place.folders.network(
        ModelCard.from_toml((place.folders.models / "tiny-fa.toml").read_text(), "x"), "digits"
    )


# Entries that are not what they say


def test_a_bad_entry_file_is_one_line(place: Place) -> None:
    text = place.file.read_text()
    bombs = {
        text.replace(
            f'"schema_version": {SCHEMA}', f'"schema_version": {SCHEMA + 1}'
        ): f"expected {SCHEMA}, got {SCHEMA + 1}: this entry is newer than",
        text.replace(
            f'"schema_version": {SCHEMA}', '"schema_version": 1'
        ): "bring the board up to date with biorobust leaderboard migrate",
        text.replace('"clean_accuracy": 0', '"clean_accuracy": 1', 1): "scores do not follow from the outcomes",
        "[" * 100_000: "recursion",
        '{"a":' * 50_000: "recursion",
        "{}": "field 'board': expected a value",
        " " * (catalog.MAX_ENTRY + 1): "expected a file of at most",
        "\udc80": "Invalid",
    }
    for bomb, expected in bombs.items():
        place.file.write_bytes(bomb.encode(errors="surrogateescape"))
        with pytest.raises(UserError) as caught:
            catalog.entry(place.file)
        assert "\n" not in str(caught.value)
        assert expected in str(caught.value) or expected == "Invalid"
    other = place.file.with_name("other.json")
    other.write_text(text)
    with pytest.raises(UserError, match="expected the file's name 'other', got 'tiny-fa'"):
        catalog.entry(other)


def forge(place: Place, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an entry as a careful forger would: hashes and scores follow."""
    document = place.entry()
    change(document)
    measurements = [Measured.model_validate_json(json.dumps(m)) for m in document["measurements"]]
    threat = Threat.read(document["rank_by"])
    document["scores"] = scored(measurements, threat).model_dump(mode="json")
    document["card_sha256"] = ModelCard.model_validate_json(json.dumps(document["card"])).sha256()
    entry = Entry.model_validate_json(json.dumps(document))
    place.file.write_text(entry_text(entry))


def faults(place: Place, fraction: float = 0.01) -> str:
    found = verify(place.board, place.folders, fraction=fraction)
    assert found.holds == (not found.faults)
    return "; ".join(line for lines in found.faults.values() for line in lines)


def flip(document: dict[str, Any]) -> None:
    """Let an example that falls stand under everything that it fell under."""
    measurements = [Measured.model_validate_json(json.dumps(m)) for m in document["measurements"]]
    clean = measurements[0].clean_correct()
    row = next(i for i in range(N) if clean[i] and not all(m.robust_correct()[i] for m in measurements))
    for raw, measured in zip(document["measurements"], measurements, strict=True):
        raw["robust"] = pack([stands or i == row for i, stands in enumerate(measured.robust_correct())])


def shorter(document: dict[str, Any]) -> None:
    for raw in document["measurements"]:
        measured = Measured.model_validate_json(json.dumps(raw))
        raw["clean"], raw["robust"] = pack(measured.clean_correct()[:10]), pack(measured.robust_correct()[:10])
        raw["spec"]["n"] = 10


HALF = {"norm": "linf", "eps": 0.5}


def for_each_spec(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: [raw["spec"].update({name: value}) for raw in document["measurements"]]


def first_pgd(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(raw for raw in document["measurements"] if raw["spec"]["attack"] == "pgd")
    return found


def without_curve(document: dict[str, Any]) -> None:
    document["measurements"] = [m for m in document["measurements"] if m["spec"]["params"].get("steps") != 20]


def clean_all(document: dict[str, Any]) -> None:
    for raw in document["measurements"]:
        raw["clean"] = pack([True] * N)


def moved_gallery(document: dict[str, Any]) -> None:
    labels = document["gallery"]["labels"]
    document["gallery"]["labels"] = [(label + 1) % 10 for label in labels]


def shorter_gallery(document: dict[str, Any]) -> None:
    kept = document["gallery"]
    for name in ("ids", "labels", "predictions"):
        kept[name] = kept[name][:1]
    for name in ("x", "delta"):
        kept[name] = base64.b64encode(base64.b64decode(kept[name])[:64]).decode()


def answered_gallery(document: dict[str, Any]) -> None:
    document["gallery"]["predictions"] = [(p + 1) % 10 for p in document["gallery"]["predictions"]]


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a wrong n": (shorter, "n: expected 24, got 10"),
    "weights of another file": (lambda d: d.update(weights_sha256="0" * 64), "weights_sha256: expected"),
    "weights of another network": (for_each_spec("network_sha256", "0" * 64), "network_sha256: expected"),
    "other examples": (for_each_spec("data_sha256", "0" * 64), "data_sha256: expected"),
    "another seed": (for_each_spec("seed", 1), "seed: expected 0, got 1"),
    "another precision": (for_each_spec("precision", "bfloat16"), "precision: expected 'float32'"),
    "another version": (for_each_spec("version", "0.0.9"), "measured by version 0.0.9"),
    "another backend": (for_each_spec("backend", "foolbox"), "backend: expected 'native'"),
    "another card": (lambda d: d["card"].update(title="Better"), "card: not the zoo's card"),
    "other parameters": (lambda d: first_pgd(d)["spec"]["params"].update(steps=1), "params: expected"),
    "no curve": (without_curve, "pgd linf 64/255 exact: is missing"),
    "one attack less": (lambda d: d["measurements"].remove(first_pgd(d)), "is missing"),
    "one attack more": (
        lambda d: d["measurements"].append({**first_pgd(d), "spec": first_pgd(d)["spec"] | {"threat": HALF}}),
        "the board does not ask for it"),
    "another radius": (lambda d: d["rank_by"].update(eps=1 / 255), "rank_by: expected"),
    "another board": (lambda d: d.update(board="other"), "board: expected tiny, got other"),
    "better clean answers": (clean_all, "clean answers of examples"),
    "other images": (moved_gallery, "gallery: images or labels"),
    "other answers": (answered_gallery, "gallery: 8 predictions"),
    "other facts": (lambda d: d["facts"].update(parameters=1.0), "facts: not those of the network"),
    "no verdict": (lambda d: d.update(finding=None), "finding: is missing"),
    "no gallery": (lambda d: d.update(gallery=None), "gallery: expected 8 examples"),
    "a shorter gallery": (shorter_gallery, "gallery: expected 8 examples"),
    "a gallery of another shape": (lambda d: d["gallery"].update(shape=[1, 4, 16]), "gallery: expected images of the"),
    "queries of no whole number": (
        lambda d: first_pgd(d).update(queries_mean=first_pgd(d)["queries_mean"] + 0.001), "the mean of whole numbers"),
    "another time": (lambda d: d["provenance"].update(seconds=0.0), "provenance.seconds: expected the sum"),
    "true for one": (lambda d: first_pgd(d)["spec"]["params"].update(restarts=True), "params: expected"),
    "one and a point": (lambda d: first_pgd(d)["spec"]["params"].update(restarts=1.0), "params: expected"),
    "one for true": (lambda d: first_pgd(d)["spec"]["params"].update(early_exit=1), "params: expected"),
    "more examples looked at": (lambda d: d["finding"].update(n=d["finding"]["n"] + 1), "finding: n: expected"),
    "a reason of no check": (lambda d: d["finding"].update(reason="trust me"), "finding: reason: expected the name"),
    "a verdict without its check": (
        lambda d: d["finding"].update(verdict="masked", reason="no check fired", flags=[]), "finding: "),
}  # fmt: skip


@pytest.mark.slow
def test_an_honest_entry_holds(submitted: Place) -> None:
    found = verify(submitted.board, submitted.folders, fraction=1)
    assert found.faults == {}
    assert found.within_tolerance == {}
    assert found.entries == found.diagnoses == 1
    assert found.again == found.outcomes == N * len(catalog.entry(submitted.file).measurements)


@pytest.mark.parametrize("name", list(FORGERIES))
def test_a_forged_entry_does_not_pass(name: str, place: Place) -> None:
    change, expected = FORGERIES[name]
    forge(place, change)
    assert expected in faults(place)


def test_a_flipped_bit_is_found_by_measuring_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "verdict_faults", lambda *_: [])
    assert faults(place, fraction=1) == ""
    forge(place, flip)
    assert "claimed that it is robust, measured again it is fooled" in faults(place, fraction=1)


NONSENSE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a script for a version": for_each_spec("version", "0.1.<script>"),
    "a version of two lines": for_each_spec("version", "0.1.0\n"),
    "words for a commit": lambda d: d.update(commit="of yesterday"),
    "words for a date": lambda d: d["provenance"].update(created="yesterday"),
    "escapes for a device": lambda d: d["provenance"].update(device="\x1b[2J"),
    "a novel for a device": lambda d: d["provenance"].update(device="x" * 501),
    "escapes for a package": lambda d: d["provenance"]["packages"].update({"\x1b[2J": "1"}),
    "a flag of two words": lambda d: d["finding"].update(flags=["trust me"]),
    "escapes in a reason": lambda d: d["finding"].update(reason="\x1b[2J"),
    "escapes in a fact": lambda d: d["facts"].update({"a\x07": 1.0}),
    "escapes in a parameter": lambda d: first_pgd(d)["spec"]["params"].update(x="\x07"),
    "escapes in a card": lambda d: d["card"].update(summary="\x07"),
    "an image twice": lambda d: d["gallery"].update(ids=[d["gallery"]["ids"][0]] * len(d["gallery"]["ids"])),
    "endless time": lambda d: d["provenance"].update(seconds=1e300),
    "endless queries": lambda d: first_pgd(d).update(queries_mean=1e300),
    "a huge radius": lambda d: d["rank_by"].update(norm="l2", eps=1e300),
    "a huge seed": for_each_spec("seed", 2**63),
    "many draws": for_each_spec("draws", 10**9),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_no_entry_can_say_is_refused_when_it_is_read(name: str, place: Place) -> None:
    document = place.entry()
    NONSENSE[name](document)
    document["card_sha256"] = hashlib.sha256(
        json.dumps(document["card"], sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    place.file.write_text(json.dumps(document))
    with pytest.raises(UserError) as caught:
        catalog.entry(place.file)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_an_entry_that_says_one_thing_twice_is_refused(place: Place) -> None:
    text = place.file.read_text()
    place.file.write_text(text.replace('"commit":', '"commit": "", "commit":', 1))
    with pytest.raises(UserError, match="the key 'commit' twice"):
        catalog.entry(place.file)


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path and value of everything in a document that is no table and no list."""
    if isinstance(node, dict | list):
        for key, inside in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(inside, (*path, key))
    else:
        yield path, node


def test_no_whole_number_of_an_entry_may_be_written_as_another_kind(place: Place) -> None:
    """1.0 and true are equal to 1 in Python, and so to a careless comparison."""
    document = place.entry()
    document["measurements"] = document["measurements"][:2]  # the others are like them
    whole = [(path, value) for path, value in leaves(document) if type(value) is int]
    assert len(whole) > 40
    for path, value in whole:
        for other in (float(value), bool(value)):
            spoilt = copy.deepcopy(document)
            node = spoilt
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = other
            try:
                read = Entry.from_json(json.dumps(spoilt), "x")
            except UserError:
                continue
            # A parameter may be of any kind; then its spec has another key than the board's.
            assert "params" in path or "net" in path, path
            keys = [[m.spec.key() for m in one.measurements] for one in (read, catalog.entry(place.file))]
            assert keys[0] != keys[1][:2] or read.card_sha256 != read.card.sha256()


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0, 2])
def test_forged_queries_are_found_by_measuring_again(
    factor: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "verdict_faults", lambda *_: [])
    forge(place, lambda d: first_pgd(d).update(queries_mean=factor * first_pgd(d)["queries_mean"]))
    assert "queries_mean: claimed" in faults(place, fraction=1)


@pytest.mark.parametrize(
    ("rows", "spent", "fault"),
    [([0, 1, 3], 10, ""), ([0, 1, 2, 3], 11, ""), ([0, 1, 3], 20, "all took 60"), ([0, 1, 3], 4, "all took 12"),
     ([0, 1], 4, ""), ([0, 1], 20, "2 of them took 40")],
)  # fmt: skip
def test_queries_of_a_part_are_a_lower_bound_and_those_of_all_are_the_sum(
    rows: list[int], spent: int, fault: str
) -> None:
    clean = [True, True, False, True]
    measured = Measured(spec=result().spec, clean=pack(clean), robust=pack([False] * 4), queries_mean=10.0, seconds=1.0)
    again = [Outcome(clean[row], robust=False, queries=spent) for row in rows]
    assert fault in replay.queries_fault(measured, rows, again)
    assert bool(fault) == bool(replay.queries_fault(measured, rows, again))


@pytest.mark.slow
def test_a_forged_reason_or_flag_is_found_by_probing_again(place: Place) -> None:
    flags = place.entry()["finding"]["flags"]
    forge(place, lambda document: document["finding"].update(flags=[*flags, "zero-gradient"]))
    assert "finding: flags: zero-gradient: diagnosed again it is otherwise" in faults(place, fraction=1)
    name = place.entry()["finding"]["reason"].partition(": ")[0]
    forge(place, lambda document: document["finding"].update(flags=flags, reason=f"{name}: all is well"))
    assert "finding: reason: claimed" in faults(place, fraction=1)


@pytest.mark.slow
def test_a_false_verdict_is_found_by_probing_again(place: Place) -> None:
    claimed = place.entry()["finding"]["verdict"]
    other = "inconclusive" if claimed != "inconclusive" else "masked"
    forge(place, lambda document: document["finding"].update(verdict=other))
    assert f"finding: claimed {other}, diagnosed again it is {claimed}" in faults(place, fraction=1)


def test_weights_and_cards_that_changed_after_the_entry_are_found(place: Place) -> None:
    card = place.folders.models / "tiny-fa.toml"
    weights = place.folders.models / "weights" / "tiny-fa-digits.safetensors"
    kept = weights.read_bytes()
    with_noise(weights)
    assert "weights_sha256: expected" in faults(place)
    weights.write_bytes(kept)
    card.write_text(card.read_text().replace('title = "Tiny"', 'title = "Tinier"'))
    assert "card: not the zoo's card" in faults(place)
    card.unlink()
    assert "with a network for digits in the zoo, got none" in faults(place)


def test_verify_says_what_it_did_and_fails_with_status_one(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--zoo", place.folders.models, "--leaderboards", place.folders.leaderboards]
    assert command(monkeypatch, "leaderboard", "verify", *where, "--fraction", "0.05", "--jobs", "1") == 0
    assert "tiny: 1 entries, 24 of " in capsys.readouterr().out
    forge(place, without_curve)
    assert command(monkeypatch, "leaderboard", "verify", *where, "--jobs", "1", "--json") == 1
    (found,) = json.loads(capsys.readouterr().out)["boards"]
    assert not found["holds"]
    assert "is missing" in found["faults"]["tiny-fa"][0]


@pytest.mark.parametrize("value", ["0", "1.5", "-1", "nan"])
def test_a_fraction_that_is_none_is_refused(value: str, submitted: Place) -> None:
    with pytest.raises(UserError, match=r"expected a fraction in \(0, 1\]"):
        verify(submitted.board, submitted.folders, fraction=float(value))


@pytest.mark.slow
def test_two_processes_find_what_one_finds(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(place, flip)
    where = ["--zoo", place.folders.models, "--leaderboards", place.folders.leaderboards, "--fraction", "1", "--json"]
    found = []
    for jobs in "1", "2":
        assert command(monkeypatch, "leaderboard", "verify", *where, "--jobs", jobs) == 1
        (board,) = json.loads(capsys.readouterr().out)["boards"]
        found.append((sorted(board["faults"]["tiny-fa"]), board["again"]))
    assert found[0] == found[1]


def test_an_outcome_that_rounding_decides_is_told_from_a_lie(submitted: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog.entry(submitted.file)
    subject = Subject("tiny-fa", submitted.folders.network(entry.card, "digits"))
    data = Slice.load(DataSource(), N)
    measured = entry.measurements[0]
    claims = [Outcome(*pair) for pair in zip(measured.clean_correct(), measured.robust_correct(), strict=True)]
    seen: list[tuple[int, int]] = []

    def unsteady(_: object, spec: EvalSpec, __: object, rows: list[int], nudge: int = 0) -> list[Outcome]:
        """Rows 3 to 5 come out otherwise here; row 3 depends on the last digit of its values, row 5 on the draws."""
        seen.append((spec.seed, nudge))
        wrong = Outcome(clean=False, robust=False)
        right = {3: nudge == 5, 4: False, 5: spec.seed == 2}
        return [claims[row] if right.get(row, True) else wrong for row in rows]

    monkeypatch.setattr(replay, "remeasure", unsteady)
    found = {d.row: d.within_tolerance for d in differences(subject, measured, data, range(N)) if claims[d.row].clean}
    assert found == {row: row != 4 for row in (3, 4, 5) if claims[row].clean}
    same, others = range(replay.REPEATS + 1), range(1, replay.REPEATS + 1)
    assert seen == [*((0, nudge) for nudge in same), *((seed, 0) for seed in others)]


def test_an_example_alone_has_the_outcome_that_it_has_among_all(submitted: Place) -> None:
    entry = catalog.entry(submitted.file)
    subject = Subject("tiny-fa", submitted.folders.network(entry.card, "digits"))
    data = Slice.load(DataSource(), N)
    for measured in entry.measurements[:5]:
        assert differences(subject, measured, data, [5, 17]) == []


# The sample


def entries_of(sizes: dict[str, int], n: int) -> dict[Path, Any]:
    """Return stand-ins with so many measurements each."""

    class Stub:
        finding = None

        def __init__(self, places: int) -> None:
            self.n = n
            self.measurements = [self.measured(f"attack-{place}") for place in range(places)]

        @staticmethod
        def measured(attack: str, **params: int) -> Any:
            spec = {"attack": attack, "threat": {"norm": "linf", "eps": 0.1}, "gradient": "exact", "params": params}
            spec["title"] = attack
            return type("M", (), {"spec": type("S", (), spec)})()

    return {Path(f"{name}.json"): Stub(places) for name, places in sizes.items()}


def test_every_outcome_has_the_same_chance_and_every_entry_its_turn() -> None:
    entries = entries_of({f"m{i:02}": 17 for i in range(15)}, 2)
    counts: dict[tuple[Path, int], int] = {}
    draws = 600
    for seed in range(draws):
        tasks = sample(entries, 0.1, random.Random(seed))  # noqa: S311
        assert {task.file for task in tasks} == set(entries)
        assert all(task.place != DIAGNOSIS for task in tasks)
        assert 25 <= len(tasks) <= 26
        for task in tasks:
            counts[task.file, task.place] = counts.get((task.file, task.place), 0) + 1
    shares = [counts.get((file, place), 0) / draws for file in entries for place in range(17)]
    assert sum(shares) / len(shares) == pytest.approx(0.1, abs=0.002)
    assert 0.04 < min(shares) <= max(shares) < 0.16  # five standard errors of 600 draws


def test_a_sample_of_all_is_all_and_a_small_one_still_touches_everyone() -> None:
    entries = entries_of({"a": 5, "b": 3}, 250)
    whole = {(task.file, task.place): task.rows for task in sample(entries, 1, random.Random(0))}  # noqa: S311
    assert len(whole) == 8
    assert all(rows == tuple(range(250)) for rows in whole.values())
    few = sample(entries_of({f"m{i}": 4 for i in range(9)}, 250), 0.01, random.Random(0))  # noqa: S311
    assert len({task.file for task in few}) == 9
    assert all(len(task.rows) <= 100 for task in few)


def test_dear_attacks_are_sampled_less_often_but_none_never() -> None:
    entries = entries_of({f"m{i:02}": 8 for i in range(10)}, 100)
    for entry in entries.values():
        entry.measurements = [entry.measured(f"pgd-{place}", steps=20) for place in range(8)]
        entry.measurements[3] = entry.measured("square", queries=5000)
    dear, outcomes, draws = 0, 0, 400
    touched = set()
    for seed in range(draws):
        tasks = sample(entries, 0.1, random.Random(seed))  # noqa: S311
        outcomes += sum(len(task.rows) for task in tasks)
        squares = [task for task in tasks if task.place == 3]
        dear += sum(len(task.rows) for task in squares)
        touched |= {task.file for task in squares}
    assert outcomes / draws == pytest.approx(0.1 * 8000, rel=0.25)  # an entry without a turn gets a lot of its own
    # √(61 / 5001) of the others' chance c, which take up the rest: 0.1 · 8000 = 7000 c + 1000 c √(61 / 5001).
    assert dear / draws == pytest.approx(12.4, rel=0.2)
    assert touched == set(entries)
    whole = sample(entries, 1, random.Random(0))  # noqa: S311
    assert sum(len(task.rows) for task in whole) == 8000


def test_a_process_gets_dear_tasks_alone_and_the_rest_of_an_entry_together() -> None:
    entries = entries_of({"a": 5, "b": 3}, 10)
    entries[Path("a.json")].measurements[0] = entries[Path("a.json")].measured("square", queries=5000)
    loads = workloads(sample(entries, 1, random.Random(0)), entries)  # noqa: S311
    assert [task.place for task in loads[0]] == [0]
    assert sorted(len(load) for load in loads[1:]) == [3, 4]
    assert all(len({task.file for task in load}) == 1 for load in loads)


# The ranking


def entry_like(name: str, stands: list[bool], *, clean: list[bool] | None = None, title: str = "x") -> Entry:
    """Return an entry of a board with one attack."""
    n, threat = len(stands), Threat("linf", 8 / 255)
    found = result()
    spec = found.spec.model_copy(update={"model": name, "n": n, "network_sha256": f"{abs(hash(name)) % 16:x}" * 64})
    measured = Measured(spec=spec, clean=pack(clean or [True] * n), robust=pack(stands), queries_mean=1, seconds=1)
    card = ModelCard(id=name, title=title, net={"name": "mlp"}, datasets={"digits": TrainedNet(recipe=Recipe())})
    return Entry(
        board="tiny", model=name, card=card, card_sha256=card.sha256(), weights_sha256="0" * 64,
        measurements=[measured], rank_by=Threat("linf", 8 / 255), scores=scored([measured], threat),
        provenance=Provenance(seconds=1, device="", created="", packages={}),
    )  # fmt: skip


def test_the_paired_test_is_the_exact_one() -> None:
    for a in range(12):
        for b in range(12):
            expected = binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
            assert mcnemar(a, b, two_sided=True) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(0, 6, two_sided=True) < 0.05 < mcnemar(0, 5, two_sided=True)


def test_ranks_are_ranges_where_no_test_tells_rows_apart() -> None:
    n = 40
    rows = {
        "first": [True] * 40,
        "close": [True] * 35 + [False] * 5,  # 5 of 5: p = 0.0625 against the first
        "far": [True] * 34 + [False] * 6,  # 6 of 6: p = 0.031 against the first, 1 against close
        "last": [False] * n,
    }
    found = {
        row.entry.model: (row.best, row.worst) for row in rank_entries([entry_like(k, v) for k, v in rows.items()])
    }
    assert found == {"first": (1, 2), "close": (1, 3), "far": (2, 3), "last": (4, 4)}
    assert list(found) == ["first", "close", "far", "last"]


def test_rank_ranges_agree_with_tests_done_by_hand() -> None:
    draw = random.Random(0)  # noqa: S311
    entries = [entry_like(f"m{i}", [draw.random() < i / 8 for _ in range(30)]) for i in range(9)]
    for row in rank_entries(entries):
        above = below = 0
        for other in entries:
            mine = sum(a and not b for a, b in zip(row.entry.robust_correct(), other.robust_correct(), strict=True))
            theirs = sum(b and not a for a, b in zip(row.entry.robust_correct(), other.robust_correct(), strict=True))
            if mine + theirs and binomtest(mine, mine + theirs).pvalue < 0.05:
                above, below = above + (theirs > mine), below + (mine > theirs)
        assert (row.best, row.worst) == (1 + above, len(entries) - below)
        assert 1 <= row.best <= row.worst <= len(entries)


def test_equal_rows_stand_by_clean_accuracy_then_name() -> None:
    half = [True, False] * 4
    entries = [entry_like("b", half), entry_like("a", half), entry_like("c", half, clean=[True] * 7 + [False])]
    assert [row.entry.model for row in rank_entries(entries)] == ["a", "b", "c"]
    assert rank_entries([]) == []


def test_entries_that_cannot_be_paired_are_refused() -> None:
    one, other = entry_like("a", [True] * 4), entry_like("b", [True] * 5)
    spec = other.measurements[0].spec.model_copy(update={"data_sha256": "f" * 64})
    moved = other.model_copy(update={"measurements": [other.measurements[0].model_copy(update={"spec": spec})]})
    with pytest.raises(UserError, match="on the same examples"):
        rank_entries([one, moved])
    with pytest.raises(UserError, match="each model once"):
        rank_entries([one, one])


# The formats

ODD = r'100 % & more_{of} $x^2$ # \alpha ~ "q" <b> | ` * end'


def odd_board() -> tuple[Board, list[Any]]:
    board = Board.from_toml(BOARD, "tiny")
    return board, rank_entries(
        [entry_like("odd", [True] * 24, title=ODD), entry_like("even", [False] * 24, title="=1+1")]
    )


def test_latex_is_escaped() -> None:
    text = show.latex(*odd_board())
    (line,) = [line for line in text.splitlines() if "odd" in line]
    assert line.count(" & ") == 8
    assert r"100 \% \& more\_\{of\} \$x\textasciicircum{}2\$ \# \textbackslash{}alpha \textasciitilde{}" in line
    assert line.endswith(r"\\")
    assert text.startswith(r"\begin{tabular}")


def test_markdown_and_csv_keep_to_their_columns() -> None:
    board, rows = odd_board()
    lines = show.markdown(board, rows).splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert r"\<b\>" in lines[2]
    found = list(csv.DictReader(io.StringIO(show.as_csv(board, rows))))
    assert [row["model"] for row in found] == ["odd", "even"]
    assert found[0]["title"] == ODD
    assert found[1]["title"] == "'=1+1", "no spreadsheet may run a title"
    assert [float(row["worst_case"]) for row in found] == [1.0, 0.0]


@pytest.mark.parametrize("form", show.FORMATS)
def test_a_board_is_shown_in_every_format(
    form: str, submitted: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["leaderboard", "show", "tiny", "--leaderboards", submitted.folders.leaderboards]
    assert command(monkeypatch, *arguments, "--format", form) == 0
    assert "tiny-fa" in capsys.readouterr().out
    assert command(monkeypatch, *arguments, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in document["rows"]] == [[1, 1]]
    assert command(monkeypatch, *arguments, "--format", "html") == 2


def test_the_site_is_built_from_the_command_line(
    submitted: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--leaderboards", submitted.folders.leaderboards, "--out", tmp_path / "site"]
    assert command(monkeypatch, "leaderboard", "build", *where) == 0
    assert (tmp_path / "site" / "index.html").is_file()
    assert "index.html" in capsys.readouterr().out
    assert command(monkeypatch, "leaderboard", "build", *where, "--board", "none") == 2


# The catalog's own boards


@pytest.mark.parametrize("name", catalog.board_names())
def test_every_board_of_the_catalog_can_be_asked_for(name: str) -> None:
    board = catalog.board(name)
    assert board.rank_by in {one.threat for one in measurements_of(board) if one.gradient == EXACT}
    for path in catalog.entry_files(name):
        entry = catalog.entry(path)
        assert (entry.board, entry.rank_by) == (board.name, board.rank_by)
        assert entry.card == catalog.card(entry.model).model_copy(
            update={"datasets": {board.dataset: entry.card.datasets[board.dataset]}}
        )
    rank_entries([catalog.entry(path) for path in catalog.entry_files(name)])


@pytest.mark.parametrize(
    ("attack", "params", "passes"),
    [
        ("fgsm", {}, 1),
        ("pgd", {"steps": 40, "restarts": 2}, 1 + 2 * 3 * 40),
        ("square", {"queries": 5000, "restarts": 3}, 1 + 3 * 5000),
        ("coordinate", {"steps": 30, "queries": 2600, "restarts": 16, "heat": 0.05}, 1 + 16 * (3 * 30 + 2600)),
        ("one-pixel", {"population": 10, "generations": 9}, 1 + 90),
        ("autoattack", {"steps": 100, "queries": 5000}, 1 + 28 * 3 * 100 + 5000),
    ],
)
def test_what_an_outcome_costs_follows_from_what_is_asked(attack: str, params: dict[str, Any], passes: int) -> None:
    asked = EvalSpec.model_construct(attack=attack, params=params)
    assert expected_cost(asked) == passes
