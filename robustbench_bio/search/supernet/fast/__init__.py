"""The supernet's edges evaluated together: for CPUs only, equal to the plain way up to rounding, several times faster.

Limits: separable and dilated convolutions under rules that are fully described by a feedback matrix (bp, fa, usf, frsf,
brsf), and pools and skips, which all edges from a state have in common; anything else runs the plain way inside it.
Channels-last order of memory, no autocast, gradients that are not twice differentiable. `SearchCell` alone enters it,
where `shares_work` allows; `Supernet(fast=False)` turns it off. May be added: another operation, with a test against
the plain way in float64; never anything that only this way can compute.
"""
