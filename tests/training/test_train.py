import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import robustbench_bio as rb
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import write_csv
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.datasets import Examples, load_examples, open_dataset
from robustbench_bio.nets import Net
from robustbench_bio.records.card import Adversary, ModelCard, Recipe, TrainedNet
from robustbench_bio.report.training import draw_history
from robustbench_bio.training import checkpoint, objective
from robustbench_bio.training import loop as training
from robustbench_bio.training import run as runs
from robustbench_bio.training.augmentation import augment, scaled
from robustbench_bio.training.loop import Training, learning_rate, train
from robustbench_bio.training.steps import Stopwatch, accuracy, split
from robustbench_bio.zoo import loading as zoo

CELLS: dict[str, Any] = {"name": "cells", "genotype": "biodarts", "channels": 2, "layers": 3}
MLP: dict[str, Any] = {"name": "mlp", "hidden": [12]}
CNN: dict[str, Any] = {"name": "cnn", "widths": [4, 6]}
RESNET: dict[str, Any] = {"name": "resnet", "depth": 20, "width": 2}
PGD = Adversary(eps=0.1, steps=2)


@pytest.fixture(scope="module")
def digits() -> Examples:
    return load_examples("digits", "train", 64)


def build(net: dict[str, Any], rule: str = "bp", seed: int = 0, **options: Any) -> Net:
    card = ModelCard(id="x", title="x", rule=rule, rule_options=options, net=net)
    return zoo.network(card, TrainedNet(recipe=Recipe(), seed=seed), open_dataset("digits"))


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"epochs": 2, "batch_size": 12, "val_fraction": 0.2} | changes)


def equal(one: Net, other: Net) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Interrupted(Exception):
    pass


def stop_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, _: int, __: str) -> None:
        if done == step:
            raise Interrupted

    return progress


CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any], dict[str, Any]]] = {
    "sgd": (MLP, "bp", {}, {}),
    "adamw": (MLP, "usf", {"optimiser": "adamw", "lr": 0.01}, {}),
    "no momentum": (MLP, "bp", {"momentum": 0.0}, {}),
    "ema": (CNN, "frsf", {"ema": 0.9, "crop": 1, "flip": True, "cutout": 3}, {}),
    "ema last": (CNN, "fa", {"ema": 0.9, "select": "last", "optimiser": "adamw"}, {}),
    "drop path": (CELLS, "genotype", {"drop_path": 0.3, "label_smoothing": 0.1, "warmup_epochs": 0.5}, {}),
    "auxiliary": (CELLS | {"auxiliary": True}, "usf", {"auxiliary_weight": 0.4, "drop_path": 0.2}, {}),
    "brsf": (CNN, "brsf", {}, {}),
    "brsf in cells": (CELLS, "brsf", {"ema": 0.9}, {}),
    "dfa": (MLP, "dfa", {}, {}),
    "softhebb": (CNN | {"norm": "whiten", "activation": "triangle"}, "softhebb", {"lr": 0.02}, {"local_lr": 0.001}),
    "oja": (CNN, "oja", {}, {"local_lr": 0.001}),
    "pc": (CNN | {"norm": "none"}, "pc", {}, {"pc_steps": 3}),
    "pgd": (CNN, "bp", {"adversary": PGD}, {}),
    "pgd through rules": (MLP, "fa", {"adversary": PGD, "ema": 0.5}, {}),
    "tpgd": (CNN, "bp", {"adversary": Adversary(attack="tpgd", eps=0.1, steps=2)}, {}),
    "random rules": (CNN, "random:1", {"val_fraction": 0.0}, {}),
    "growing": (RESNET, "dfa", {"grow": [4, 6]}, {}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in {"auxiliary", "drop path"} else ()) for case in CASES]
)
def test_an_interrupted_training_continues_to_the_same_weights(
    case: str, digits: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, rule, changes, options = CASES[case]
    wanted = recipe(**changes)

    def run(subject: Net, **arguments: Any) -> Training:
        return train(subject, digits, wanted, seed=5, **arguments)

    whole, again = build(net, rule, **options), build(net, rule, **options)
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    plain = run(whole)
    assert run(again).history == plain.history
    assert equal(whole, again), "the same call gave other weights"
    assert any(not torch.equal(value, start[name]) for name, value in whole.state_dict().items())

    file = tmp_path / "checkpoint"
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    for step in (3, 6):  # in the middle of the first epoch of four or five steps, and of the second
        with pytest.raises(Interrupted):
            run(build(net, rule, **options), checkpoint=file, progress=stop_at(step))
    paused = run(build(net, rule, **options), checkpoint=file, max_minutes=0)
    assert (paused.step, paused.finished) == (6, False)
    resumed = build(net, rule, **options)
    state = run(resumed, checkpoint=file)
    assert state.finished
    assert equal(resumed, whole), "the interruption changed the weights"
    assert state.history == plain.history
    assert (state.best_epoch, state.val_accuracy) == (plain.best_epoch, plain.val_accuracy)

    after = build(net, rule, **options)
    assert run(after, checkpoint=file).step == state.step
    assert equal(after, whole), "a finished training gives its weights again"


def test_a_checkpoint_in_the_layout_of_earlier_versions_is_continued(digits: Examples, tmp_path: Path) -> None:
    """The file is written here without the package's help: its layout must stay readable."""
    wanted = recipe(batch_size=20, grad_clip=None, lr=0.1)
    whole, begun, resumed = (build(MLP) for _ in range(3))
    expected = train(whole, digits, wanted, seed=5)

    fit = split(digits.y, 0.2, 5)[0]
    rows = fit[torch.randperm(len(fit), generator=torch_generator(5, "order", 0))[:20]].numpy()
    y = torch.from_numpy(digits.y[rows])
    optimiser = torch.optim.SGD(begun.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    logits = begun(torch.from_numpy(digits.x[rows]).float() / 255)
    loss = torch.nn.functional.cross_entropy(logits, y)
    loss.backward()
    optimiser.step()
    slots = optimiser.state_dict()["state"]
    tensors = {f"net/{name}": value.clone() for name, value in begun.state_dict().items()}
    tensors |= {f"optimiser/{i}/momentum_buffer": slot["momentum_buffer"].clone() for i, slot in slots.items()}
    identity = {"recipe": wanted.canonical(), "seed": 5, "net": begun.description, "data": digits.sha256()}
    hits = float((logits.argmax(1) == y).sum())
    state = {
        "steps": 4, "step": 1, "history": [], "best_epoch": 0, "val_accuracy": None,
        "running": {"loss": 20 * loss.item(), "correct": hits, "n": 20.0},
    }  # fmt: skip
    metadata = {"identity": json.dumps(identity), "state": json.dumps(state)}
    safetensors.torch.save_file(tensors, tmp_path / "checkpoint", metadata=metadata)

    done: list[int] = []
    found = train(
        resumed, digits, wanted, seed=5, checkpoint=tmp_path / "checkpoint", progress=lambda step, *_: done.append(step)
    )
    assert done == [2, 3, 4], "it began anew"
    assert (found.step, found.best_epoch) == (expected.step, expected.best_epoch)
    for row, other in zip(found.history, expected.history, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("done", "text"),
    [(10, ""), (11, ", 60 min left"), (13, ", 29 min left"), (60, ", 48 s left"), (100, "")],
)
def test_the_time_left_follows_from_the_steps_of_this_call(
    done: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 60.0 if done > 11 else 40.449])
    monkeypatch.setattr("robustbench_bio.training.steps.time.monotonic", lambda: next(clock))
    assert Stopwatch(10).left(done, 100) == text


def test_every_epoch_says_how_long_the_rest_will_take(digits: Examples) -> None:
    lines: list[str] = []
    train(build(MLP), digits, recipe(), progress=lambda _done, _total, line: lines.append(line))
    assert lines[0] == ""
    assert lines[-2].startswith("epoch 1/2: loss ")
    assert lines[-2].endswith(" s left")
    assert lines[-1].startswith("epoch 2/2: loss ")
    assert "left" not in lines[-1]


def test_another_seed_gives_other_weights(digits: Examples) -> None:
    first, other = build(MLP), build(MLP)
    train(first, digits, recipe(), seed=5)
    train(other, digits, recipe(), seed=6)
    assert not equal(first, other)


@pytest.mark.usefixtures("global_rng_untouched")
def test_training_neither_uses_nor_moves_the_global_rng(digits: Examples) -> None:
    wanted = recipe(drop_path=0.5, crop=1, flip=True, cutout=2, epochs=1)
    first, other = build(CELLS, "brsf"), build(CELLS, "brsf")
    with torch.random.fork_rng(devices=[]):
        train(first, digits, wanted)
        torch.manual_seed(99)
        train(other, digits, wanted)
    assert equal(first, other)
    train(first, digits, wanted)


def test_the_test_split_is_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recorded(name: str, part: str = "test", *args: Any, **options: Any) -> Examples:
        asked.append((name, part))
        return load_examples(name, part, *args, **options)

    monkeypatch.setattr(runs, "load_examples", recorded)
    runs.train_card(small_card(), "digits", tmp_path)
    assert asked == [("digits", "train")]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_held_out_part_is_stratified_and_disjoint(fraction: float) -> None:
    y = np.random.default_rng(0).choice(4, 203, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int64)
    fit, held = split(y, fraction, seed=1)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(203))
    assert fit.tolist() == sorted(fit.tolist())
    for label in range(4):
        count = int((y == label).sum())
        assert abs((y[held.numpy()] == label).sum() - fraction * count) <= 0.5
    same, other = split(y, fraction, seed=1)[1], split(y, fraction, seed=2)[1]
    assert torch.equal(held, same)
    assert not torch.equal(held, other)
    assert len(split(y, 0.0, seed=1)[1]) == 0


def test_only_the_held_out_part_selects_and_it_is_not_learnt_from(digits: Examples) -> None:
    fit, held = split(digits.y, 0.2, seed=0)
    x = digits.x.copy()
    x[held.numpy()] = 255 - x[held.numpy()]
    changed = Examples(x, digits.y, digits.ids)
    nets = [build(MLP), build(MLP)]
    histories = [
        train(net, data, recipe(select="last"), seed=0).history
        for net, data in zip(nets, (digits, changed), strict=True)
    ]
    assert equal(*nets), "held-out images changed the weights"
    assert [row["val_accuracy"] for row in histories[0]] != [row["val_accuracy"] for row in histories[1]]
    assert [row["train_loss"] for row in histories[0]] == [row["train_loss"] for row in histories[1]]
    assert len(fit) + len(held) == 64


def test_the_learning_rate_is_torchs_cosine() -> None:
    wanted = recipe(epochs=3, lr=0.2, min_lr=0.01)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=3 * 7, eta_min=0.01)
    for step in range(3 * 7 + 1):
        assert learning_rate(wanted, step, 7) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        schedule.step()


def test_images_grow_in_equal_parts_of_the_steps(digits: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    net, sides = build(RESNET), []
    forward = type(net).forward

    def seen(self: Net, x: Tensor) -> Tensor:
        if self.training:
            sides.append(x.shape[-1])
        return forward(self, x)

    monkeypatch.setattr(type(net), "forward", seen)
    train(net, digits, recipe(epochs=3, grow=[4, 6]))
    assert sides == [4] * 4 + [6] * 4 + [8] * 4


def test_a_scaled_image_is_the_mean_of_what_it_covers() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8) / 8
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(scaled(ramp, 4)[inside], torch.nn.functional.avg_pool2d(ramp, 2)[inside])
    assert torch.equal(scaled(ramp, 8), ramp)
    torch.testing.assert_close(scaled(torch.full((1, 3, 32, 32), 0.3), 24), torch.full((1, 3, 24, 24), 0.3))


def test_the_warm_up_rises_linearly_to_the_full_rate() -> None:
    wanted = recipe(epochs=4, lr=0.3, warmup_epochs=2.0)
    rates = [learning_rate(wanted, step, 5) for step in range(20)]
    assert rates[:10] == pytest.approx([0.3 * (k + 1) / 11 for k in range(10)])
    assert rates[10] == pytest.approx(0.3)
    assert rates[15] == pytest.approx(0.15)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_history_tells_the_rate_that_was_used(digits: Examples) -> None:
    wanted = recipe(lr=0.1)
    state = train(build(MLP), digits, wanted)
    steps = state.steps // 2
    assert [row["lr"] for row in state.history] == [learning_rate(wanted, k * steps - 1, steps) for k in (1, 2)]
    assert state.step == state.steps == 2 * (len(split(digits.y, 0.2, 0)[0]) // 12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 40) -> Tensor:
    return torch.rand(n, 2, 6, 5, generator=generator(9)) * 0.9 + 0.05


@pytest.mark.parametrize(
    "changes", [{"crop": 2}, {"flip": True}, {"cutout": 3}, {"crop": 7, "flip": True, "cutout": 9}, {}]
)
def test_augmented_images_keep_shape_and_range(changes: dict[str, Any]) -> None:
    x = pictures()
    before = x.clone()
    y = augment(x, recipe(**changes), generator())
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.min() >= 0
    assert y.max() <= 1
    assert torch.equal(x, before)
    assert torch.equal(y, augment(x, recipe(**changes), generator()))
    assert torch.equal(x, y) == (not changes)


def test_a_crop_is_a_shifted_image_with_zeros_around() -> None:
    x = pictures()
    y = augment(x, recipe(crop=2), generator())
    shift = torch.randint(5, (2, len(x)), generator=generator())
    expected = torch.zeros_like(x)
    for n, channel, row, column in np.ndindex(*x.shape):
        source = row + int(shift[0, n]) - 2, column + int(shift[1, n]) - 2
        if 0 <= source[0] < x.shape[2] and 0 <= source[1] < x.shape[3]:
            expected[n, channel, row, column] = x[n, channel, source[0], source[1]]
    assert torch.equal(y, expected)
    assert {tuple(s) for s in shift.T.tolist()} > {(0, 0)} or len(shift.unique()) == 5


def test_about_half_of_the_images_are_mirrored() -> None:
    x = pictures(400)
    y = augment(x, recipe(flip=True), generator())
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    unchanged = (y == x).flatten(1).all(1)
    assert (mirrored ^ unchanged).all()
    assert 160 < int(mirrored.sum()) < 240


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_cutout_zeroes_a_square_of_its_side(side: int) -> None:
    x = torch.rand(500, 2, 9, 9, generator=generator(9)) * 0.9 + 0.05
    y = augment(x, recipe(cutout=side), generator())
    hole = (y == 0).all(1)
    assert torch.equal(torch.where(hole[:, None], x, y), x)
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
    for extent in (rows, columns):
        places = extent.nonzero()
        first = torch.full((500,), 99).scatter_reduce(0, places[:, 0], places[:, 1], "amin")
        last = torch.full((500,), -1).scatter_reduce(0, places[:, 0], places[:, 1], "amax")
        assert torch.equal(last - first + 1, extent.sum(1)), "a hole has no gaps"
        inner = (first > 0) & (last < 8)
        assert (extent.sum(1)[inner] == side).all()
        assert (extent.sum(1) <= side).all()
        # Centres are uniform over the image, so holes are cut off at the borders now and then, as published.
        assert set(range(9)) == set(places[:, 1].tolist())


def small_card(**changes: Any) -> ModelCard:
    entry = TrainedNet(recipe=recipe(**({"epochs": 1, "batch_size": 128} | changes)))
    return ModelCard(id="tiny", title="t", rule="fa", net={"name": "mlp", "hidden": [5]}, datasets={"digits": entry})


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_epoch_is_kept(ema: float | None, digits: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.7, 0.7, 0.1])
    snapshots: list[dict[str, Tensor]] = []

    def scripted(net: Net, x: Tensor, y: Tensor) -> float:
        assert len(x) == len(y) == len(split(digits.y, 0.2, 0)[1])
        snapshots.append({name: value.clone() for name, value in net.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(training, "accuracy", scripted)
    net = build(CNN)
    state = train(net, digits, recipe(epochs=4, ema=ema))
    assert (state.best_epoch, state.val_accuracy) == (3, 0.7)
    assert all(torch.equal(value, snapshots[2][name]) for name, value in net.state_dict().items())
    assert not net.training
    assert [row["val_accuracy"] for row in state.history] == [0.2, 0.7, 0.7, 0.1]


def test_the_last_epoch_is_kept_on_request(digits: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.1])
    monkeypatch.setattr(training, "accuracy", lambda *_: next(scores))
    net, short = build(MLP), build(MLP)
    state = train(net, digits, recipe(select="last"))
    assert (state.best_epoch, state.val_accuracy) == (2, 0.1)
    assert train(short, digits, recipe(select="last", val_fraction=0.2), max_minutes=0).history == []
    assert not equal(net, short)


def test_accuracy_counts_hits_in_eval_mode() -> None:
    net = build(CNN).train()
    examples = load_examples("digits", "test", 70)
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    found = accuracy(net, x, y, batch_size=32)
    assert net.training
    hits = [
        int(net.eval()(image[None].float() / 255).argmax()) == int(label) for image, label in zip(x, y, strict=True)
    ]
    assert found == sum(hits) / 70


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"lr": 0.049}, {}),
        ({"epochs": 3}, {}),
        ({}, {"seed": 1}),
        ({}, {"net": {"name": "mlp", "hidden": [13]}}),
        ({}, {"data": 1}),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    changes: dict[str, Any], arguments: dict[str, Any], digits: Examples, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint"
    train(build(MLP), digits, recipe(), checkpoint=file, max_minutes=0)
    before = file.read_bytes()
    data = Examples(digits.x[::-1].copy(), digits.y[::-1].copy(), digits.ids) if "data" in arguments else digits
    net = build(arguments.get("net", MLP))
    with pytest.raises(UserError, match=r"another recipe, seed, network or data: name another --out, or delete it"):
        train(net, data, recipe(**changes), seed=arguments.get("seed", 0), checkpoint=file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda _: b"", lambda _: b"PK\x03\x04" * 9])
def test_a_damaged_checkpoint_is_one_line(damage: Callable[[bytes], bytes], digits: Examples, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    train(build(MLP), digits, recipe(), checkpoint=file, max_minutes=0)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"^cannot continue from .*: delete it to start anew$"):
        train(build(MLP), digits, recipe(), checkpoint=file)


@pytest.mark.parametrize(
    ("net", "changes", "expected"),
    [
        (MLP, {"drop_path": 0.1}, "expected drop_path 0 for a network without drop path, only cells have one"),
        (CELLS, {"auxiliary_weight": 0.4}, "expected a network with an auxiliary head for auxiliary_weight"),
        (MLP, {"grow": [4]}, "expected a network that takes images of side 4 too for grow, got one that does not"),
        (MLP, {"val_fraction": 0.01}, "expected enough examples to train and hold some out, got 64"),
        (MLP, {"val_fraction": 0.99}, "expected enough examples to train and hold some out, got 64"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_line(
    net: dict[str, Any], changes: dict[str, Any], expected: str, digits: Examples, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{expected}"):
        train(build(net), digits, recipe(**changes), checkpoint=tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lr": 1e30, "epochs": 3}, "at step 2: the loss is not finite"),
        ({"lr": 3e38, "weight_decay": 1e3, "epochs": 1}, "in epoch 1: weights are not finite"),
    ],
)
def test_a_training_that_diverges_says_so(changes: dict[str, Any], expected: str, digits: Examples) -> None:
    wanted = recipe(grad_clip=None, batch_size=52, **changes)
    with pytest.raises(UserError, match=f"^training diverged {expected}; try a smaller lr$"):
        train(build(MLP), digits, wanted)


def test_gradients_are_clipped_to_the_norm_of_the_recipe(digits: Examples) -> None:
    net = build(MLP)
    before = torch.nn.utils.parameters_to_vector(net.parameters()).clone()
    wanted = recipe(epochs=1, batch_size=64, grad_clip=0.01, lr=0.5, momentum=0.0, weight_decay=0.0)
    train(net, digits, wanted)
    moved = torch.nn.utils.parameters_to_vector(net.parameters()) - before
    assert moved.norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_one_step_is_that_of_torch(digits: Examples) -> None:
    wanted = recipe(epochs=1, batch_size=64, val_fraction=0.0, label_smoothing=0.1, lr=0.1, grad_clip=None)
    net, reference = build(MLP), build(MLP)
    state = train(net, digits, wanted)
    x, y = torch.from_numpy(digits.x).float() / 255, torch.from_numpy(digits.y)
    logits = reference(x)
    loss = torch.nn.functional.cross_entropy(logits, y, label_smoothing=0.1)
    loss.backward()
    torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4).step()
    for one, other in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert state.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert state.history[0]["train_accuracy"] == (logits.argmax(1) == y).float().mean().item()
    assert state.val_accuracy is None


def test_the_loss_of_trades_is_that_of_the_paper(digits: Examples) -> None:
    wanted = recipe(epochs=1, batch_size=64, val_fraction=0.0, lr=0.1, grad_clip=None, momentum=0.0, weight_decay=0.0)
    trades = wanted.model_copy(update={"adversary": Adversary(attack="tpgd", eps=0.1, steps=6, beta=2.5)})
    net, reference = build(MLP), build(MLP)
    seen: list[Tensor] = []
    hook = net.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach()) if module.training else None
    )
    train(net, digits, trades)
    hook.remove()
    (batch,) = seen
    clean, attacked = batch.chunk(2)
    assert 0.09 < (clean - attacked).abs().max() <= 0.1 + 1e-6
    order = {
        row.numpy().tobytes(): label
        for row, label in zip(torch.from_numpy(digits.x).float() / 255, digits.y, strict=True)
    }
    y = torch.tensor([order[row.numpy().tobytes()] for row in clean])
    logits = reference(torch.cat([clean, attacked]))
    natural, hostile = logits[:64], logits[64:]
    kl = (natural.softmax(1) * (natural.log_softmax(1) - hostile.log_softmax(1))).sum(1)
    (torch.nn.functional.cross_entropy(natural, y) + 2.5 * kl.mean()).backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    for one, other in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_average_of_weights_is_exponential_and_only_looks_on(digits: Examples) -> None:
    averaged, plain = build(MLP), build(MLP)
    expected = {name: value.detach().clone() for name, value in averaged.named_parameters()}

    def follow(*_: Any) -> None:
        for name, value in averaged.named_parameters():
            expected[name] = 0.8 * expected[name] + 0.2 * value.detach()

    state = train(averaged, digits, recipe(ema=0.8, select="last"), progress=follow)
    for name, value in averaged.named_parameters():
        assert torch.allclose(value, expected[name], atol=1e-6)
    losses = [row["train_loss"] for row in train(plain, digits, recipe(select="last")).history]
    assert [row["train_loss"] for row in state.history] == losses
    assert not equal(averaged, plain)


def test_every_step_draws_anew(digits: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, ...]] = []

    def augmented(x: Tensor, wanted: Recipe, source: torch.Generator) -> Tensor:
        drawn.append(("augment", *torch.rand(2, generator=source).tolist()))
        return x

    def streams(seed: int, ids: Tensor, tag: str) -> ExampleRng:
        drawn.append(("adversary", seed, tag))
        drawn.append(("order", *ids.tolist()))
        return ExampleRng(seed, ids, tag)

    monkeypatch.setattr(training, "augment", augmented)
    monkeypatch.setattr(objective, "ExampleRng", streams)
    for seed in (0, 1):
        train(build(MLP), digits, recipe(adversary=PGD), seed=seed)
    steps = 2 * 2 * (len(split(digits.y, 0.2, 0)[0]) // 12)
    assert len(drawn) == len(set(drawn)) == 3 * steps


def test_an_epoch_goes_once_over_the_examples(digits: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def augmented(x: Tensor, wanted: Recipe, source: torch.Generator) -> Tensor:
        seen.append(x)
        return x

    monkeypatch.setattr(training, "augment", augmented)
    train(build(MLP), digits, recipe(epochs=1, batch_size=13))
    assert [len(x) for x in seen] == [13] * 4
    rows = {row.numpy().tobytes() for row in torch.cat(seen)}
    fit = split(digits.y, 0.2, 0)[0]
    assert len(rows) == 52
    assert rows <= {(image / np.float32(255)).tobytes() for image in digits.x[fit.numpy()].astype(np.float32)}


def test_local_rules_keep_the_optimiser_away_from_their_weights(digits: Examples) -> None:
    net = build(CNN, "oja", local_lr=0.0)
    before = {name: value.clone() for name, value in net.named_parameters()}
    train(net, digits, recipe())
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert "stages.0.conv.weight" not in moved
    assert "stages.1.conv.weight" not in moved
    assert "stages.2.linear.weight" in moved


@pytest.mark.slow
def test_an_adversary_makes_a_network_more_robust() -> None:
    examples = load_examples("digits", "train")
    x, y = rb.load_data("digits", "test", 200)
    robust = {}
    for name, adversary in {
        "plain": None,
        "pgd": Adversary(eps=0.1, steps=5),
        "tpgd": Adversary(attack="tpgd", eps=0.1),
    }.items():
        net = build({"name": "cnn", "widths": [8, 16]})
        train(net, examples, recipe(epochs=12, batch_size=64, val_fraction=0.1, adversary=adversary))
        found = rb.evaluate(net, (x, y), attack="pgd", eps=0.1, steps=20)
        assert found.clean_accuracy > 0.85
        robust[name] = found.robust_accuracy
    assert robust["pgd"] > robust["plain"] + 0.1
    assert robust["tpgd"] > robust["plain"] + 0.1


def test_a_run_leaves_history_plots_card_and_weights(tmp_path: Path) -> None:
    run = runs.train_card(small_card(epochs=2), "digits", tmp_path / "run")
    draw_history(run.training.history, run.folder)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "card.toml", "checkpoint.safetensors", "history.csv", "history.png", "history.svg", "tiny.toml",
        "tiny-digits.safetensors",
    }  # fmt: skip
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items()} for row in rows] == run.training.history
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "train_accuracy", "val_accuracy"]
    assert (tmp_path / "run" / "history.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert b"<svg" in (tmp_path / "run" / "history.svg").read_bytes()
    entry = run.card.datasets["digits"]
    assert entry.trained_on == "digits train (1,297 images)"
    assert entry.val_accuracy == run.training.val_accuracy
    loaded = rb.load_model(str(tmp_path / "run" / "tiny.toml"))
    for name, value in loaded.state_dict().items():
        assert torch.allclose(value, run.net.state_dict()[name], atol=1e-3)


def test_an_unfinished_run_has_no_weights_and_continues(tmp_path: Path) -> None:
    paused = runs.train_card(small_card(), "digits", tmp_path, max_minutes=0)
    assert not paused.training.finished
    assert {path.name for path in tmp_path.iterdir()} == {"card.toml", "checkpoint.safetensors"}
    with pytest.raises(UserError, match="belongs to a training with another recipe"):
        runs.train_card(small_card(lr=0.2), "digits", tmp_path)
    assert ModelCard.from_toml((tmp_path / "card.toml").read_text(), "card") == small_card()
    assert runs.train_card(small_card(), "digits", tmp_path).training.finished


@pytest.mark.parametrize("dataset", ["cifar10", "digitz"])
def test_a_run_that_cannot_start_writes_nothing(dataset: str, tmp_path: Path) -> None:
    card = small_card().model_copy(update={"datasets": {"digitz": small_card().datasets["digits"]}})
    with pytest.raises(UserError):
        runs.train_card(card, dataset, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_no_history_draws_nothing(tmp_path: Path) -> None:
    draw_history([], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_history_without_held_out_part_is_drawn(tmp_path: Path) -> None:
    rows = [{"epoch": 1.0, "lr": 0.1, "train_loss": math.pi, "train_accuracy": 0.5}]
    draw_history(rows, tmp_path)
    assert b"<svg" in (tmp_path / "history.svg").read_bytes()
    write_csv(rows, tmp_path / "history.csv")
    assert float((tmp_path / "history.csv").read_text().splitlines()[1].split(",")[2]) == math.pi
