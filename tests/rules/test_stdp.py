from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio import datasets, nets
from robustbench_bio.core.errors import UserError
from robustbench_bio.nets import Inputs, Net
from robustbench_bio.nets.spiking import LIF, FiringConv2d
from robustbench_bio.records.card import Recipe
from robustbench_bio.rules import attach
from robustbench_bio.rules.base import Draw, OutputError
from robustbench_bio.rules.geometry import Convolution, Dense, unfolded
from robustbench_bio.rules.stdp import Stdp, StdpOptions, pairs, spike_trace
from robustbench_bio.training import loop as train

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

INPUTS = Inputs((2, 8, 8), 3, (0.4, 0.5), (0.2, 0.3))
LABELS = torch.tensor([0, 2, 1, 2, 1])


def spikes(*shape: int, seed: int = 0) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.4, dtype=torch.float64), generator=torch.Generator().manual_seed(seed))


def images(seed: int = 0) -> Tensor:
    return torch.rand(5, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def network(**options: Any) -> Net:
    net = nets.build("spiking-cnn", INPUTS, seed=0, widths=(4, 6), kernel=3, steps=5, threshold=0.2)
    attach(net, "stdp", options=options)
    return net.train()


def learn(net: Net, x: Tensor, passes: int = 1) -> None:
    for _ in range(passes):
        net.rules.backward(net, x, lambda logits: F.cross_entropy(logits, LABELS[: len(x)], reduction="none"))
    net.rules.step(net)


# the sums over pairs


@pytest.mark.parametrize("lag", [0, 1, 2, 5])
@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_a_single_pair_decays_with_its_lag_on_the_side_of_its_order(lag: int, tau: float) -> None:
    early, late = torch.zeros(2, 8, 1, 1, dtype=torch.float64)
    early[1], late[1 + lag] = 1, 1
    size = (1 - 1 / tau) ** lag
    weight = torch.zeros(1, 1, dtype=torch.float64)
    before = pairs(Dense(), early, late, weight, tau, 7.0)
    assert before.causal.item() == pytest.approx(size)
    assert before.acausal.item() == float(lag == 0)  # a spike that comes with the other counts on both sides
    after = pairs(Dense(), late, early, weight, 7.0, tau)
    assert after.acausal.item() == pytest.approx(size)
    assert after.causal.item() == float(lag == 0)


def test_a_trace_is_the_sum_of_what_is_left_of_each_spike() -> None:
    train_ = spikes(9, 4)
    powers = torch.tensor([[0.75 ** (t - s) if s <= t else 0 for s in range(9)] for t in range(9)], dtype=torch.float64)
    torch.testing.assert_close(spike_trace(train_, 4.0), powers @ train_)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_its_synapses_one_by_one(stride: int, padding: int, dilation: int, groups: int) -> None:
    pre, weight = spikes(4, 2, 4, 7, 7), torch.zeros(6, 4 // groups, 3, 3, dtype=torch.float64)
    side = (7 + 2 * padding - 2 * dilation - 1) // stride + 1
    post = spikes(4, 2, 6, side, side, seed=1)
    geometry = Convolution((stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
    found = pairs(geometry, pre, post, weight, 2.0, 3.0)
    seen, left_pre = F.pad(pre, [padding] * 4), F.pad(spike_trace(pre, 2.0), [padding] * 4)
    left_post = spike_trace(post, 3.0)
    causal, acausal = torch.zeros_like(weight), torch.zeros_like(weight)
    for o in range(6):
        first = o // (6 // groups) * (4 // groups)
        for i in range(4 // groups):
            for dy in range(3):
                for dx in range(3):
                    rows = slice(dy * dilation, dy * dilation + stride * (side - 1) + 1, stride)
                    columns = slice(dx * dilation, dx * dilation + stride * (side - 1) + 1, stride)
                    causal[o, i, dy, dx] = (post[:, :, o] * left_pre[:, :, first + i, rows, columns]).sum()
                    acausal[o, i, dy, dx] = (left_post[:, :, o] * seen[:, :, first + i, rows, columns]).sum()
    torch.testing.assert_close(found.causal, causal)
    torch.testing.assert_close(found.acausal, acausal)


Step = Callable[[Tensor, Tensor, Any], tuple[Any, Tensor]]


def snntorch_step(layer: nn.Linear | nn.Conv2d) -> Step:
    """Return one step of their learner, (pre, post, traces) → (traces, change), with depression at 0.7."""
    found = pytest.importorskip("snntorch.functional.stdp_learner")
    step = found.stdp_linear_single_step if isinstance(layer, nn.Linear) else found.stdp_conv2d_single_step

    def change(pre: Tensor, post: Tensor, left: Any) -> tuple[Any, Tensor]:
        weights = {"f_pre": lambda w: torch.full_like(w, 0.7), "f_post": torch.ones_like}
        *left, delta = step(layer, pre, post, *(left or (None, None)), 2.0, 3.0, **weights)
        return left, delta

    return change


def spikingjelly_step(layer: nn.Linear | nn.Conv2d) -> Step:
    """Return one step of their learner, (pre, post, traces) → (traces, change), with depression at 0.7."""
    found = pytest.importorskip("spikingjelly.activation_based.functional.learning")

    def change(pre: Tensor, post: Tensor, left: Any) -> tuple[Any, Tensor]:
        options = {"f_pre": lambda w: torch.full_like(w, 0.7), "f_post": torch.ones_like, "tau_pre": 2.0}
        step = found.stdp_linear_step
        if isinstance(layer, nn.Conv2d):  # which takes its input padded
            pre, step = F.pad(pre, [layer.padding[0]] * 4), found.stdp_conv2d_step
            options["stride"] = layer.stride
        left = left or (torch.zeros_like(pre), torch.zeros_like(post))
        delta, left = step(pre, post, left, layer.weight.detach(), tau_post=3.0, **options)
        return left, delta

    return change


@pytest.mark.parametrize("library", [snntorch_step, spikingjelly_step])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_sums_are_those_of_the_libraries_where_they_go(library: Callable[..., Step], kind: str) -> None:
    with torch.random.fork_rng():
        layer = (nn.Linear(5, 3) if kind == "linear" else nn.Conv2d(2, 3, 3, 2, 1)).double()
    pre = spikes(6, 4, 5) if kind == "linear" else spikes(6, 4, 2, 7, 7)
    with torch.no_grad():
        post = (torch.stack([layer(step) for step in pre]) > 0).double()
    step, left, change = library(layer), None, torch.zeros_like(layer.weight)
    for s_in, s_out in zip(pre, post, strict=True):
        left, delta = step(s_in, s_out, left)
        change = change + delta
    geometry, _ = unfolded(layer, pre[0])
    found = pairs(geometry, pre, post, layer.weight, 2.0, 3.0)
    torch.testing.assert_close(found.causal - 0.7 * found.acausal, change)


# the rule


def rule_on(layer: FiringConv2d, **options: Any) -> Stdp:
    return Stdp(layer, Draw(0, "layer", StdpOptions(**options)))


def one_synapse(pre: list[float], weight: float, **options: Any) -> float:
    """Return the change of the weight of one neuron with one input; it fires for every spike above the threshold."""
    with torch.random.fork_rng():
        layer = FiringConv2d(1, 1, 1, len(pre), LIF(1.0, 0.25)).double()
    with torch.no_grad():
        layer.weight.fill_(weight)
    rule = rule_on(layer, local_lr=1.0, **options)
    rule(layer, torch.tensor(pre, dtype=torch.float64).view(-1, 1, 1, 1).requires_grad_(True))
    rule.step(layer)
    return layer.weight.item() - weight


def test_one_synapse_changes_by_the_formula() -> None:
    # τ = 1 forgets at once, so that the neuron fires with its input: twice, each pair at lag 0 counting on both sides.
    potentiated, depressed = (2 - 0.5) ** 2 * 2, (0.5 + 1) ** 2 * 2
    wide = {"stdp_low": -1.0, "stdp_high": 2.0, "stdp_power": 2.0, "stdp_tau_pre": 1.0, "stdp_tau_post": 1.0}
    change = one_synapse([1, 0, 1], 0.5, stdp_depression=0.9, **wide)
    assert change == pytest.approx(potentiated - 0.9 * depressed)
    assert one_synapse([1, 0, 1], 0.5, stdp_depression=0.0, **wide) == pytest.approx(2 - 0.5)  # clamped
    # τ = 2: the second spike still sees half² of the first one, on either side.
    lags = {"stdp_power": 0.0, "stdp_low": -9.0, "stdp_high": 9.0, "stdp_depression": 0.5}
    assert one_synapse([1, 0, 1], 0.5, **lags) == pytest.approx((2 + 0.25) * 0.5)
    assert one_synapse([0.1, 0, 0.2], 0.5, **lags) == 0  # the neuron never fires


def test_groups_of_passes_are_one_batch_and_other_passes_change_nothing() -> None:
    whole, parts = network(), network()
    x = images()
    learn(whole, torch.cat([x[:2], x[:2]]))
    learn(parts, x[:2], passes=2)
    for one, two in zip(whole.convs, parts.convs, strict=True):
        torch.testing.assert_close(one.weight, two.weight)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    with torch.no_grad():
        whole(x)
    whole.rules.input_gradient(whole, x, lambda logits: logits.sum(1))
    whole.rules.step(whole)
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())


def test_weights_stay_within_their_bounds_and_the_optimiser_off_them() -> None:
    net = network(local_lr=50.0, stdp_low=-0.1, stdp_high=0.2)
    before = [conv.weight.clone() for conv in net.convs]
    assert {id(p) for p in net.rules.local_parameters(net)} == {id(conv.weight) for conv in net.convs}
    learn(net, images())
    assert all(conv.weight.grad is None for conv in net.convs)
    assert net.linear.weight.grad.abs().max() > 0
    for old, conv in zip(before, net.convs, strict=True):
        assert conv.weight.min() >= -0.1
        assert conv.weight.max() <= 0.2
        assert not torch.equal(old.clamp(-0.1, 0.2), conv.weight)


def test_only_the_first_to_fire_learns() -> None:
    with torch.random.fork_rng():
        layer = FiringConv2d(1, 3, 1, 3, LIF(2.0, 0.5)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.6, 2.0, 1.5]).view(3, 1, 1, 1))  # fires in step 3, 1 (harder) and 1
    start = layer.weight.detach().clone()
    rule = rule_on(layer, local_lr=0.01, stdp_high=5.0, stdp_depression=0.0)
    x = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    rule(layer, x)
    rule.step(layer)
    assert (layer.weight != start).flatten().tolist() == [False, True, False]
    alone = rule_on(layer, local_lr=0.01, stdp_high=5.0, stdp_depression=0.0, stdp_rivals=False)
    start = layer.weight.detach().clone()
    alone(layer, x)
    alone.step(layer)
    assert (layer.weight != start).flatten().tolist() == [True, True, True]


def test_a_reward_weighs_each_example_by_the_probability_of_its_label() -> None:
    options = {"local_lr": 0.01, "stdp_low": -9.0, "stdp_high": 9.0, "stdp_power": 0.0, "stdp_depression": 0.3}
    x = images()
    start = network(**options)
    with torch.no_grad():
        reward = 2 * start(x).softmax(1)[range(5), LABELS] - 1
    changes = []
    for i in range(5):
        net = network(**options)
        net.rules.backward(net, x[i : i + 1], lambda logits, i=i: F.cross_entropy(logits, LABELS[i : i + 1]))
        net.rules.step(net)
        changes.append(net.convs[0].weight.detach() - start.convs[0].weight.detach())
    expected = sum(r * change for r, change in zip(reward, changes, strict=True)) / 5
    rewarded = network(**options, stdp_reward="label")
    learn(rewarded, x)
    found = rewarded.convs[0].weight.detach() - start.convs[0].weight.detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert found.abs().max() > 1e-5


def test_a_reward_without_a_loss_is_an_error() -> None:
    with torch.random.fork_rng():
        layer = FiringConv2d(1, 1, 1, 1, LIF())
    rule = rule_on(layer, stdp_reward="label")
    rule.error = OutputError()
    rule(layer, torch.ones(2, 1, 1, 1))
    with pytest.raises(RuntimeError, match="stdp with reward needs a loss"):
        rule.step(layer)


@pytest.mark.parametrize("local_pass", ["exact", "stop"])
def test_what_is_handed_down(local_pass: str) -> None:
    net, x = network(local_pass=local_pass).eval(), images()
    found = net.rules.input_gradient(net, x, lambda logits: logits[:, 0]).gradient
    point = x.clone().requires_grad_(True)
    (own,) = torch.autograd.grad(net(point)[:, 0].sum(), point)
    assert own.abs().max() > 0
    assert torch.equal(found, own if local_pass == "exact" else torch.zeros_like(own))


def test_state_goes_with_the_weights_and_the_next_step_is_the_same() -> None:
    one, two = network(), network()
    learn(one, images())
    two.load_state_dict(one.state_dict())
    for net in (one, two):
        learn(net, images(1))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnn", {}, "expected a convolution with neurons for stdp, got a Conv2d: stdp trains spiking-cnn"),
        ("spiking-resnet", {}, "got a Conv2d"),
        ("spiking-cnn", {"stdp_tau_post": 0.5}, "expected stdp_tau_pre and stdp_tau_post >= 1 step, got 0.5"),
        ("spiking-cnn", {"stdp_low": 2.0}, "expected stdp_low < stdp_high, got 2 and 1"),
        ("spiking-cnn", {"stdp_power": -1.0}, "expected stdp_power and stdp_depression >= 0, got -1"),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    net = nets.build(name, INPUTS, seed=0)
    with pytest.raises(UserError, match=message):
        attach(net, "stdp", options=options)


@pytest.mark.slow
def test_features_learnt_without_labels_carry_a_classifier() -> None:
    net = nets.build("spiking-cnn", Inputs((1, 8, 8), 10, (0.306,), (0.376,)), seed=0, widths=(32,), kernel=3)
    options = {"local_lr": 0.1, "stdp_low": -0.5, "stdp_high": 0.5, "stdp_depression": 0.5}
    attach(net, "stdp", options=options)
    before = net.convs[0].weight.detach().clone()
    done = train.train(net, datasets.load_examples("digits", "train"), Recipe(epochs=5, lr=0.3, init="network"))
    assert (net.convs[0].weight - before).abs().mean() > 0.003
    assert done.val_accuracy is not None
    assert done.val_accuracy > 0.7
