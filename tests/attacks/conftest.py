"""What tests of attacks share."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustbench_bio.datasets import load_examples
from robustbench_bio.nets import Inputs, build


@pytest.fixture(scope="session")
def real_network(cifar10_npz: Path, reference_resnet20: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """A ResNet-20 trained by others and 64 test images of CIFAR-10 with their labels."""
    inputs = Inputs((3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    net = build("resnet", inputs, seed=0, depth=20)
    net.load_state_dict(load_file(reference_resnet20))
    data = load_examples(str(cifar10_npz), "test", 64)
    return net.eval(), torch.from_numpy(data.x).float() / 255, torch.from_numpy(data.y)
