import hashlib
import json
import pickle
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

import robustbench_bio as rb
from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets import open_dataset
from robustbench_bio.evaluation.fingerprint import fingerprint, state_sha256
from robustbench_bio.nets import Net
from robustbench_bio.records.card import ModelCard, Recipe, TrainedNet
from robustbench_bio.rules import RuleSet
from robustbench_bio.training import run as runs
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo import loading as zoo

ZOO = catalog.model_ids()
GENOTYPES = catalog.data_folder("models") / "genotypes"


@pytest.fixture
def card(trained_card: Path, tmp_path: Path) -> Path:
    """Return the path of a trained card in a folder of the test's own."""
    for path in trained_card.parent.glob("tiny-fa*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / trained_card.name


def weights(card: Path) -> Path:
    return card.with_name("tiny-fa-digits.safetensors")


def with_weights(card: Path, data: bytes) -> Path:
    """Replace the weights, and their hash in the card, so that only the content can be wrong."""
    old = hashlib.sha256(weights(card).read_bytes()).hexdigest()
    weights(card).write_bytes(data)
    card.write_text(card.read_text().replace(old, hashlib.sha256(data).hexdigest()))
    return card


def edited(card: Path, **changes: Callable[[Tensor], Tensor | None]) -> Path:
    tensors = load(weights(card).read_bytes())
    for name, change in changes.items():
        new = change(tensors.pop(name.replace("__", ".")))
        if new is not None:
            tensors[name.replace("__", ".")] = new.contiguous()
    return with_weights(card, save(tensors))


def refusal(card: Path | str, dataset: str = "digits") -> str:
    with pytest.raises(UserError) as caught:
        rb.load_model(str(card), dataset=dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def images(n: int = 20) -> tuple[Tensor, Tensor]:
    return rb.load_data("digits", "test", n)


def test_a_card_file_gives_a_network_ready_to_use(card: Path) -> None:
    net = rb.load_model(str(card))
    assert isinstance(net, Net)
    assert not any(module.training for module in net.modules())
    x, y = images(200)
    assert (net(x).argmax(1) == y).float().mean() > 0.6
    assert set(net.rules.assignment.values()) == {"fa"}


def test_weights_are_those_of_the_file(card: Path) -> None:
    state = rb.load_model(str(card)).state_dict()
    stored = load(weights(card).read_bytes())
    assert state.keys() == stored.keys()
    assert any(name.startswith("rules.") for name in stored)
    for name, value in stored.items():
        assert value.dtype in (torch.float16, torch.int64)
        assert torch.equal(state[name], value.to(state[name].dtype)), name


def test_a_loaded_network_differentiates_exactly_unless_the_rule_is_asked_for(card: Path) -> None:
    net = rb.load_model(str(card))
    x, y = images(4)

    def loss(logits: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")

    found = torch.autograd.grad(loss(net(x.requires_grad_())).sum(), x)[0]
    double = net.double()
    point = x.detach().double()
    for index in [(0, 0, 3, 4), (1, 0, 2, 2), (3, 0, 5, 5)]:
        step = torch.zeros_like(point)
        step[index] = 1e-6
        slope = (loss(double(point + step)).sum() - loss(double(point - step)).sum()) / 2e-6
        assert found[index].item() == pytest.approx(slope.item(), rel=1e-3, abs=1e-4)
    assert isinstance(net.rules, RuleSet)
    ruled = net.float().rules.input_gradient(net, x.detach(), loss).gradient
    assert not torch.allclose(ruled, found, atol=1e-3)


def test_packed_weights_come_back_as_float16(card: Path) -> None:
    net = rb.load_model(str(card))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    (card.parent / "copy.safetensors").write_bytes(zoo.packed(net))
    zoo.load_weights(net, card.parent / "copy.safetensors")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        net.get_parameter("stages.0.linear.weight").add_(1e-5)
    (card.parent / "copy.safetensors").write_bytes(zoo.packed(net))
    zoo.load_weights(net, card.parent / "copy.safetensors")
    assert torch.allclose(net.get_parameter("stages.0.linear.weight"), before["stages.0.linear.weight"], atol=1e-3)


def test_weights_that_float16_cannot_hold_stay_finite(card: Path) -> None:
    net = rb.load_model(str(card))
    with torch.no_grad():
        net.get_parameter("stages.0.linear.weight")[0, 0] = 1e5
    (card.parent / "copy.safetensors").write_bytes(zoo.packed(net))
    zoo.load_weights(net, card.parent / "copy.safetensors")
    assert net.get_parameter("stages.0.linear.weight")[0, 0] == 1e5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stages__0__linear__weight": lambda w: w.T}, "expected 'stages.0.linear.weight' (32, 64), got (64, 32)"),
        ({"stages__0__linear__bias": lambda b: b[:-1]}, "expected 'stages.0.linear.bias' (32,), got (31,)"),
        ({"stages__0__linear__bias": lambda _: None}, "the file lacks 'stages.0.linear.bias'"),
        ({"stages__0__linear__bias": lambda b: b * float("nan")}, "hold NaN or infinity in 'stages.0.linear.bias'"),
        ({"stages__1__linear__bias": lambda b: b / 0}, "hold NaN or infinity in 'stages.1.linear.bias'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(card: Path, changes: dict[str, Any], expected: str) -> None:
    message = refusal(edited(card, **changes))
    assert message.startswith(f"weights {weights(card)} ")
    assert expected in message


def test_a_tensor_too_many_is_refused(card: Path) -> None:
    tensors = load(weights(card).read_bytes()) | {"backdoor": torch.zeros(1)}
    assert "the file has an extra 'backdoor'" in refusal(with_weights(card, save(tensors)))


def test_a_refused_file_changes_no_weight(card: Path) -> None:
    net = rb.load_model(str(card))
    before = state_sha256(net)
    edited(card, stages__1__linear__bias=lambda b: b[:-1], stages__0__linear__bias=lambda b: b + 1)
    with pytest.raises(UserError):
        zoo.load_weights(net, weights(card))
    assert state_sha256(net) == before


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle2", "pickle4", "pickle5"])
def test_a_pickle_is_refused_and_never_opened(card: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(card.parent)
    bad = card.parent / "bad"
    if kind.startswith("pickle"):
        bad.write_bytes(pickle.dumps(Bomb(), protocol=int(kind[-1])))
    else:
        state = load(weights(card).read_bytes()) | {"bomb": Bomb()}
        torch.save(state, bad, _use_new_zipfile_serialization=kind == "zip")
    message = refusal(with_weights(card, bad.read_bytes()))
    assert message == f"expected safetensors in {weights(card)}, got a pickle, which could run code: convert it first"
    assert not Path("exploded").exists()


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 19280])
def test_a_header_whose_length_looks_like_a_pickle_is_read(card: Path, length: int) -> None:
    tensors = load(weights(card).read_bytes())
    plain = save(tensors)
    size = int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8 : 8 + size]) | {"__metadata__": {"note": ""}}
    spare = length - len(json.dumps(header))
    header["__metadata__"]["note"] = "x" * spare
    if spare < 0:
        pytest.skip(f"the header is longer than {length} already")
    data = length.to_bytes(8, "little") + json.dumps(header).encode() + plain[8 + size :]
    assert data[:2] in {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}
    net = rb.load_model(str(with_weights(card, data)))
    assert torch.equal(net.state_dict()["stages.0.linear.bias"].half(), tensors["stages.0.linear.bias"])


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(card: Path, cut: int) -> None:
    message = refusal(with_weights(card, weights(card).read_bytes()[:cut]))
    assert message.startswith(f"expected safetensors in {weights(card)}, got something else: ")


@pytest.mark.parametrize("data", [b"\xff" * 64, b"{}", b"GIF89a" * 10, (2**62).to_bytes(8, "little") + b"{}"])
def test_another_format_is_refused(card: Path, data: bytes) -> None:
    assert "got something else: " in refusal(with_weights(card, data))


def test_another_file_than_the_card_names_is_refused(card: Path) -> None:
    data = bytearray(weights(card).read_bytes())
    data[-1] ^= 1
    weights(card).write_bytes(bytes(data))
    found = hashlib.sha256(data).hexdigest()
    assert f"have sha256 {found[:12]}…, the card says " in refusal(card)


def test_missing_weights_are_one_line(card: Path) -> None:
    weights(card).unlink()
    assert refusal(card) == f"cannot read {weights(card)}: No such file or directory: check the path"
    weights(card).mkdir()
    assert refusal(card) == f"cannot read {weights(card)}: expected a file, got a folder: check the path"


def test_a_recipe_without_weights_says_how_to_train_it(card: Path) -> None:
    lines = [line for line in card.read_text().splitlines() if not line.startswith("weights")]
    card.write_text("\n".join(lines))
    assert refusal(card) == "model tiny-fa has a recipe for digits but no weights yet: run biorobust train"


def test_a_data_set_that_was_not_trained_for_is_one_line(card: Path) -> None:
    assert refusal(card, "cifar10") == (
        "model tiny-fa has no weights for dataset 'cifar10', only for digits: train it first"
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[datasets.digits", "[datasets.digitz", "unknown dataset 'digitz': did you mean digits?"),
        ('"mlp"', '"mpl"', "unknown network 'mpl': did you mean mlp?"),
        ('name = "mlp"', "", "unknown network '': choose from cells, cnn, mlp"),
        ("hidden =", "hiden =", "unknown parameter of the network mlp 'hiden': did you mean hidden?"),
        ("hidden =", "seed = 1\nhidden =", "card tiny-fa: field 'net.seed': no parameter of a network"),
        ("hidden =", "inputs = 1\nhidden =", "card tiny-fa: field 'net.inputs': no parameter of a network"),
        ("hidden =", 'genotype = "biodart"\nhidden =', "unknown genotype 'biodart': did you mean biodarts"),
        ("hidden =", 'genotype = "biodarts"\nhidden =', "unknown parameter of the network mlp 'genotype'"),
        ("hidden =", 'genotype = "none.toml"\nhidden =', "cannot read none.toml: "),
        ('"fa"', '"fq"', "unknown rule 'fq': did you mean fa"),
        ('"fa"', '""', "unknown rule '': "),
        ("[net]", "[rule_options]\nlocal_rl = 1\n[net]", "card tiny-fa: unknown field of rule_options 'local_rl'"),
        ("[net]", '[rule_options]\ninit = "foo"\n[net]', "card tiny-fa: rule_options: field 'init': "),
        ("[net]", '[rule_options]\nlocal_lr = "1"\n[net]', "card tiny-fa: rule_options: field 'local_lr': "),
        ("[net]", "[rule_options]\npc_steps = true\n[net]", "card tiny-fa: rule_options: field 'pc_steps': "),
        ("seed = 3", "seed = -1", "expected seed to be a whole number >= 0, got -1"),
    ],
)
def test_a_card_that_cannot_be_built_is_one_line(card: Path, old: str, new: str, expected: str) -> None:
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))
    dataset = "digitz" if "digitz" in new else "digits"
    assert refusal(card, dataset).startswith(expected)


def test_whole_numbers_do_for_the_fractions_of_a_rule(card: Path) -> None:
    card.write_text(card.read_text().replace("[net]", "[rule_options]\npc_beta = 1\n[net]"))
    assert rb.load_model(str(card)).rules.option_values == {"pc_beta": 1.0}


def test_unknown_models_are_suggested_by_name() -> None:
    assert refusal("bionas-dart").startswith("unknown model 'bionas-dart': did you mean bionas-darts")
    assert refusal("").startswith("unknown model ''")
    assert refusal("../bionas-darts").startswith("unknown model '../bionas-darts'")
    assert refusal("none.toml").startswith("cannot read none.toml: ")


def test_a_card_of_the_zoo_is_called_after_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "bp-x.toml").write_text('id = "bp-y"\ntitle = "t"\n[net]\nname = "mlp"\n')
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path / "package")
    assert catalog.model_ids() == ["bp-x"]
    assert refusal("bp-x") == "models/bp-x.toml: field 'id': expected the file's name 'bp-x', got 'bp-y'"


def test_an_installed_package_reads_the_data_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("models", "package/_data/models"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"bp-{folder[0]}.toml").write_text("")
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path / "package")
    assert catalog.model_ids() == ["bp-p"]


def untrained(tmp_path: Path, **net: Any) -> Net:
    entry = TrainedNet(recipe=Recipe())
    card = ModelCard(id="x", title="x", net={"name": "cells", "channels": 2, "layers": 3, **net}, datasets={})
    return zoo.network(card, entry, open_dataset("digits"))


def test_cells_that_are_wired_otherwise_are_another_network(tmp_path: Path) -> None:
    text = (GENOTYPES / "biodarts.toml").read_text()
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(text)
    edges = tomllib.loads(text)["normal"]
    line = f'["{edges[0][0]}", {edges[0][1]}],'
    assert text.count(line) >= 1
    other.write_text(text.replace(line, f'["{edges[0][0]}", {1 - edges[0][1]}],', 1))
    first = fingerprint(untrained(tmp_path, genotype=str(one)), torch.zeros(1, 1, 8, 8))
    assert first == fingerprint(untrained(tmp_path, genotype=str(one)), torch.zeros(1, 1, 8, 8))
    one.write_text(other.read_text())
    assert first != fingerprint(untrained(tmp_path, genotype=str(one)), torch.zeros(1, 1, 8, 8))


@pytest.mark.usefixtures("global_rng_untouched")
def test_building_and_loading_leave_the_global_rng_alone(card: Path, tmp_path: Path) -> None:
    rb.load_model(str(card))
    untrained(tmp_path, genotype="biodarts")


@pytest.mark.parametrize("init", ["one-law", "ruled-only", "network"])
def test_initial_weights_follow_the_recipe(init: str, tmp_path: Path) -> None:
    def built(kind: str) -> Net:
        entry = TrainedNet(recipe=Recipe.model_validate({"init": kind}))
        net = {"name": "mlp", "hidden": [5]}
        card = ModelCard(id="x", title="x", rule="stages.0.*=fa", net=net)
        return zoo.network(card, entry, open_dataset("digits"))

    drawn, plain = built(init), built("network")
    redrawn = [
        not torch.equal(
            drawn.get_parameter(f"stages.{i}.linear.weight"), plain.get_parameter(f"stages.{i}.linear.weight")
        )
        for i in (0, 1)
    ]
    assert redrawn == {"one-law": [True, True], "ruled-only": [True, False], "network": [False, False]}[init]


def test_a_network_for_a_file_of_images_can_be_loaded_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 6, 6, 3), dtype=np.uint8)
    labels = np.arange(60) % 3
    packed = tmp_path / "data" / "own.npz"
    packed.parent.mkdir()
    np.savez(packed, train_images=images, train_labels=labels, test_images=images[:9], test_labels=labels[:9])
    entry = TrainedNet(recipe=Recipe(epochs=1, batch_size=20))
    card = ModelCard(id="own", title="t", rule="fa", net={"name": "mlp", "hidden": [4]}, datasets={str(packed): entry})
    run = runs.train_card(card, str(packed), tmp_path / "run")
    assert (tmp_path / "run" / "own-own.safetensors").is_file()
    net = rb.load_model(str(tmp_path / "run" / "own.toml"), dataset=str(packed))
    x, _ = rb.load_data(str(packed))
    assert torch.equal(net(x).argmax(1), run.net(x).argmax(1))
    assert net(x).shape == (9, 3)


def test_a_network_trained_into_the_zoo_leaves_its_other_networks_there(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "weights").mkdir()
    digits = TrainedNet(recipe=Recipe(epochs=1, batch_size=256))
    other = TrainedNet(recipe=Recipe(epochs=9), weights="x.safetensors", weights_sha256="0" * 64)
    card = ModelCard(id="bp-x", title="t", rule="bp", net={"name": "mlp", "hidden": [3]}, datasets={"digits": digits})
    (models / "bp-x.toml").write_text(card.model_copy(update={"datasets": {"cifar10": other}}).to_toml())
    runs.train_card(card, "digits", tmp_path / "run", zoo_folder=models)
    known = ModelCard.from_toml((models / "bp-x.toml").read_text(), "zoo").datasets
    assert known["cifar10"] == other
    assert known["digits"].weights == "bp-x-digits.safetensors"
    assert (models / "weights" / "bp-x-digits.safetensors").is_file()
    with pytest.raises(UserError, match="describes another network, also for other data sets: name this one with --id"):
        runs.train_card(card.model_copy(update={"rule": "fa"}), "digits", tmp_path / "run2", zoo_folder=models)
    assert not (tmp_path / "run2").exists()


def test_the_zoo_has_cards() -> None:
    assert "bionas-darts" in ZOO


@pytest.mark.parametrize("model", ZOO)
def test_every_card_of_the_zoo_describes_a_network(model: str) -> None:
    card = catalog.card(model)
    assert card.id == model
    assert card.title
    assert card.reference
    assert card.datasets, "a card without an entry describes no network"
    for name, entry in card.datasets.items():
        net = zoo.network(card, entry, open_dataset(name))
        x = torch.rand(2, *open_dataset(name).shape, generator=torch.Generator().manual_seed(0))
        assert net.eval()(x).shape == (2, len(open_dataset(name).classes))
        # What a card calls itself is what it is.
        kind = model.partition("-")[0]
        rules = set(net.rules.assignment.values())
        if kind in ("bp", "at"):
            assert rules == set()
        elif kind in ("fa", "dfa", "usf", "brsf", "frsf", "pc", "stdp"):
            assert rules == {kind}
        elif kind in ("bionas", "random", "hebbian"):
            assert rules
        if kind == "at":
            assert entry.recipe.adversary is not None


TRAINED = [(m, d) for m in ZOO for d, entry in catalog.card(m).datasets.items() if entry.weights]


@pytest.mark.parametrize(("model", "dataset"), TRAINED)
def test_every_trained_network_of_the_zoo_loads(model: str, dataset: str) -> None:
    net = rb.load_model(model, dataset=dataset)
    entry = catalog.card(model).datasets[dataset]
    path = catalog.weights_path(model, str(entry.weights))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.weights_sha256
    assert path.name == f"{model}-{dataset}.safetensors"
    assert entry.trained_on
    if dataset == "digits":
        assert entry.val_accuracy is not None
        x, y = rb.load_data("digits")
        with torch.no_grad():
            accuracy = (net(x).argmax(1) == y).float().mean().item()
        assert accuracy > entry.val_accuracy - 0.1
        assert accuracy > 0.5


def test_no_weights_lie_in_the_zoo_without_a_card() -> None:
    named = {catalog.card(m).datasets[d].weights for m, d in TRAINED}
    assert {path.name for path in (catalog.data_folder("models") / "weights").glob("*")} == named
