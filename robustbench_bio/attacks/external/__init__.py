"""Backends: other libraries that run an attack in place of ours, under the same gate and the same judge.

One module for each library; another one registers a `Backend` in `BACKENDS` and is found by its name.
"""

from robustbench_bio.attacks.external.base import BACKENDS, NATIVE, Backend, Job, Peer, PeerAttack, names, peer

__all__ = ["BACKENDS", "NATIVE", "Backend", "Job", "Peer", "PeerAttack", "names", "peer"]
