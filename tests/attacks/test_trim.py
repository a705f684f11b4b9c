"""Kernels trimmed in a trace compute what they computed before."""

import itertools
import random

import pytest
import torch
from torch import nn

from robustbench_bio.attacks.access.trace import trace

CASES = list(itertools.product((1, 2, 3, 5), (1, 2, 4, 7), (1, 3, 5, 7), (1, 2, 3), (1, 2, 3), (0, 1, 2, 4, 6, 9)))


class Maps(nn.Module):
    """A convolution whose every output shows in the logits."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x).flatten(1)


def fits(case):
    height, width, kernel, dilation, _, padding = case
    return min(height, width) + 2 * padding > dilation * (kernel - 1)


@pytest.mark.parametrize("case", random.Random(0).sample([case for case in CASES if fits(case)], 40), ids=str)  # noqa: S311
def test_a_trimmed_kernel_gives_the_same_maps(case):
    height, width, kernel, dilation, stride, padding = case
    net = Maps(nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups=2)).double().eval()
    x = torch.randn(3, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trace(net, x)(x), net(x), atol=1e-12, rtol=0)


def test_what_meets_no_pixel_is_gone_and_nothing_else():
    dilated = Maps(nn.Conv2d(3, 3, 5, 1, 4, 2, groups=3)).eval()
    kernels = [b for name, b in trace(dilated, torch.rand(2, 3, 2, 2)).named_buffers() if "trimmed" in name]
    assert [tuple(k.shape) for k in kernels] == [(3, 1, 1, 1)]
    torch.testing.assert_close(kernels[0][:, 0, 0, 0], dilated.conv.weight[:, 0, 2, 2])
    untouched = Maps(nn.Conv2d(3, 3, 5, 1, 4, 2, groups=3)).eval()
    assert not [name for name, _ in trace(untouched, torch.rand(2, 3, 5, 5)).named_buffers() if "trimmed" in name]
