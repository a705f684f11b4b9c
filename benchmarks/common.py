"""What the benchmarks share: progress, interruption, networks and images, time and memory in fresh processes."""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

#: Where CIFAR-10 and the reference network lie unless options say otherwise; the repository holds neither.
DEFAULT_DATA = Path(os.environ.get("BIOROBUST_SHARED", "../shared/data"))

#: What is measured where they are missing: this network of the zoo and its own test images.
OWN_NETWORK, OWN_DATASET = "bp-resnet20", "digits"

T = TypeVar("T")

#: Where Linux shows the highest resident memory of this process, and where it can be told to forget it.
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark may be told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="the smallest sizes that show that it runs; judges nothing"
    )
    return parser


def command_line(main: Callable[[], int | None]) -> NoReturn:
    """Run a benchmark and exit with its status; Ctrl-C ends it in one line with status 130."""
    try:
        status = main()
    except KeyboardInterrupt:
        note("stopped before the end by Ctrl-C")
        status = 130
    sys.exit(status)


def note(line: str) -> None:
    """Say something that is no result: progress, or what is skipped and why."""
    print(line, file=sys.stderr, flush=True)


def steps(items: Iterable[T], name: Callable[[T], str] = str) -> Iterator[T]:
    """Yield the items, and note of each which it is and, from the second on, how long all that remain may take."""
    everything = list(items)
    started = time.perf_counter()
    for done, item in enumerate(everything):
        left = remaining(started, done, len(everything))
        note(f"{done + 1} of {len(everything)}: {name(item)}{left}")
        yield item


def remaining(started: float, done: int, total: int) -> str:
    """Return ", about N s left" at the pace since `started`, or "" before anything is done."""
    if done == 0:
        return ""
    seconds = (time.perf_counter() - started) / done * (total - done)
    return f", about {seconds:.0f} s left" if seconds < 120 else f", about {seconds / 60:.0f} min left"


def add_network(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark of attacks be told where its network and images are, and how many."""
    parser.add_argument("--cifar10", type=Path, metavar="FILE.npz", help="CIFAR-10 test images with MedMNIST key names")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE.safetensors", help="weights of a ResNet-20 trained on CIFAR-10"
    )
    parser.add_argument("--n", type=int, default=256, help="images at most; a slow comparison takes fewer by itself")
    parser.add_argument("--threads", type=int, default=os.cpu_count())


def find_network(options: argparse.Namespace) -> None:
    """Fill in the default files of CIFAR-10; where they are missing, note that a network of the zoo takes the place.

    Exits with status 2 where a file that was named is missing, or only one of the two was named.
    """
    if options.cifar10 is None and options.reference is None:
        files = DEFAULT_DATA / "cifar10" / "exact.npz", DEFAULT_DATA / "reference" / "resnet20-cifar10.safetensors"
        if all(file.exists() for file in files):
            options.cifar10, options.reference = files
        else:
            note(f"skipped CIFAR-10: no {' and '.join(map(str, files))}, name them by --cifar10 and --reference; "
                 f"measured instead: {OWN_NETWORK} on {OWN_DATASET}")  # fmt: skip
        return
    for option, file in (("--cifar10", options.cifar10), ("--reference", options.reference)):
        if file is None or not file.exists():
            note(f"error: expected a file for {option}, got {file}: name both, or neither for {OWN_DATASET}")
            sys.exit(2)


def network(options: argparse.Namespace, n: int) -> tuple[Any, Any, Any]:
    """Return the network in eval mode and the first n test images in [0, 1] with labels.

    The reference ResNet-20 and CIFAR-10 where `find_network` left their files, else the zoo's on digits.
    """
    import torch

    from robustbench_bio import load_data, load_model, nets
    from robustbench_bio.nets.base import Inputs
    from robustbench_bio.zoo.loading import load_weights

    torch.set_num_threads(options.threads)
    if options.cifar10 is None:
        return load_model(OWN_NETWORK, dataset=OWN_DATASET), *load_data(OWN_DATASET, split="test", n_examples=n)
    inputs = Inputs((3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    net = nets.build("resnet", inputs, seed=0, depth=20)
    load_weights(net, options.reference)
    x, y = load_data("cifar10", n_examples=n, data_file=options.cifar10)
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
