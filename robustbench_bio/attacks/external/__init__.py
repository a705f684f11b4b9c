"""Backends: other libraries that run an attack in place of ours, under the same gate and the same judge."""

from robustbench_bio.attacks.external.base import BACKENDS, NATIVE, Backend, Cell, Job, Peer, names, peer

__all__ = ["BACKENDS", "NATIVE", "Backend", "Cell", "Job", "Peer", "names", "peer"]
