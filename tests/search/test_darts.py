import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets import load_examples
from robustbench_bio.nets.base import Inputs
from robustbench_bio.records.space import Space
from robustbench_bio.search.base import ENGINES, SearchResult, SearchTask, halves, make_engine
from robustbench_bio.search.engines.darts import Darts, _DartsSearch, unrolled_gradient
from robustbench_bio.search.fitness import Fitness
from robustbench_bio.search.supernet.learning import entropy, frozen
from robustbench_bio.training import checkpoint

INPUTS = Inputs((1, 8, 8), 10, (0.3,), (0.4,))


def space(*primitives: str) -> Space:
    return Space(name="tiny", title="Tiny", primitives=list(primitives), nodes=1)


RULED = space("none", "skip_connect_u", "sep_conv_3x3_br", "dil_conv_3x3_fa")
PLAIN = space("none", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
HEBBIAN = space("skip_connect", "dil_conv_3x3_oja", "dil_conv_3x3_u")


def task(chosen: Space = RULED, **changes: Any) -> SearchTask:
    fit, validation = halves(load_examples("digits", "train", 60), 0)
    settings: dict[str, Any] = {"channels": 2, "layers": 3, "fitness": Fitness.read("loss"), "crop": 1}
    settings |= {"fit": fit, "validation": validation}
    return SearchTask(space=chosen, inputs=INPUTS, **(settings | changes))


def engine(**changes: Any) -> Darts:
    return Darts(**({"epochs": 2, "batch_size": 8, "alpha_lr": 0.01} | changes))


class Toy:
    """Two edges of three smooth operations each, and a linear classifier, in float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.weights = [(0.5 * draw(6, 6)).requires_grad_() for _ in range(6)] + [(0.5 * draw(4, 6)).requires_grad_()]
        self.alphas = [draw(3).requires_grad_(), draw(3).requires_grad_()]
        self.momenta: list[Tensor | None] = [0.1 * draw(*weight.shape) for weight in self.weights]
        self.fit = (draw(16, 6), torch.randint(4, (16,), generator=generator))
        self.held_out = (draw(16, 6), torch.randint(4, (16,), generator=generator))

    def loss(self, batch: tuple[Tensor, Tensor], weights: Sequence[Tensor], alphas: Sequence[Tensor]) -> Tensor:
        x, y = batch
        operations: list[Callable[[Tensor], Tensor]] = [torch.tanh, torch.sigmoid, torch.sin]
        for edge, alpha in enumerate(alphas):
            own = weights[3 * edge : 3 * edge + 3]
            terms = zip(alpha.softmax(0), operations, own, strict=True)
            x = sum((w * op(x @ m.T) for w, op, m in terms), torch.zeros(()))
        return F.cross_entropy(x @ weights[6].T, y)

    def gradient(self, batch: tuple[Tensor, Tensor]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        return lambda wanted: list(torch.autograd.grad(self.loss(batch, self.weights, self.alphas), list(wanted)))


def test_second_order_equals_double_backward_on_a_smooth_supernet() -> None:
    toy, xi, momentum, decay = Toy(), 0.025, 0.9, 3e-4
    steps = torch.autograd.grad(toy.loss(toy.fit, toy.weights, toy.alphas), toy.weights, create_graph=True)
    ahead = [w - xi * (momentum * m + g + decay * w) for w, m, g in zip(toy.weights, toy.momenta, steps, strict=True)]
    exact = torch.cat(torch.autograd.grad(toy.loss(toy.held_out, ahead, toy.alphas), toy.alphas, retain_graph=True))
    fixed = [w.detach() for w in ahead]
    direct = torch.cat(torch.autograd.grad(toy.loss(toy.held_out, fixed, toy.alphas), toy.alphas))
    first = torch.cat(toy.gradient(toy.held_out)(toy.alphas))
    before = [w.detach().clone() for w in toy.weights]

    found = torch.cat(
        unrolled_gradient(
            toy.gradient(toy.fit), toy.gradient(toy.held_out), toy.gradient(toy.fit), toy.weights, toy.alphas,
            toy.momenta, xi=xi, momentum=momentum, weight_decay=decay,
        )
    )  # fmt: skip

    def error(one: Tensor, other: Tensor) -> float:
        return ((one - other).norm() / other.norm()).item()

    assert error(found, exact) < 1e-4
    assert error(found - direct, exact - direct) < 1e-3
    assert error(first, exact) > 1e-2
    assert all(torch.equal(w, b) for w, b in zip(toy.weights, before, strict=True))


def test_a_look_ahead_without_gradient_is_first_order() -> None:
    toy = Toy()
    first = torch.cat(toy.gradient(toy.held_out)(toy.alphas))
    nothing: list[Tensor | None] = [None] * len(toy.weights)
    found = unrolled_gradient(
        toy.gradient(toy.fit), toy.gradient(toy.held_out), toy.gradient(toy.fit), toy.weights, toy.alphas,
        nothing, xi=0.0, momentum=0.9, weight_decay=0.0,
    )  # fmt: skip
    torch.testing.assert_close(torch.cat(found), first, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("chosen", [RULED, HEBBIAN], ids=["ruled", "hebbian"])
def test_moving_the_alphas_changes_nothing_else(order: str, chosen: Space) -> None:
    search = _DartsSearch(task(chosen), engine(order=order))
    search.net.train()
    search._learn()
    state = {name: value.clone() for name, value in search.net.state_dict().items()}
    draws = [b.clone() for b in search.rules.buffers()]
    alphas = [alpha.detach().clone() for alpha in search.net.alphas]
    search.move_alphas(lambda _: None)
    assert all(torch.equal(value, state[name]) for name, value in search.net.state_dict().items())
    assert all(torch.equal(b, draw) for b, draw in zip(search.rules.buffers(), draws, strict=True))
    assert all(not torch.equal(alpha, old) for alpha, old in zip(search.net.alphas, alphas, strict=True))
    assert all(p.requires_grad for p in (*search.net.parameters(), *search.net.alphas))
    search.rules.step(search.net)  # a Hebbian layer that had seen the validation batch would move now
    weights = {name: value for name, value in search.net.state_dict().items() if not name.startswith("rules.")}
    assert all(torch.equal(value, state[name]) for name, value in weights.items())


def alpha_gradients(chosen: Space, alpha_grad: str) -> Tensor:
    search = _DartsSearch(task(chosen), engine(alpha_grad=alpha_grad))
    search.net.double().train()
    batch = search.validation_batch()
    gradient = search._gradient((batch[0].double(), batch[1]), alpha_grad == "exact")
    return torch.cat(gradient(search.net.alphas))


def test_alphas_are_differentiated_through_the_rules_or_truly() -> None:
    search = _DartsSearch(task(), engine())
    search.net.double().train()
    x, y = search.validation_batch()
    loss = F.cross_entropy(search.net(x.double()), y)
    truth = torch.cat(torch.autograd.grad(loss, search.net.alphas))
    torch.testing.assert_close(alpha_gradients(RULED, "exact"), truth, rtol=1e-3, atol=1e-7)
    assert (alpha_gradients(RULED, "rule") - truth).norm() > 1e-2 * truth.norm()
    plain = alpha_gradients(PLAIN, "exact")
    torch.testing.assert_close(alpha_gradients(PLAIN, "rule"), plain, rtol=1e-3, atol=1e-7)


class Interrupted(Exception):
    pass


def stop_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, _: int, __: str) -> None:
        if done == step:
            raise Interrupted

    return progress


@pytest.mark.parametrize(
    ("chosen", "changes"),
    [
        pytest.param(RULED, {}, id="rules"),
        pytest.param(RULED, {"order": "second"}, id="second order", marks=pytest.mark.slow),
        pytest.param(HEBBIAN, {"alpha_grad": "exact"}, id="hebbian", marks=pytest.mark.slow),
    ],
)
def test_a_killed_search_continues_to_the_same_alphas(
    chosen: Space,
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    global_rng_untouched: None,
) -> None:
    darts = engine(**changes)
    whole = darts.search(task(chosen, checkpoint=tmp_path / "whole"))
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1.0)
    broken = task(chosen, checkpoint=tmp_path / "broken")
    for step in (1, 5):
        with pytest.raises(Interrupted):
            darts.search(broken, stop_at(step))
    continued = darts.search(broken)
    assert continued == whole
    assert continued.finished
    one, other = load_file(tmp_path / "broken"), load_file(tmp_path / "whole")
    assert one.keys() == other.keys()
    assert {"alphas/0", "alphas/1", "alpha/0/exp_avg", "weights/0/momentum_buffer"} < one.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert darts.search(broken) == whole


@pytest.mark.slow
def test_time_that_is_up_leaves_the_cells_so_far(tmp_path: Path) -> None:
    found = engine().search(task(deadline=-math.inf, checkpoint=tmp_path / "c"))
    assert found.genotype is not None
    assert (found.trace, found.finished) == ([], False)
    assert engine().search(task(checkpoint=tmp_path / "c")) == engine().search(task())


def test_what_the_checkpoint_must_not_be_continued_with(tmp_path: Path) -> None:
    path = tmp_path / "c"
    engine().search(task(checkpoint=path, deadline=-math.inf))
    others: list[tuple[SearchTask, Darts]] = [
        (task(checkpoint=path, seed=1), engine()),
        (task(checkpoint=path, channels=4), engine()),
        (task(PLAIN, checkpoint=path), engine()),
        (task(checkpoint=path), engine(epochs=3)),
    ]
    for other, darts in others:
        with pytest.raises(UserError, match="belongs to a search with other settings"):
            darts.search(other)
    path.write_bytes(b"{}")
    with pytest.raises(UserError, match=r"cannot continue from .*delete it to start anew"):
        engine().search(task(checkpoint=path))


@pytest.mark.slow
def test_the_search_learns_and_its_trace_says_so() -> None:
    fit, validation = halves(load_examples("digits", "train", 240), 0)
    found: SearchResult = engine(epochs=6, lr=0.1, batch_size=20).search(
        task(PLAIN, channels=4, fit=fit, validation=validation)
    )
    assert found.genotype is not None
    assert [row["epoch"] for row in found.trace] == [1, 2, 3, 4, 5, 6]
    assert found.trace[-1]["train_loss"] < 0.92 * found.trace[0]["train_loss"]
    # Alphas start as 1e-3 noise: nearly uniform over four primitives.
    assert math.log(4) - 0.05 < found.trace[0]["entropy_normal"] <= math.log(4)
    assert found.trace[-1]["entropy_normal"] < found.trace[0]["entropy_normal"]


def test_the_learning_rate_is_a_cosine_over_epochs() -> None:
    darts = Darts(epochs=50)
    assert darts.learning_rate(0) == 0.025
    assert darts.learning_rate(25) == pytest.approx((0.025 + 0.001) / 2)
    # PyTorch's own schedule, stepped after each epoch.
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.025)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 50, 0.001)
    for epoch in range(50):
        assert darts.learning_rate(epoch) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


def test_entropy_of_uniform_and_certain_edges() -> None:
    assert entropy(torch.zeros(3, 5)) == pytest.approx(math.log(5))
    assert entropy(torch.tensor([[0.0, 100.0], [0.0, 0.0]])) == pytest.approx(math.log(2) / 2)


def test_frozen_tensors_thaw_again() -> None:
    one, other = torch.zeros(1, requires_grad=True), torch.zeros(1)
    with frozen([one, other]):
        assert not one.requires_grad
    assert one.requires_grad
    assert not other.requires_grad


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epochs": 0}, "expected epochs >= 1, got 0"),
        ({"epohcs": 1}, "unknown parameter of darts 'epohcs': did you mean epochs?"),
        ({"epochs": 1.5}, "expected epochs of darts to be int, got 1.5"),
        ({"order": "third"}, "expected order of darts to be 'first' or 'second', got 'third'"),
        ({"lr": 0}, "expected lr > 0 and grad_clip > 0, got 0 and 5"),
        ({"min_lr": 1}, "expected min_lr <= lr and momentum < 1, got 1 and 0.9"),
        ({"alpha_lr": -1}, "expected alpha_lr >= 0, got -1"),
        ({"batch_size": True}, "expected batch_size of darts to be int, got True"),
    ],
)
def test_a_mistake_in_a_parameter_says_what_was_expected(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_engine("darts", params)
    assert str(caught.value) == message


def test_engines_are_found_by_name_and_their_small_settings_are_legal() -> None:
    assert ENGINES.names() == ["darts", "eg-nas", "evolution", "mse-nas", "random"]
    for name, kind in ENGINES.items():
        fields = {field.name for field in dataclasses.fields(kind)}
        own = {key: value for key, value in kind.small.items() if key in fields}
        assert set(kind.small) - set(own) == {"channels", "layers"}
        assert make_engine(name, own) != make_engine(name, {})
    with pytest.raises(UserError, match="unknown engine 'dart': did you mean darts"):
        make_engine("dart", {})


def test_second_order_needs_float32() -> None:
    with pytest.raises(UserError, match="expected precision float32 for order second, got bfloat16"):
        engine(order="second").search(task(precision="bfloat16"))


def test_too_few_layers_or_images_are_refused() -> None:
    with pytest.raises(UserError, match="expected layers >= 3, got 2"):
        task(layers=2)
    with pytest.raises(UserError, match=r"expected two or more images of each class .* got 1 of class"):
        halves(load_examples("digits", "train", 15), 0)


def test_halves_share_no_image_and_both_hold_every_class() -> None:
    examples = load_examples("digits", "train", 100)
    fit, validation = halves(examples, 3)
    assert len(fit.y) + len(validation.y) == 100
    counts = fit.y.bincount(minlength=10) - validation.y.bincount(minlength=10)
    assert counts.abs().max() <= 1
    images = {x.numpy().tobytes() for x in fit.x} & {x.numpy().tobytes() for x in validation.x}
    assert not images
    other, _ = halves(examples, 4)
    assert not torch.equal(fit.x, other.x)
