"""Spiking networks of motifs: the three scales of MSE-NAS (arXiv:2304.10749)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import NETS, Inputs
from robustbench_bio.nets.checks import choice, whole
from robustbench_bio.nets.operations import named
from robustbench_bio.nets.spiking import LIF, TimedNet, normed, over_time
from robustbench_bio.records.motifs import Coding, Motif, MotifGenotype, parse_link, reduction_cells

Neurons = Callable[[], nn.Module]


class Projection(nn.Module):
    """Neurons, what connects them, and a gate: currents [T, N, C, H, W] → currents.

    `synapses` make currents from spikes, the same at each time step; sign "p" keeps what is positive, "n" what is
    negative.
    """

    def __init__(self, neurons: nn.Module, synapses: nn.Module, sign: str = "") -> None:
        super().__init__()
        self.neurons, self.synapses, self.sign = neurons, synapses, sign

    def forward(self, x: Tensor) -> Tensor:
        y = over_time(self.synapses, self.neurons(x))
        if self.sign == "p":
            return y.clamp_min(0)
        return y.clamp_max(0) if self.sign == "n" else y


class Halving(nn.Module):
    """Half the resolution, or a quarter and so on: spikes [N, c_in, H, W] → currents [N, c_out, ⌈H/2⌉, ⌈W/2⌉].

    concat[conv0(x), conv1(x shifted by one pixel)] → further convolutions → batch norm, all 3×3 of stride 2. The
    released code has no more than one further convolution; as many as it takes are ours, as are sides of odd
    length, where a row of zeros takes the place of the one that the shift pushes out. `times` is one or more.
    """

    def __init__(self, c_in: int, c_out: int, times: int = 1) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(c_in, c_out // 2, 3, 2, 1, bias=False)
        self.conv1 = nn.Conv2d(c_in, c_out - c_out // 2, 3, 2, 1, bias=False)
        self.further = nn.Sequential(*(nn.Conv2d(c_out, c_out, 3, 2, 1, bias=False) for _ in range(times - 1)))
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        shifted = F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        return self.norm(self.further(torch.cat([self.conv0(x), self.conv1(shifted)], 1)))  # type: ignore[no-any-return]


class MotifCell(nn.Module):
    """A motif: earlier outputs [T, N, ·, ·, ·] → its nodes side by side, [T, N, len(nodes)·channels, H, W].

    Modules: `preprocess.<i>` for input i, `links.<node>-<i>` and `feedback.<node>` for links that are convolutions.

    Args:
        widths: channels of each input.
        halvings: how often each input has to be halved.
        channels: of every node.
        neurons: makes the neurons that stand before each convolution.
    """

    def __init__(
        self, motif: Motif, widths: Sequence[int], halvings: Sequence[int], channels: int, neurons: Neurons
    ) -> None:
        super().__init__()
        self.motif = motif
        self.preprocess = nn.ModuleList(
            Projection(neurons(), Halving(width, channels, times) if times else normed(width, channels, 1))
            for width, times in zip(widths, halvings, strict=True)
        )
        self.links, self.feedback = nn.ModuleDict(), nn.ModuleDict()

        def projection(op: str) -> Projection | None:
            link = parse_link(op)
            return Projection(neurons(), normed(channels, channels, link.kernel), link.sign) if link.kernel else None

        for i, node in enumerate(motif.nodes):
            for j, (op, _) in enumerate(node):
                if (made := projection(op)) is not None:
                    self.links[f"{i}-{j}"] = made
        for i, (op, _) in enumerate(motif.feedback, 1):
            if (made := projection(op)) is not None:
                self.feedback[str(i)] = made

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        states = [layer(x) for layer, x in zip(self.preprocess, inputs, strict=True)]
        for i, node in enumerate(self.motif.nodes):
            total = torch.zeros_like(states[0])
            for j, (op, state) in enumerate(node):
                if op != "none":
                    total = total + (states[state] if op == "skip_connect" else self.links[f"{i}-{j}"](states[state]))
            if i and self.motif.feedback:
                op, state = self.motif.feedback[i - 1]
                if op != "none":
                    states[state] = states[state] + (total if op == "skip_connect" else self.feedback[str(i)](total))
            states.append(total)
        return torch.cat(states[self.motif.inputs :], 2)


@NETS.register("motifs")
class MotifNet(TimedNet):
    """Stem, a cell for each motif, LIF, global average pool, linear; logits are the mean over time steps.

    Cells in `reduction_cells` halve the map, double C and have no motif. Every other cell reads the outputs of the
    last two, three or four cells, the stem's output where there are not that many yet. Signals between layers are
    currents, [T, N, C, H, W]; neurons stand before every convolution but the stem's.

    Modules: `stem`, `cells.<i>`, `neurons`, `classifier`. All learn by one rule; a motif prescribes none.

    Args:
        channels: C; the stem has 3C, nodes of the first cells have C.
        steps, coding: see `TimedNet`; the stem for images has two convolutions, that for frames of event cameras one.
        neurons: "lif", or "relu" for the same network without spikes and without time, as a control.
        tau, threshold, surrogate: of all neurons, see `LIF`.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        genotype: MotifGenotype,
        channels: int = 48,
        steps: int = 10,
        coding: Coding = "direct",
        neurons: Literal["lif", "relu"] = "lif",
        tau: float = 2.0,
        threshold: float = 0.5,
        surrogate: str = "triangle",
    ) -> None:
        super().__init__(inputs)
        if not isinstance(genotype, MotifGenotype):
            raise UserError(f"expected a genotype of motifs for the network motifs, got {type(genotype).__name__}")
        whole("channels", channels)
        choice("neurons", neurons, ("lif", "relu"))
        c_in = self.take_time(steps, coding)
        if neurons == "relu" and coding == "direct":
            self.steps = 1

        def made() -> nn.Module:
            return LIF(tau, threshold, surrogate) if neurons == "lif" else nn.ReLU()

        self.stem = _stem(c_in, 3 * channels, coding)
        self.reductions = reduction_cells(len(genotype.cells), coding)
        self.reads = genotype.inputs
        self.cells = nn.ModuleList()
        widths, halved = [3 * channels] * self.reads, [0] * self.reads
        for i, motif in enumerate(genotype.cells):
            if i in self.reductions:
                channels *= 2
                self.cells.append(Projection(made(), Halving(widths[-1], 3 * channels)))
                widths.append(3 * channels)
            else:
                missing = [halved[-1] - times for times in halved[-self.reads :]]
                self.cells.append(MotifCell(motif, widths[-self.reads :], missing, channels, made))
                widths.append(len(motif.nodes) * channels)
            halved.append(halved[-1] + (i in self.reductions))
        self.neurons = made()
        self.classifier = nn.Linear(widths[-1], inputs.classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.currents(x)] * self.reads
        for cell in self.cells:
            last = cell(outputs) if isinstance(cell, MotifCell) else cell(outputs[-1])
            outputs = [*outputs[1:], last]
        # A linear layer and a mean over time change places: the mean rates are classified once.
        return self.classifier(self.neurons(outputs[-1]).mean((0, 3, 4)))  # type: ignore[no-any-return]

    def genotype_rules(self) -> Mapping[str, str]:
        return {}


def _stem(c_in: int, c_out: int, coding: Coding) -> nn.Sequential:
    """Return convolutions and batch norm, without neurons; the first of images has three channels, or as many as x."""

    def conv(before: int, after: int) -> nn.Conv2d:
        return nn.Conv2d(before, after, 3, padding=1, bias=False)

    if coding == "frames":
        return named(conv=conv(c_in, c_out), norm=nn.BatchNorm2d(c_out))
    between = max(3, c_in)
    return named(conv0=conv(c_in, between), conv1=conv(between, c_out), norm=nn.BatchNorm2d(c_out))
