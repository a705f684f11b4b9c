import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio import datasets, diagnose, evaluate, nets
from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.access.surrogate import stepped, with_surrogate
from robustbench_bio.attacks.access.trace import trace
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.core.errors import UserError
from robustbench_bio.diagnosis import differences as probes
from robustbench_bio.evaluation.planning import gradients_of
from robustbench_bio.nets import Inputs, Net
from robustbench_bio.nets.spiking import LIF, SpikingBlock, over_time
from robustbench_bio.nets.surrogates import SURROGATES
from robustbench_bio.records.card import Recipe
from robustbench_bio.rules import attach
from robustbench_bio.rules.geometry import Convolution
from robustbench_bio.training import loop as train

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

DIGITS = Inputs((1, 8, 8), 10, (0.3,), (0.4,))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def resnet(**params: object) -> Net:
    return nets.build("spiking-resnet", DIGITS, seed=0, **{"blocks": 1, "width": 4, "steps": 3} | params)


def one_neuron(current: list[float], tau: float, threshold: float) -> list[float]:
    """The definition in plain numbers."""
    membrane, spikes = 0.0, []
    for arriving in current:
        membrane += (arriving - membrane) / tau
        fires = membrane - threshold > 0
        spikes.append(float(fires))
        membrane *= 1 - fires
    return spikes


# the layer


def test_a_constant_current_fires_as_computed_by_hand() -> None:
    # τ = 2, θ = 1/2: membranes of I = 1 are 1/2 (not above θ), 3/4 (fires), 1/2, 3/4; of I = 0.6 0.3, 0.45, 0.525.
    lif = LIF()
    assert lif(torch.ones(4, 1)).flatten().tolist() == [0, 1, 0, 1]
    assert lif(torch.full((6, 1), 0.6)).flatten().tolist() == [0, 0, 1, 0, 0, 1]
    assert lif(torch.full((3, 1), 0.5)).flatten().tolist() == [0, 0, 0]


@pytest.mark.parametrize(("tau", "threshold"), [(1.0, 0.5), (2.0, 0.5), (3.7, 0.2)])
def test_a_layer_is_its_neurons_one_by_one_and_forgets_between_calls(tau: float, threshold: float) -> None:
    current = noise(12, 3, 5) + 0.5
    lif = LIF(tau, threshold)
    spikes = lif(current)
    alone = [one_neuron(column.tolist(), tau, threshold) for column in current.flatten(1).T]
    assert torch.equal(spikes.flatten(1).T, torch.tensor(alone, dtype=torch.float64))
    assert 0 < spikes.mean() < 1
    assert torch.equal(lif(current), spikes)
    assert not lif.state_dict()


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_the_gradient_over_two_steps_is_the_one_by_hand(name: str) -> None:
    tau, threshold, g = 3.0, 0.4, SURROGATES[name]
    current = (noise(2, 40) + 0.8).requires_grad_(True)
    above = noise(2, 40, seed=1)
    (found,) = torch.autograd.grad((LIF(tau, threshold, name)(current) * above).sum(), current)
    first, second = current.detach()
    m1 = first / tau
    kept = (m1 <= threshold).double()  # the reset is no path for the gradient
    m2 = m1 * kept + (second - m1 * kept) / tau
    d2 = above[1] * g(m2 - threshold)
    expected = torch.stack([(above[0] * g(m1 - threshold) + d2 * kept * (1 - 1 / tau)) / tau, d2 / tau])
    torch.testing.assert_close(found, expected)
    assert 0 < kept.mean() < 1


def like_snntorch() -> Callable[[Tensor], Tensor]:
    snntorch = pytest.importorskip("snntorch")
    grad = pytest.importorskip("snntorch.surrogate").atan(alpha=2.0)
    theirs = snntorch.Leaky(0.5, 0.5, spike_grad=grad, reset_mechanism="zero")

    def layer(current: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(current[0]), []
        for arriving in current / 2:
            spike, membrane = theirs(arriving, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    return layer


def like_spikingjelly() -> Callable[[Tensor], Tensor]:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    grad = pytest.importorskip("spikingjelly.activation_based.surrogate").ATan(2.0)
    return neuron.LIFNode(2.0, v_threshold=0.5, surrogate_function=grad, detach_reset=True, step_mode="m")


@pytest.mark.parametrize("library", [like_snntorch, like_spikingjelly])
def test_it_fires_and_learns_like_the_libraries(library: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    current, above = noise(10, 4, 6).float() + 0.5, noise(10, 4, 6, seed=1).float()
    outcomes = []
    for layer in (library(), LIF(surrogate="arctan")):
        point = current.clone().requires_grad_(True)
        spikes = layer(point)
        outcomes.append((spikes.detach(), torch.autograd.grad((spikes * above).sum(), point)[0]))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1])


def test_over_time_is_the_layer_at_each_step() -> None:
    with torch.random.fork_rng():
        conv = nn.Conv2d(2, 3, 3, 2).double()
    x = noise(4, 5, 2, 7, 7)
    torch.testing.assert_close(over_time(conv, x), torch.stack([conv(step) for step in x]))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tau": 0.5}, r"expected tau to be in \[1, 1e\+06\], got 0.5"),
        ({"threshold": 0.0}, r"expected threshold to be in \[1e-06, 1e\+06\], got 0.0"),
        ({"surrogate": "triangel"}, "unknown surrogate 'triangel': did you mean triangle"),
        ({"steps": 0}, "expected steps to be a whole number >= 1, got 0"),
        ({"coding": "rate"}, "expected coding to be direct or frames, got 'rate'"),
        ({"coding": "frames"}, "expected channels that are 3 frames, got 1"),
    ],
)
def test_a_wrong_value_is_refused_with_a_remedy(params: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resnet(**params)


# the networks


def test_a_block_equals_its_formula() -> None:
    with torch.random.fork_rng():
        block = SpikingBlock(4, 6, 2, LIF).double().eval()
    x = noise(3, 2, 4, 8, 8)
    conv1, conv2 = block.synapses1.conv, block.synapses2.conv
    scale = 1 / math.sqrt(1 + 1e-5)  # of a batch norm that has seen nothing
    y = torch.stack([F.conv2d(step, conv1.weight, None, 2, 1) * scale for step in LIF()(x)])
    y = torch.stack([F.conv2d(step, conv2.weight, None, 1, 1) * scale for step in LIF()(y)])
    y[:, :, :4] += x[..., ::2, ::2]
    torch.testing.assert_close(block(x), y)


def test_frames_that_repeat_an_image_give_what_the_image_gives() -> None:
    still = resnet().eval()
    moving = nets.build(
        "spiking-resnet",
        Inputs((3, 8, 8), 10, (0.3,) * 3, (0.4,) * 3),
        seed=0,
        blocks=1,
        width=4,
        steps=3,
        coding="frames",
    )
    # The normalisation holds three frames of one channel.
    moving.load_state_dict(still.state_dict())
    moving.eval()
    x = images()
    torch.testing.assert_close(moving(x.repeat(1, 3, 1, 1)), still(x))
    changed = x.repeat(1, 3, 1, 1)
    changed[:, 2] = 1 - changed[:, 2]
    assert not torch.allclose(moving(changed), still(x))


def test_input_neurons_see_above_and_below_the_mean() -> None:
    net = nets.build("spiking-cnn", Inputs((1, 8, 8), 10, (0.5,), (0.25,)), seed=0, widths=(3,), steps=6).eval()
    seen: list[Tensor] = []
    net.lif.register_forward_hook(lambda _m, _a, out: seen.append(out))
    x = torch.full((1, 1, 8, 8), 0.5)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 1.0, 0.25  # two and minus one standard deviations
    net(x)
    (spikes,) = seen
    on, off = spikes[:, 0].unbind(1)
    assert on[:, 0, 0].tolist() == one_neuron([2.0] * 6, 2, 0.5)
    assert off[:, 0, 1].tolist() == one_neuron([1.0] * 6, 2, 0.5)
    assert spikes.sum() == on[:, 0, 0].sum() + off[:, 0, 1].sum()


@pytest.mark.parametrize("name", ["spiking-resnet", "spiking-cnn"])
def test_a_trace_with_the_surrogate_of_training_has_the_networks_own_gradient(name: str) -> None:
    net, x, y = nets.build(name, DIGITS, seed=0, steps=3).eval(), images(), torch.arange(6)
    graph = trace(net, x[:2])
    torch.testing.assert_close(graph(x), net(x))
    gradients = []
    for module in (net, with_surrogate(graph, "triangle")):
        point = x.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(F.cross_entropy(module(point), y), point)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
    other = WhiteBoxModel(net, "surrogate:arctan").gradient(x, y, cross_entropy).gradient
    assert not torch.allclose(other, gradients[0], rtol=0.01)


def test_the_exact_gradient_is_zero() -> None:
    net, x = resnet().eval(), images()
    white_box = WhiteBoxModel(net, "exact")
    assert white_box.gradient(x, torch.arange(6), cross_entropy).gradient.abs().max() == 0
    assert probes.finite_difference_error(net, x, torch.arange(6)) == 0


def test_half_precision_is_not_used_where_spikes_would_move() -> None:
    net, x = resnet().eval(), images()
    white_box = WhiteBoxModel(net, "surrogate:triangle", "bfloat16")
    full = WhiteBoxModel(net, "surrogate:triangle").gradient(x, torch.arange(6), cross_entropy)
    torch.testing.assert_close(white_box.gradient(x, torch.arange(6), cross_entropy).gradient, full.gradient)


def test_thresholds_are_attacked_through_two_surrogates_and_nothing_else_is() -> None:
    x = images(2)
    net, plain = resnet().eval(), nets.build("resnet", DIGITS, seed=0, width=4).eval()
    both = ["surrogate:triangle", "surrogate:arctan"]
    assert stepped(net, x)
    assert not stepped(plain, x)
    assert [str(one) for one in gradients_of(plain, None, x)] == ["exact"]
    assert [str(one) for one in gradients_of(net, None, x)] == both
    attach(net, "usf")
    assert [str(one) for one in gradients_of(net, None, x)] == ["rule", *both]
    assert [str(one) for one in gradients_of(net, "both", x)] == ["rule", "exact"]
    assert [str(one) for one in gradients_of(net, "surrogate:sigmoid", x)] == ["surrogate:sigmoid"]


def test_a_signal_for_each_example_reaches_every_time_step() -> None:
    signal, like = noise(2, 3), noise(8, 3, 5, 5)
    spread = Convolution((1, 1), (0, 0), (1, 1), 1).spread(signal, like)
    for step in range(4):
        for example in range(2):
            assert (spread[2 * step + example] == signal[example][:, None, None]).all()


@pytest.mark.parametrize("rule", ["fa", "brsf", "dfa"])
def test_other_rules_train_spiking_networks_too(rule: str) -> None:
    net, x, y = resnet(), images(), torch.arange(6)
    attach(net, rule)
    net.train()
    net.rules.backward(net, x, lambda logits: F.cross_entropy(logits, y, reduction="none"))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.rules.input_gradient(net, x, lambda logits: logits.sum(1)).gradient.shape == x.shape


@pytest.mark.slow
def test_training_through_the_surrogate_learns_and_the_diagnosis_goes_through() -> None:
    net = resnet(width=8)
    attach(net, "bp")
    done = train.train(net, datasets.load_examples("digits", "train"), Recipe(epochs=6, crop=1))
    assert done.val_accuracy is not None
    assert done.val_accuracy > 0.7
    test = datasets.load_examples("digits", "test", 80)
    data = torch.from_numpy(test.x).float() / 255, torch.from_numpy(test.y)
    exact, soft = (
        evaluate(net, data, gradient=kind, eps=0.1, steps=10).robust_accuracy
        for kind in ("exact", "surrogate:triangle")
    )
    assert soft < exact - 0.1
    found = {flag.name: flag for flag in diagnose(net, data, gradient="exact", steps=10, queries=50).checks}
    assert found["zero-gradient"].fired
    assert "surrogate-beats-exact" in found
