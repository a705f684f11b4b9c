"""Which outcomes of a board are measured again: every one has a chance, the smaller the costlier its attack."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from robustbench_bio.records.entry import Entry
from robustbench_bio.records.result import EvalSpec

#: Examples that are measured again together: attacks take nearly as long for one as for so many, costly ones less so.
BATCH, EXPENSIVE_BATCH = 100, 25

#: Forward passes for one example from which an attack is expensive.
EXPENSIVE = 2000

#: The place of an entry's finding.
DIAGNOSIS = -1


class Remeasurement(NamedTuple):
    """Some outcomes of one entry that are measured again, or its diagnosis.

    Attributes:
        place: which of its measurements, or `DIAGNOSIS`.
        rows: places of the examples.
    """

    file: Path
    place: int
    rows: tuple[int, ...]


def sample(entries: dict[Path, Entry], fraction: float, rng: random.Random) -> list[Remeasurement]:
    """Return what to measure again: `fraction` of the outcomes, each entry at least once.

    Outcomes of one measurement have the same chance in all entries. Between measurements it shrinks by the root of the
    cost, which for a given time finds the most (Neyman's allocation): AutoAttack costs hundreds of PGDs, and with the
    same chance for all would take nearly all of the time for a few of the outcomes.
    """
    files = sorted(entries)
    rng.shuffle(files)
    shared = _shared(entries, files, rng)
    rng.shuffle(shared)
    chosen = _chosen(shared, _chances([(one.cost, one.outcomes) for one in shared], fraction), rng.random())
    cheapest_first = sorted(shared, key=lambda one: one.cost)
    for file in set(files) - {file for file, _ in chosen}:
        first = next(batch for one in cheapest_first for batch in one.batches if batch.file == file)
        chosen[first.file, first.place] = list(first.rows)
    parts = [Remeasurement(file, place, tuple(sorted(rows))) for (file, place), rows in chosen.items()]
    judged = [file for file in files if entries[file].finding is not None]
    diagnoses = rng.sample(judged, math.ceil(fraction * len(judged)))
    return parts + [Remeasurement(file, DIAGNOSIS, ()) for file in diagnoses]


class _SharedMeasurement(NamedTuple):
    """One measurement of all entries that have it, in batches of random examples."""

    cost: float
    batches: list[Remeasurement]

    @property
    def outcomes(self) -> int:
        return sum(len(batch.rows) for batch in self.batches)


def _shared(entries: dict[Path, Entry], files: Sequence[Path], rng: random.Random) -> list[_SharedMeasurement]:
    """Return the measurements of all entries; in each, one batch of every entry comes before a second of any."""
    places: dict[tuple[str, str], dict[Path, int]] = {}
    for file in files:
        for place, measured in enumerate(entries[file].measurements):
            asked = measured.spec.title, str(sorted(measured.spec.params.items()))
            places.setdefault(asked, {})[file] = place
    shared = []
    for place_of in places.values():
        cost = max(expected_cost(entries[file].measurements[place].spec) for file, place in place_of.items())
        size = EXPENSIVE_BATCH if cost >= EXPENSIVE else BATCH
        rows = {file: rng.sample(range(entries[file].n), entries[file].n) for file in place_of}
        batches = [
            Remeasurement(file, place_of[file], tuple(drawn[first : first + size]))
            for first in range(0, max(map(len, rows.values())), size)
            for file, drawn in rows.items()
            if first < len(drawn)
        ]
        shared.append(_SharedMeasurement(cost, batches))
    return shared


def _chosen(
    shared: Sequence[_SharedMeasurement], chances: Sequence[float], offset: float
) -> dict[tuple[Path, int], list[int]]:
    """Return (file, place) → rows by systematic sampling: batches at equal steps of summed chance, from `offset`."""
    chosen: dict[tuple[Path, int], list[int]] = {}
    taken, reached = 0, offset
    for one, chance in zip(shared, chances, strict=True):
        reached += chance * len(one.batches)
        wanted = math.floor(reached + 1e-9) - taken
        # Each measurement goes on with the entries where the one before stopped, so that all have their turn.
        for batch in (one.batches[i % len(one.batches)] for i in range(taken, taken + wanted)):
            chosen.setdefault((batch.file, batch.place), []).extend(batch.rows)
        taken += wanted
    return chosen


def expected_cost(spec: EvalSpec) -> float:
    """Return a guess at the forward passes for one example, from what is asked: the claimed seconds may be a lie."""
    params = {name: value for name, value in spec.params.items() if isinstance(value, int | float)}
    runs = 28 if spec.attack == "autoattack" else params.get("targets", 1)  # 1 + 9 + 9·2 runs of 100 steps
    # A step costs a forward and a backward pass, and a backward pass about two forward passes.
    restart = 3 * params.get("steps", 0) * runs + params.get("queries", 0)
    return 1 + params.get("restarts", 1) * restart + params.get("population", 0) * params.get("generations", 0)


def _chances(shared: Sequence[tuple[float, int]], fraction: float) -> list[float]:
    """Return for each (cost, outcomes) the chance of an outcome: `fraction` of all, ∝ 1/√cost, at most 1."""
    wanted = fraction * sum(outcomes for _, outcomes in shared)
    certain: set[int] = set()
    while True:
        # What is certain already is no longer drawn; its share goes to the rest, which may make more certain.
        left = wanted - sum(shared[i][1] for i in certain)
        weight = sum(n / math.sqrt(cost) for i, (cost, n) in enumerate(shared) if i not in certain)
        chances = [
            1.0 if i in certain or weight == 0 else left / (math.sqrt(cost) * weight)
            for i, (cost, _) in enumerate(shared)
        ]
        over = {i for i, chance in enumerate(chances) if chance >= 1} - certain
        if not over:
            return chances
        certain |= over


def workloads(parts: Sequence[Remeasurement], entries: dict[Path, Entry]) -> list[list[Remeasurement]]:
    """Return the parts in workloads for a process each: expensive ones alone and first, an entry's others together."""
    costs = {
        part: math.inf if part.place == DIAGNOSIS else expected_cost(entries[part.file].measurements[part.place].spec)
        for part in parts
    }
    alone = sorted((part for part in parts if costs[part] >= EXPENSIVE), key=lambda part: -costs[part])
    shared: dict[Path, list[Remeasurement]] = {}
    for part in parts:
        if costs[part] < EXPENSIVE:
            shared.setdefault(part.file, []).append(part)
    return [[part] for part in alone] + sorted(shared.values(), key=lambda workload: -len(workload))
