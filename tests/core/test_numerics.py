"""TF32 is off while we compute, and afterwards as it was."""

import pytest
import torch

from robustbench_bio.core.numerics import full_float32


def state():
    def read(get):
        try:
            return get()
        except RuntimeError:
            return "unreadable"

    return [
        read(lambda: torch.backends.cudnn.conv.fp32_precision),
        read(lambda: torch.backends.cudnn.rnn.fp32_precision),
        read(lambda: torch.backends.cuda.matmul.fp32_precision),
        read(lambda: torch.backends.cudnn.allow_tf32),
    ]


def older(conv, matmul):
    torch.backends.cudnn.allow_tf32 = conv
    torch.backends.cuda.matmul.allow_tf32 = matmul


def newer(conv, matmul):
    torch.backends.cudnn.conv.fp32_precision = conv
    torch.backends.cuda.matmul.fp32_precision = matmul


@pytest.fixture
def restored():
    yield
    newer("tf32", "none")
    torch.backends.cudnn.rnn.fp32_precision = "tf32"


@pytest.mark.parametrize(
    "switch",
    [
        lambda: None,
        lambda: older(conv=False, matmul=True),
        lambda: older(conv=True, matmul=True),
        lambda: newer("tf32", "tf32"),
        lambda: newer("ieee", "tf32"),
    ],
    ids=["untouched", "older: products only", "older: both", "newer: both", "newer: products only"],
)
def test_float32_is_whole_inside_and_as_before_outside(restored, switch):
    switch()
    before = state()
    with full_float32():
        inside = state()
    assert inside[0] in ("ieee", "none")
    assert inside[2] == "ieee"
    assert state() == before
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert state() == before


def test_older_readers_find_their_switch_inside():
    with full_float32():
        assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_convolution_on_a_gpu_is_as_exact_as_on_a_cpu():
    x, w = torch.randn(8, 64, 16, 16, dtype=torch.float64), torch.randn(64, 64, 3, 3, dtype=torch.float64)
    exact = torch.nn.functional.conv2d(x, w)
    with full_float32():
        found = torch.nn.functional.conv2d(x.float().cuda(), w.float().cuda()).cpu()
    assert (found - exact).abs().max() < 1e-5 * exact.std()
