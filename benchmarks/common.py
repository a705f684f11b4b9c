"""What the benchmarks share: the reference network, its images, and time and memory in fresh processes."""

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

#: Where Linux shows the highest resident memory of this process, and where it can be told to forget it.
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser for what all benchmarks of attacks may be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-file", type=Path, default=DEFAULT_DATA / "cifar10" / "exact.npz")
    parser.add_argument("--weights", type=Path, default=DEFAULT_DATA / "reference" / "resnet20-cifar10.safetensors")
    parser.add_argument("--n", type=int, default=256, help="images at most; a slow cell takes fewer by itself")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def reference(options: argparse.Namespace, n: int) -> tuple[Any, Any, Any]:
    """Return the reference ResNet-20 and the first n exact CIFAR-10 test images with labels."""
    import torch

    from robustbench_bio import load_data, nets
    from robustbench_bio.nets.base import Inputs
    from robustbench_bio.zoo import loading as zoo

    torch.set_num_threads(options.threads)
    inputs = Inputs((3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    net = nets.build("resnet", inputs, seed=0, depth=20)
    zoo.load_weights(net, options.weights)
    x, y = load_data("cifar10", n_examples=n, data_file=options.data_file)
    return net.eval(), x, y


def timed(work: Callable[[], float]) -> dict[str, float]:
    """Run `work`, which returns a robust accuracy; return it with the seconds that it took."""
    started = time.perf_counter()
    robust = work()
    return {"robust": robust, "seconds": time.perf_counter() - started}


def memory_now() -> float:
    """Return the resident memory of this process in MiB and forget its peak, so that `memory_peak` starts from here.

    Where the system cannot forget, this is the peak so far: what stays below it is then not seen.
    """
    if FORGET.exists():
        FORGET.write_text("5")
    return memory_peak()


def memory_peak() -> float:
    """Return the highest resident memory of this process in MiB since `memory_now`."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def in_fresh_process(script: str, *args: str) -> dict[str, Any]:
    """Run a benchmark script anew and return the JSON document of its last line; on failure, stop with its message."""
    done = subprocess.run([sys.executable, script, *args], check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode != 0:
        sys.exit(f"{' '.join(args)} failed:\n{done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return document


def machine(threads: int) -> str:
    """Return processor, threads and versions in one line."""
    import torch

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"
