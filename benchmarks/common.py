"""What the benchmarks share: the reference network, its images, and timing in fresh processes."""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEFAULT_DATA = Path(os.environ.get("BIOROBUST_SHARED", "../shared/data"))


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-file", type=Path, default=DEFAULT_DATA / "cifar10" / "exact.npz")
    parser.add_argument("--weights", type=Path, default=DEFAULT_DATA / "reference" / "resnet20-cifar10.safetensors")
    parser.add_argument("--n", type=int, default=256, help="images")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def reference(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return the reference ResNet-20 and the first n exact CIFAR-10 test images with labels."""
    import torch

    from robustbench_bio import load_data, nets, zoo
    from robustbench_bio.nets.base import Inputs

    torch.set_num_threads(options.threads)
    inputs = Inputs((3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    net = nets.build("resnet", inputs, seed=0, depth=20)
    zoo.load_weights(net, options.weights)
    x, y = load_data("cifar10", n_examples=options.n, data_file=options.data_file)
    return net.eval(), x, y


def timed(work: Callable[[], float]) -> dict[str, float]:
    """Run `work`, which returns a robust accuracy; return it with seconds and the peak memory of the process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    robust = work()
    seconds = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"robust": robust, "seconds": seconds, "memory": grown / 1024}


def in_fresh_process(script: str, *args: str) -> dict[str, Any]:
    """Run a benchmark script anew and return the JSON document of its last line."""
    done = subprocess.run([sys.executable, script, *args], check=True, capture_output=True, text=True)  # noqa: S603
    document: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return document


def machine(threads: int) -> str:
    import torch

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"
