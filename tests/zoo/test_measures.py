import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_bio import nets
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets import cost as measure
from robustbench_bio.nets.base import Inputs, Net, weight_layers
from robustbench_bio.rules import LayerRules, RuleOptions, attach, initialise
from robustbench_bio.zoo import catalog, measures
from robustbench_bio.zoo.measures import alignment, angle, gradient_angles, gradient_variance

INPUTS = Inputs((1, 4, 4), 3, (0.375,), (0.5,))
Array = NDArray[np.float64]


def made(
    kind: str, rule: str, *, inputs: Inputs = INPUTS, options: dict[str, object] | None = None, **params: object
) -> Net:
    """A float64 network with rules."""
    net = nets.build(kind, inputs, seed=2, **params).double()
    attach(net, rule, seed=5, options=options)
    return net


def batch(n: int, inputs: Inputs = INPUTS) -> tuple[Tensor, Tensor]:
    generator = torch_generator(n, "measures test")
    x = torch.rand(n, *inputs.shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(inputs.classes, (n,), generator=generator)


def flat(x: Tensor) -> Array:
    """Images as the layers of INPUTS see them: normalised rows."""
    return ((x - 0.375) / 0.5).flatten(1).numpy()


def softmax_error(logits: Array, y: Tensor) -> Array:
    """∂ mean cross-entropy / ∂ logits by its closed form."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return (shares / shares.sum(1, keepdims=True) - np.eye(3)[y.numpy()]) / len(y)


def numbers(layer: nn.Module) -> tuple[Array, Array]:
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def degrees(a: Array, b: Array) -> float:
    """The definition, word for word."""
    cosine = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    return math.degrees(math.acos(np.clip(cosine, -1, 1)))


def test_an_angle_is_that_of_plane_geometry() -> None:
    east = torch.tensor([[1.0, 0.0]])
    for turn in (0.0, 1e-7, 30.0, 90.0, 135.0, 180.0 - 1e-7, 180.0):
        there = torch.tensor([[math.cos(math.radians(turn)), math.sin(math.radians(turn))]], dtype=torch.float64)
        assert angle(east, 7 * there) == pytest.approx(turn, abs=1e-12)
    assert angle(east, torch.zeros(1, 2)) is None
    assert angle(torch.tensor([math.nan, 1.0]), torch.ones(2)) is None
    assert angle(torch.tensor([math.inf, 1.0]), torch.ones(2)) is None
    assert angle(torch.full((9,), 1e-30), torch.full((9,), 1e30)) == 0


@pytest.mark.parametrize(
    ("rule", "expected", "tolerance"), [("usf", 30.0, 0.5), ("frsf", 41.4, 0.7), ("brsf", 41.4, 0.7), ("fa", 90.0, 2.0)]
)
def test_at_initialisation_angle_and_ratio_are_those_of_uniform_weights(
    rule: str, expected: float, tolerance: float
) -> None:
    net = made("mlp", rule, inputs=Inputs((1, 16, 16), 10, (0.375,), (0.5,)), hidden=[256, 128])
    initialise(net, RuleOptions(), 3)
    first, second, _ = alignment(net)
    for found in (first, second):  # 65,536 and 32,768 weights
        assert found.angle == pytest.approx(expected, abs=tolerance)
        assert found.ratio == pytest.approx(1, abs=0.02)
        assert (found.rule, found.reason) == (rule, "")


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (-1.0, 180.0), (2.5, 0.0), (-0.5, 180.0)])
def test_a_multiple_of_the_weight_lies_along_it(factor: float, expected: float) -> None:
    net = made("mlp", "fa", hidden=[6])
    for layer, rule in net.rules.pairs(net):
        rule.feedback.copy_(factor * layer.weight.detach())
    for found in alignment(net):
        assert found.angle == pytest.approx(expected, abs=1e-12)
        assert found.ratio == pytest.approx(abs(factor), rel=1e-12)


def test_a_matrix_with_swapped_signs_is_orthogonal_to_an_even_weight() -> None:
    net = made("mlp", "fa", hidden=[6])
    first, _ = net.rules.pairs(net)
    with torch.no_grad():
        first[0].weight.fill_(0.3)
        first[1].feedback.copy_(torch.tensor([1.0, -1.0]).repeat(6, 8))
    assert alignment(net)[0].angle == pytest.approx(90, abs=1e-12)


def test_alignment_takes_the_matrix_that_the_backward_pass_uses() -> None:
    net = made("cnn", "*conv=frsf,*linear=usf", widths=[4, 6])
    found = {a.layer: a for a in alignment(net)}
    assert list(found) == list(weight_layers(net))
    for (layer, rule), name in zip(net.rules.pairs(net), found, strict=True):
        w = layer.weight.detach().numpy()
        size = rule.magnitude.numpy() if name.endswith("conv") else np.full_like(w, rule.scale)
        b = size * np.sign(w)
        assert found[name].angle == pytest.approx(degrees(b, w), abs=1e-9)
        assert found[name].ratio == pytest.approx(math.sqrt((b * b).sum() / (w * w).sum()), rel=1e-12)


def test_layers_without_such_a_matrix_are_listed_with_the_reason() -> None:
    for rule in ("dfa", "softhebb", "pc"):
        net = made("cnn", rule, widths=[4], norm="none")
        found = alignment(net)
        assert [a.layer for a in found] == list(weight_layers(net))
        assert (found[0].angle, found[0].ratio) == (None, None)
        assert found[0].reason == f"{rule} has no feedback matrix of the weight's shape"
    net = made("mlp", "*.0.linear=usf", hidden=[6])
    with torch.no_grad():
        net.stages[0].linear.weight.zero_()
    ruled, plain = alignment(net)
    assert (ruled.angle, ruled.ratio, ruled.reason) == (None, None, "the weight is zero")
    assert (plain.rule, plain.angle, plain.ratio, plain.reason) == ("bp", 0.0, 1.0, "")
    net = made("mlp", "*.0.linear=fa", hidden=[6])
    next(net.rules.pairs(net))[1].feedback.zero_()
    assert alignment(net)[0].reason == "the feedback matrix is zero or not finite"
    assert (alignment(net)[0].angle, alignment(net)[0].ratio) == (None, 0.0)


def hidden_gradients(net: Net, x: Tensor, y: Tensor, back: Array | None) -> tuple[Array, Array]:
    """dW of a tanh perceptron's two layers by hand; `back` replaces the upper weight on the way down."""
    (w0, b0), (w1, b1) = (numbers(stage.linear) for stage in net.stages)
    h = np.tanh(flat(x) @ w0.T + b0)
    e = softmax_error(h @ w1.T + b1, y)
    down = e @ (w1 if back is None else back) * (1 - h * h)
    return down.T @ flat(x), e.T @ h


@pytest.mark.parametrize("rule", ["fa", "usf", "frsf", "brsf"])
def test_the_angle_of_gradients_is_that_of_a_hand_calculation(rule: str) -> None:
    net = made("mlp", rule, hidden=[7], activation="tanh")
    x, y = batch(9)
    upper, owner = list(net.rules.pairs(net))[1]
    mine, _ = hidden_gradients(net, x, y, owner.matrix(upper).detach().numpy())
    exact, _ = hidden_gradients(net, x, y, None)
    first, last = gradient_angles(net, x, y)
    assert first.angle == pytest.approx(degrees(mine, exact), abs=1e-9)
    assert first.angle > 1
    assert last.angle == pytest.approx(0, abs=1e-9)
    assert (first.rule, first.reason) == (rule, "")


def test_the_angle_of_dfa_is_that_of_a_projected_error() -> None:
    net = made("mlp", "*.0.linear=dfa", hidden=[7], activation="tanh")
    x, y = batch(9)
    (w0, b0), (w1, b1) = (numbers(stage.linear) for stage in net.stages)
    e = softmax_error(np.tanh(flat(x) @ w0.T + b0) @ w1.T + b1, y)
    projection = dict(net.rules.named_buffers())["by_layer.stages/0/linear.to_output"].numpy()
    exact, _ = hidden_gradients(net, x, y, None)
    first, last = gradient_angles(net, x, y)
    assert first.angle == pytest.approx(degrees((e @ projection).T @ flat(x), exact), abs=1e-9)
    assert (last.rule, last.angle) == ("bp", pytest.approx(0, abs=1e-9))


def test_predictive_coding_with_fixed_predictions_reaches_the_exact_gradient() -> None:
    far = made("mlp", "pc", hidden=[7], activation="tanh", options={"pc_steps": 20})
    near = made(
        "mlp", "pc", hidden=[7], activation="tanh",
        options={"pc_steps": 400, "pc_gamma": 0.2, "pc_fixed_prediction": True},
    )  # fmt: skip
    x, y = batch(9)
    assert gradient_angles(far, x, y)[0].angle > 1
    assert [a.angle for a in gradient_angles(near, x, y)] == pytest.approx([0, 0], abs=1e-6)


def test_bp_below_a_false_feedback_is_false_and_above_it_exact() -> None:
    net = made("mlp", "*.1.linear=fa", hidden=[7, 6])
    below, ruled, above = gradient_angles(net, *batch(9))
    assert below.rule == above.rule == "bp"
    assert below.angle > 10
    assert [ruled.angle, above.angle] == pytest.approx([0, 0], abs=1e-9)
    assert [a.angle for a in gradient_angles(made("mlp", "bp", hidden=[7, 6]), *batch(9))] == pytest.approx(
        [0, 0, 0], abs=1e-9
    )


def test_layers_without_a_gradient_say_why() -> None:
    x, y = batch(9)
    hebbian = made("cnn", "softhebb", widths=[4])
    assert next((a.angle, a.reason) for a in gradient_angles(hebbian, x, y)) == (None, "softhebb follows no gradient")
    idle = made("mlp", "pc", hidden=[7], options={"pc_steps": 0})
    assert gradient_angles(idle, x, y)[0].reason == "its pc gradient is zero or not finite"
    dead = made("mlp", "usf", hidden=[7])
    with torch.no_grad():
        dead.stages[0].linear.bias.fill_(-1e3)
    assert gradient_angles(dead, x, y)[0].reason == "its usf gradient is zero or not finite"
    silent = made("mlp", "fa", hidden=[7])
    with torch.no_grad():
        silent.stages[1].linear.weight.zero_()  # nothing exact comes down, what fa sends does
    assert gradient_angles(silent, x, y)[0].reason == "its exact gradient is zero or not finite"
    aided = made(
        "cells", "genotype", genotype=catalog.genotype("biodarts"), channels=2, layers=2, auxiliary=True,
        inputs=Inputs((1, 8, 8), 3, (0.375,), (0.5,)),
    )  # fmt: skip
    found = {a.layer: a for a in gradient_angles(aided, torch.rand(4, 1, 8, 8, dtype=torch.float64), y[:4])}
    assert found["auxiliary_head.conv1"].reason == "no gradient in eval mode"
    assert found["classifier"].angle == pytest.approx(0, abs=1e-9)


def gradient_of_linear_model(net: Net, x: Tensor, y: Tensor) -> Array:
    w, b = numbers(net.stages[0].linear)
    return softmax_error(flat(x) @ w.T + b, y).T @ flat(x)


def test_the_variance_of_a_linear_model_is_that_of_numpy_on_the_same_batches() -> None:
    net = made("mlp", "bp", hidden=[])
    x, y = batch(60)
    passed: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, args: passed.append(args[0].detach().clone()))
    found = gradient_variance(net, x, y, batches=17, batch_size=8)
    by_rule, exact = passed[0::2], passed[1::2]
    assert len(exact) == 17
    assert all(torch.equal(a, b) for a, b in zip(by_rule, exact, strict=True))
    row = {image.numpy().tobytes(): i for i, image in enumerate(x)}
    rows = [[row[image.numpy().tobytes()] for image in seen] for seen in exact]
    assert all(len(set(drawn)) == 8 for drawn in rows), "an example twice in one batch"
    assert len({tuple(drawn) for drawn in rows}) == 17
    gradients = np.stack([gradient_of_linear_model(net, x[drawn], y[drawn]) for drawn in rows])
    spread = gradients.var(0).sum()
    assert found.exact is not None
    assert found.exact.per_weight == pytest.approx(spread / 48, rel=1e-9)
    assert found.exact.relative == pytest.approx(spread / (gradients.mean(0) ** 2).sum(), rel=1e-9)
    (layer,) = found.layers
    assert (layer.layer, layer.rule, found.weights) == ("stages.0.linear", "bp", 48)
    for other in (layer.exact, layer.by_rule, found.by_rule):
        assert other is not None
        assert other.per_weight == pytest.approx(found.exact.per_weight, rel=1e-9)
        assert other.relative == pytest.approx(found.exact.relative, rel=1e-9)


def test_the_variance_over_many_batches_is_that_of_sampling_theory() -> None:
    net = made("mlp", "bp", hidden=[])
    x, y = batch(60)
    each = np.stack([gradient_of_linear_model(net, x[i : i + 1], y[i : i + 1]) for i in range(60)])
    expected = each.var(0, ddof=1).sum() / 12 * (1 - 12 / 60)  # a mean of 12 out of 60 without replacement
    found = gradient_variance(net, x, y, batches=400, batch_size=12, seed=1).exact
    assert found is not None
    assert found.per_weight * 48 == pytest.approx(expected, rel=0.1)


def test_the_total_is_the_variance_of_all_layers_as_one_vector() -> None:
    net = made("mlp", "usf", hidden=[7])
    found = gradient_variance(net, *batch(40), batch_size=8)
    sizes = [layer.weight.numel() for layer in weight_layers(net).values()]
    for side in ("by_rule", "exact"):
        total, parts = getattr(found, side), [getattr(layer, side) for layer in found.layers]
        spreads = [part.per_weight * size for part, size in zip(parts, sizes, strict=True)]
        signals = [spread / part.relative for spread, part in zip(spreads, parts, strict=True)]
        assert total.per_weight == pytest.approx(sum(spreads) / sum(sizes), rel=1e-9)
        assert total.relative == pytest.approx(sum(spreads) / sum(signals), rel=1e-9)
    assert found.by_rule.relative != pytest.approx(found.exact.relative, rel=1e-3)
    assert found.weights == sum(sizes)


def test_only_the_relative_variance_is_free_of_the_feedbacks_scale() -> None:
    net = made("mlp", "usf", hidden=[7])
    x, y = batch(40)
    before = gradient_variance(net, x, y, batch_size=8).layers[0]
    for _, rule in net.rules.pairs(net):
        rule.scale *= 10
    after = gradient_variance(net, x, y, batch_size=8).layers[0]
    assert after.by_rule.per_weight == pytest.approx(100 * before.by_rule.per_weight, rel=1e-9)
    assert after.by_rule.relative == pytest.approx(before.by_rule.relative, rel=1e-9)
    assert after.exact == before.exact


def test_redrawn_magnitudes_are_part_of_the_variance() -> None:
    x, y = batch(1)
    x, y = x.expand(20, -1, -1, -1), y.expand(20)  # every batch is the same
    for rule, noisy in (("frsf", False), ("brsf", True)):
        hidden, last = gradient_variance(made("mlp", rule, hidden=[7]), x, y, batch_size=4).layers
        assert hidden.exact.relative == pytest.approx(0, abs=1e-20)
        assert last.by_rule.relative == pytest.approx(0, abs=1e-20)
        assert hidden.by_rule.relative == pytest.approx(0, abs=1e-20) or noisy
        assert (hidden.by_rule.relative > 1e-3) == noisy


def test_layers_that_follow_no_gradient_are_left_out_of_both_totals() -> None:
    net = made("cnn", "softhebb", widths=[4])
    found = gradient_variance(net, *batch(40), batch_size=8)
    hebbian, last = found.layers
    assert hebbian.by_rule is None
    assert hebbian.exact is not None
    assert found.by_rule == last.by_rule
    assert found.exact == last.exact
    assert found.weights == net.stages[-1].linear.weight.numel()


def test_a_gradient_of_zero_has_no_relative_variance() -> None:
    net = made("mlp", "usf", hidden=[7])
    with torch.no_grad():
        net.stages[0].linear.bias.fill_(-1e3)
    hidden = gradient_variance(net, *batch(40), batch_size=8).layers[0]
    assert hidden.exact == hidden.by_rule == measures.Variance(0.0, None)


def test_the_seed_and_nothing_else_decides_the_batches() -> None:
    net, (x, y) = made("mlp", "brsf", hidden=[7]), batch(40)
    first = gradient_variance(net, x, y, batch_size=8)
    torch.rand(3)
    assert gradient_variance(net.eval(), x, y, batch_size=8) == first
    assert gradient_variance(net, x, y, batch_size=8, seed=1) != first
    heard: list[tuple[int, int]] = []
    assert first == gradient_variance(net, x, y, batch_size=8, progress=lambda k, total, _: heard.append((k, total)))
    assert heard == [(k, 16) for k in range(1, 17)]


def everything(net: Net) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in [*net.named_parameters(), *net.named_buffers()]}


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("usf", {}),
        ("fa", {}),
        ("brsf", {}),
        ("dfa", {}),
        ("softhebb", {"local_lr": 0.1}),
        ("pc", {"pc_steps": 5}),
    ],
)
def test_measuring_leaves_the_network_and_its_training_as_they_were(rule: str, options: dict[str, object]) -> None:
    norm = "none" if rule == "pc" else "batch"
    net = made("cnn", rule, widths=[4], norm=norm, options=options).train()
    net.stages[-1].eval()
    (x, y), labels = batch(24), batch(24)[1]

    def one_pass(network: Net) -> None:
        network.rules.backward(network, x, lambda logits: F.cross_entropy(logits, labels, reduction="none"))

    one_pass(net)  # gradients, statistics, and what a Hebbian layer has seen, all wait for the step
    twin = copy.deepcopy(net)
    for parameter, other in zip(net.parameters(), twin.parameters(), strict=True):
        other.grad = None if parameter.grad is None else parameter.grad.clone()
    before, modes = everything(net), [module.training for module in net.modules()]
    alignment(net)
    gradient_angles(net, x, y)
    gradient_variance(net, x, y, batch_size=4)
    assert {name: torch.equal(before[name], tensor) for name, tensor in everything(net).items()} == dict.fromkeys(
        before, True
    )
    assert [module.training for module in net.modules()] == modes
    for network in (net, twin):
        network.rules.step(network)
        one_pass(network)
    after, expected = everything(net), everything(twin)
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    for parameter, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad)


def test_batch_norm_acts_with_its_running_statistics() -> None:
    net = made("cnn", "fa", widths=[4]).train()
    x, y = batch(9)
    alone = torch.cat([x[:1], x[:1]])
    assert gradient_angles(net, alone, y[:1].expand(2)) == gradient_angles(net.eval(), alone, y[:1].expand(2))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda *_: alignment(nets.build("mlp", INPUTS, seed=0)), "expected a network with learning rules, got"),
        (lambda net, x, y: gradient_angles(net, x, y[1:]), r"expected x \[N, C, H, W\] and y \[N\] with N >= 1, got"),
        (lambda net, x, y: gradient_angles(net, x[:0], y[:0]), "with N >= 1, got"),
        (lambda net, x, y: gradient_variance(net, x, y, batches=15), "expected batches >= 16, got 15"),
        (lambda net, x, y: gradient_variance(net, x, y, batch_size=9), r"expected batch_size in 1\.\.8 .*, got 9"),
        (lambda net, x, y: gradient_variance(net, x, y, batch_size=0), r"expected batch_size in 1\.\.8 .*, got 0"),
    ],
)
def test_mistakes_are_named(call: object, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        call(made("mlp", "usf", hidden=[7]), *batch(9))


def test_feedback_memory_is_what_the_rules_define() -> None:
    inputs = Inputs((1, 4, 4), 3, (0.375,), (0.5,))
    weights = 16 * 7 + 7 * 3
    expected = {
        "bp": 0, "usf": 0, "fa": 4 * weights, "frsf": 4 * weights, "brsf": 4 * weights + 2 * 16,
        "dfa": 4 * 3 * (7 + 16), "pc": 0, "oja": 0,
    }  # fmt: skip
    for rule, size in expected.items():
        net = nets.build("mlp", inputs, seed=0, hidden=[7])
        rules = attach(net, rule)
        assert measure.feedback_bytes(rules) == size, rule
        assert isinstance(rules, LayerRules) == (rule != "pc")


def test_energy_is_that_of_so_many_multiplications_and_additions() -> None:
    assert measure.energy_picojoules(1000) == pytest.approx(1000 * (3.7 + 0.9))
