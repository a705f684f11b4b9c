import itertools
import json
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio import load_data, load_model, nets
from robustbench_bio.cli import app as cli
from robustbench_bio.nets import Inputs
from robustbench_bio.nets import cost as measure
from robustbench_bio.nets.base import Net, weight_layers
from robustbench_bio.nets.firing import firing, reached, spiking
from robustbench_bio.nets.spiking import LIF, over_time
from robustbench_bio.records.motifs import Motif, MotifGenotype

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

DIGITS = Inputs((1, 8, 8), 10, (0.3,), (0.4,))
MOTIFS = MotifGenotype(
    name="two", source="Made up.", inputs=2,
    cells=[Motif(name="m", nodes=[[("conv_3x3_p", 0), ("conv_5x5_n", 1)], [("skip_connect", 1), ("conv_3x3", 2)]])] * 6,
)  # fmt: skip


def images(n: int, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def built(name: str, **params: object) -> Net:
    return nets.build(name, DIGITS, seed=0, **params)


class Tiny(nn.Module):
    """Stem 1×1 of weight one, neurons that fire where the pixel is above 1/2, a convolution, neurons, linear."""

    def __init__(self, conv: nn.Conv2d, steps: int = 3) -> None:
        super().__init__()
        self.steps, self.coding = steps, "direct"
        with torch.random.fork_rng():
            self.stem, self.linear = nn.Conv2d(1, conv.in_channels, 1, bias=False), nn.Linear(conv.out_channels, 5)
        nn.init.ones_(self.stem.weight)
        self.first, self.conv, self.second = LIF(tau=1), conv, LIF(tau=1, threshold=1e6)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.first(self.stem(x).expand(self.steps, -1, -1, -1, -1))
        return self.linear(self.second(over_time(self.conv, spikes)).mean((0, 3, 4)))  # type: ignore[no-any-return]


def conv(c_in: int, c_out: int, kernel: int, **kinds: Any) -> nn.Conv2d:
    with torch.random.fork_rng():
        return nn.Conv2d(c_in, c_out, kernel, bias=False, **kinds)


def looped(layer: nn.Conv2d, spikes: Tensor) -> int:
    """Count, one by one, the additions that a convolution of spikes [B, C, H, W] needs."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = layer.padding
    rows, columns = layer(spikes).shape[2:]
    per_in, per_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    found = 0
    for image, out in itertools.product(spikes, range(layer.out_channels)):
        channels = range(out // per_out * per_in, (out // per_out + 1) * per_in)
        for row, column, c, i, j in itertools.product(range(rows), range(columns), channels, range(kh), range(kw)):
            y, x = row * sh - ph + i * dh, column * sw - pw + j * dw
            inside = 0 <= y < spikes.shape[2] and 0 <= x < spikes.shape[3]
            found += inside and bool(image[c, y, x])
    return found


@pytest.mark.parametrize(
    "kinds",
    [
        {"kernel": 3, "padding": 1},
        {"kernel": 3},
        {"kernel": 3, "padding": 1, "stride": 2},
        {"kernel": 1, "stride": 2},
        {"kernel": 3, "padding": 2, "dilation": 2},
        {"kernel": 5, "padding": 2, "groups": 2},
        {"kernel": 3, "padding": 1, "stride": 2, "groups": 4},
    ],
)
def test_synaptic_operations_are_those_of_a_loop_over_every_synapse(kinds: dict[str, Any]) -> None:
    layer = conv(4, 8, **kinds)
    spikes = (images(2, shape=(4, 6, 5)) > 0.6).float()
    assert reached(layer, spikes) == looped(layer, spikes) > 0


def test_a_spike_at_the_border_reaches_fewer_outputs() -> None:
    layer = conv(1, 2, 3, padding=1)
    at = torch.zeros(1, 1, 4, 4)
    for place, outputs in (((0, 0), 4), ((0, 1), 6), ((1, 1), 9)):
        assert reached(layer, at.index_put((torch.tensor(0), torch.tensor(0), *map(torch.tensor, place)),
                                           torch.tensor(1.0))) == 2 * outputs  # fmt: skip
    with torch.random.fork_rng():
        linear = nn.Linear(4, 7)
    assert reached(linear, torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])) == 3 * 7


def test_a_network_whose_spikes_are_known_is_counted_as_by_hand() -> None:
    # Two of four images have one bright pixel, at a corner and inside: every step fires there, in both channels.
    x = torch.zeros(4, 1, 4, 4)
    x[0, 0, 0, 0] = x[1, 0, 2, 1] = 0.9
    x[2, 0, 1, 1] = 0.4
    net = Tiny(conv(2, 6, 3, padding=1, groups=2)).train()
    found = firing(net, x)
    assert (found.steps, found.examples) == (3, 4)
    assert [(n.layer, n.size, n.spikes) for n in found.neurons] == [("first", 32, 2 * 2 * 3 / 4), ("second", 96, 0)]
    assert found.neurons[0].rate == 12 / (4 * 3 * 32)
    assert found.spikes == 3
    assert found.rate == 12 / (4 * 3 * (32 + 96))
    stem, linear, grouped = found.synapses
    # Each spike reaches the three outputs of its group: at 4 places from the corner, at 9 from inside.
    assert grouped == ("conv", 3 * 2 * 3 * (4 + 9) / 4, 0, 0, 6 * 16 * 9)
    assert stem == ("stem", 0, 3 * 32, 2 * 32, 32), "an image is multiplied at every time step"
    assert linear == ("linear", 0, 30, 0, 30), "mean rates are multiplied once"
    assert found.total == ("", 58.5, 126, 64, 32 + 864 + 30)
    assert found.picojoules == pytest.approx(0.9 * 58.5 + 4.6 * 126)
    assert net.training, "the network is left as it was"


NETWORKS: dict[str, dict[str, Any]] = {
    "spiking-resnet": {"blocks": 1, "width": 4, "steps": 3},
    "spiking-cnn": {"widths": (6, 4), "steps": 3},
    "motifs": {"genotype": MOTIFS, "channels": 2, "steps": 3},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_counted_as_autograd_counts_it(name: str) -> None:
    net, x = built(name, **NETWORKS[name]).eval(), images(70)
    expected = dict.fromkeys(weight_layers(net), 0.0)
    fired: list[float] = []

    def count(layer: str) -> Any:
        def hook(module: nn.Conv2d, args: tuple[Tensor], _out: Tensor) -> None:
            spikes = args[0].detach().clone()
            if not fired or len(spikes) == len(x) or not ((spikes == 0) | (spikes == 1)).all():
                return
            # The sum of all outputs of a layer of ones has the fan-out of each input for its derivative.
            point = torch.zeros_like(spikes[:1]).requires_grad_(True)
            ones = torch.ones_like(module.weight)
            (fan_out,) = torch.autograd.grad(F.conv2d(point, ones, None, module.stride, module.padding).sum(), point)
            expected[layer] += (spikes.double() * fan_out).sum().item() / len(x)

        return hook

    hooks = [layer.register_forward_hook(count(found)) for found, layer in weight_layers(net).items()]
    neurons = [module for module in net.modules() if isinstance(module, LIF)]
    hooks += [m.register_forward_hook(lambda _m, _a, out: fired.append(out.sum().item())) for m in neurons]
    net(x).sum()
    total = sum(fired) / len(x)
    for hook in hooks:
        hook.remove()
    found = firing(net, x)
    assert {layer.layer: layer.accumulates for layer in found.synapses} == pytest.approx(expected)
    assert found.total.accumulates > 0
    assert found.spikes == pytest.approx(total)
    assert found.rate == pytest.approx(total / (3 * sum(layer.size for layer in found.neurons)))
    assert spiking(net)
    # The same layers, each once: what a network without time multiplies.
    once = built(name, **NETWORKS[name] | {"steps": 1})
    assert found.total.relu_macs == sum(measure.macs(once, DIGITS.shape).values())


def test_frames_are_multiplied_once_each_and_a_network_with_relu_does_not_spike() -> None:
    moving = Inputs((3, 8, 8), 10, (0.3,) * 3, (0.4,) * 3)
    net = nets.build("spiking-resnet", moving, seed=0, blocks=1, width=4, steps=3, coding="frames")
    found = firing(net, images(2, shape=(3, 8, 8)))
    stem = found.synapses[0]
    assert (stem.accumulates, stem.macs, stem.repeated, stem.relu_macs) == (0, 3 * 4 * 9 * 64, 0, 3 * 4 * 9 * 64)
    black = firing(net, torch.ones(2, 3, 8, 8) * 0.3)
    assert black.synapses[0].macs == stem.macs, "frames of zeros and ones are no spikes of neurons"
    relu = built("motifs", genotype=MOTIFS, channels=2, neurons="relu")
    assert not spiking(relu)
    found = firing(relu, images(2))
    assert (found.neurons, found.spikes, found.rate, found.total.accumulates, found.total.repeated) == ([], 0, 0, 0, 0)
    assert found.total.macs == found.total.relu_macs == sum(measure.macs(relu, DIGITS.shape).values())


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["biorobust", "show", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("model", ["bp-spiking-resnet", "stdp-spiking-cnn"])
def test_what_spikes_cost_is_shown(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads(shown(capsys, monkeypatch, model, "--json"))
    found = firing(load_model(model), load_data("digits", "test", 200)[0])
    assert facts["spikes measured on"] == {"split": "test", "examples": 200, "steps": 4}
    assert facts["firing rate"]["mean"] == found.rate
    assert 0.01 < found.rate < 0.5
    assert facts["firing rate"]["layers"].keys() == facts["spikes per example"]["layers"].keys()
    assert sum(facts["spikes per example"]["layers"].values()) == facts["spikes per example"]["spikes"]
    operations, energy = facts["synaptic operations per example"], facts["energy with spikes"]
    assert operations["accumulates"] == found.total.accumulates
    assert energy["picojoules"] == pytest.approx(0.9 * found.total.accumulates + 4.6 * found.total.macs, abs=0.1)
    assert energy["relu_picojoules"] == pytest.approx(4.6 * operations["relu_macs"], abs=0.1)
    assert energy["picojoules"] < energy["relu_picojoules"] < facts["energy per inference"]["picojoules"]
    assert "as if every synapse multiplied" in facts["energy per inference"]["how"]
    if model == "bp-spiking-resnet":
        text = " ".join(shown(capsys, monkeypatch, model).replace("│", " ").split())  # cells wrap in narrow terminals
        assert f"{100 * found.rate:.1f} % (share of neurons × time steps that spike)" in text
        assert re.search(rf"stages.0.0.lif1 {100 * found.neurons[0].rate:.1f}, stages.0.0.lif2", text)
        assert f"{energy['picojoules']:,.0f} pJ, " in text
        assert f"the {energy['relu_picojoules']:,.0f} pJ of one pass with ReLU" in text


def test_a_network_without_neurons_has_nothing_of_this(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads(shown(capsys, monkeypatch, "hebbian-softhebb", "--json"))
    assert not {"spikes measured on", "firing rate", "energy with spikes"} & facts.keys()
