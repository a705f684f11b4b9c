"""The one-pixel attack: differential evolution of a few pixels' places and colours."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat

#: Input values of the members that are painted at once (8 MiB).
VALUES_AT_ONCE = 2**21

#: Fitness of a member that fools the network.
FOOLED = float("inf")

#: Mutation draws three members, distinct from each other and from the one that it replaces.
SMALLEST_POPULATION = 4


@final
@ATTACKS.register("one-pixel")
@dataclass(frozen=True, kw_only=True)
class OnePixel(Attack):
    """Differential evolution of eps pixels, untargeted (Su et al. 2019, arXiv:1710.08864).

    A member of the population holds place and colour of each pixel. A mutant is base + mutation·(a − b) for two
    random members a and b, without crossover, and replaces its parent if its fitness is higher. The defaults
    are those of torchattacks (best/1, 10 members, 10 generations); the paper has rand/1, 400 members and 100
    generations. On purpose different from both: fitness is the margin of the logits, since a confident network's
    probabilities are all 1 in float32, any member that fools the network ends the search, values out of range are
    drawn anew, and all members' colours start uniformly.

    Args:
        population: members, at least 4.
        generations: rounds of mutation after the first population.
        base: "best" mutates the best member, "random" a random one.
        mutation: weight of the difference, F in the paper.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"l0"})
    white_box: ClassVar[bool] = False

    population: int = 10
    generations: int = 10
    base: Literal["best", "random"] = "best"
    mutation: float = 0.5

    def __post_init__(self) -> None:
        at_least(
            population=(self.population, SMALLEST_POPULATION),
            generations=(self.generations, 0),
            mutation=(self.mutation, 0),
        )

    def brief(self) -> Self:
        return dataclasses.replace(self, population=SMALLEST_POPULATION, generations=1)

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        cost = self.population * model.answer_cost
        x_adv, queries, steps = x.clone(), torch.full_like(y, cost), torch.zeros_like(y)
        active = torch.arange(len(y), device=y.device)
        members = rng.uniform((self.population, int(threat.eps), 2 + x.shape[1]), x)
        fitness = _fitness(model, x, y, members, threat)
        for generation in range(self.generations + 1):
            fooled = fitness.amax(1) == FOOLED
            over = fooled if generation < self.generations else torch.ones_like(fooled)
            fittest = fitness[over].argmax(1).view(-1, 1, 1, 1).expand(-1, 1, *members.shape[2:])
            x_adv[active[over]] = _painted(x[active[over]], members[over].gather(1, fittest)[:, 0], threat)
            active, members, fitness = active[~over], members[~over], fitness[~over]
            if len(active) == 0:
                break
            trials = self._mutants(members, fitness, rng.take(active))
            trial_fitness = _fitness(model, x[active], y[active], trials, threat)
            better = trial_fitness > fitness
            members = torch.where(better[:, :, None, None], trials, members)
            fitness = torch.where(better, trial_fitness, fitness)
            queries[active] += cost
            steps[active] += 1
        return Proposal(x_adv, queries, steps)

    def _mutants(self, members: Tensor, fitness: Tensor, rng: ExampleRng) -> Tensor:
        """Return one mutant for each member: [n, P, pixels, 2 + C] in [0, 1]."""
        n, size = fitness.shape
        u = rng.uniform((size, 3 + members[0, 0].numel()), members)
        a, b, c = _other_members(u[..., :3]).unbind(2)
        each = torch.arange(n, device=a.device)[:, None]
        base = fitness.argmax(1, keepdim=True) if self.base == "best" else c
        mutants = members[each, base] + self.mutation * (members[each, a] - members[each, b])
        # Cut to the range, mutants would gather in the corners of the image and of the colours: draw them anew.
        return torch.where((mutants >= 0) & (mutants <= 1), mutants, u[..., 3:].view_as(mutants))


def _other_members(u: Tensor) -> Tensor:
    """Return random members, distinct from each other and from the one that asks: [n, P, m] → int64 [n, P, m]."""
    n, size, wanted = u.shape
    taken = torch.arange(size, device=u.device).view(1, size, 1).expand(n, size, 1)
    for k in range(wanted):
        left = size - 1 - k
        # A place among the members that are left; each one taken before it, in rising order, moves it up by one.
        pick = (u[..., k] * left).long().clamp_max(left - 1)
        for other in taken.sort(2).values.unbind(2):
            pick = pick + (pick >= other)
        taken = torch.cat([taken, pick[..., None]], 2)
    return taken[..., 1:]


def _fitness(model: WhiteBoxModel, x: Tensor, y: Tensor, members: Tensor, threat: Threat) -> Tensor:
    """Return how far a wrong class leads for every member [n, P], `FOOLED` where the network errs."""
    n, size = members.shape[:2]
    parts = []
    for part in torch.split(torch.arange(n * size, device=x.device), max(1, VALUES_AT_ONCE // x[0].numel())):
        image = part // size
        painted = _painted(x[image], members.flatten(0, 1)[part], threat)
        lead, fooled = model.lead(painted, y[image])
        parts.append(lead.masked_fill(fooled, FOOLED))
    return torch.cat(parts).view(n, size)


def _painted(x: Tensor, pixels: Tensor, threat: Threat) -> Tensor:
    """Return copies of x [n, C, H, W] with pixels [n, k, 2 + C] set: row, column and colour, all in [0, 1]."""
    height, width = x.shape[2:]
    low, high = threat.bounds
    row = (pixels[..., 0] * height).long().clamp_max(height - 1)
    column = (pixels[..., 1] * width).long().clamp_max(width - 1)
    each, painted = torch.arange(len(x), device=x.device), x.clone()
    for k in range(pixels.shape[1]):  # one after the other, so that the last of two at one place wins
        painted[each, :, row[:, k], column[:, k]] = low + pixels[:, k, 2:] * (high - low)
    return painted
