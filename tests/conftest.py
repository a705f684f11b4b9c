"""One thread for all tests, a home of its own for each, and fixtures for real data, which some machines lack."""

import os
from collections.abc import Iterator
from pathlib import Path

# Threads that wait for each other cost small networks more than they give; set before torch counts the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Hold torch to one thread: tiny tensors are slower on several, and pytest-xdist fills the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep results and data of the person who runs the tests out of them, and them out of the tests."""
    monkeypatch.setenv("BIOROBUST_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("BIOROBUST_DATA", raising=False)


@pytest.fixture
def global_rng_untouched() -> Iterator[None]:
    """Fail a test whose subject draws from torch's global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state was touched"


@pytest.fixture(scope="session")
def cifar10_npz() -> Path:
    """CIFAR-10 with MedMNIST key names: 846 exact test images; skipped where the shared data is absent."""
    packed = SHARED / "cifar10" / "exact.npz"
    if not packed.exists():
        pytest.skip("the shared CIFAR-10 data is not here")
    return packed


@pytest.fixture(scope="session")
def reference_resnet20() -> Path:
    """Weights of a ResNet-20 trained by others on the official CIFAR-10."""
    path = SHARED / "reference" / "resnet20-cifar10.safetensors"
    if not path.exists():
        pytest.skip("the shared reference network is not here")
    return path


@pytest.fixture(scope="session")
def trained_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Card file of a small network that learnt the digits by fa for two epochs, its weights beside it."""
    from robustbench_bio.records.card import ModelCard, Recipe, TrainedNet
    from robustbench_bio.training import run as runs

    entry = TrainedNet(recipe=Recipe(epochs=2, batch_size=32), seed=3)
    net = {"name": "mlp", "hidden": [32]}
    card = ModelCard(id="tiny-fa", title="Tiny", rule="fa", net=net, datasets={"digits": entry})
    run = runs.train_card(card, "digits", tmp_path_factory.mktemp("tiny"))
    return run.folder / "tiny-fa.toml"
