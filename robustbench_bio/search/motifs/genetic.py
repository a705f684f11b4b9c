"""The genetic algorithms of pymoo over genomes of integers: one objective, or several."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustbench_bio.search.motifs.genome import Genome, GenomeCode

Algorithm = Literal["ga", "nsga2"]


class GeneticAlgorithm:
    """Asks for the values of one generation after the other; all of it follows from the seed and the values.

    Two-point crossover, polynomial mutation (η = 3) rounded to integers, one gene in each genome on average.

    Args:
        algorithm: "ga", elitist with one objective, or "nsga2".
        canonical: genomes with the same canonical one count as duplicates.
        seed: 0 to 2³² − 1.
    """

    def __init__(
        self, algorithm: Algorithm, code: GenomeCode, canonical: Callable[[Genome], Genome], *, objectives: int,
        population: int, offspring: int, generations: int, seed: int,
    ) -> None:  # fmt: skip
        # pymoo takes seconds to load, which only a search of motifs shall pay.
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.duplicate import ElementwiseDuplicateElimination
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.pntx import TwoPointCrossover
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling

        def duplicates(one: Any, other: Any) -> bool:
            return canonical(_genome(one.X)) == canonical(_genome(other.X))

        problem = Problem(
            n_var=code.length, n_obj=objectives, xl=np.array(code.lower), xu=np.array(code.upper), vtype=int
        )
        self._algorithm: Any = {"ga": GA, "nsga2": NSGA2}[algorithm](
            pop_size=population,
            n_offsprings=offspring,
            sampling=IntegerRandomSampling(),
            crossover=TwoPointCrossover(),
            mutation=PM(eta=3, prob_var=1 / code.length, vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=ElementwiseDuplicateElimination(cmp_func=duplicates),
        )
        self._algorithm.setup(problem, termination=("n_gen", generations), seed=seed, verbose=False)
        self._asked: Any = None

    def has_next(self) -> bool:
        """Whether another generation is to come."""
        return bool(self._algorithm.has_next())

    def ask(self) -> list[Genome]:
        """Return the genomes of the next generation; none once crossover and mutation give nothing but duplicates."""
        self._asked = self._algorithm.ask()  # None where pymoo finds no new offspring
        return [] if self._asked is None else [_genome(row) for row in self._asked.get("X")]

    def tell(self, values: Sequence[Sequence[float]]) -> None:
        """Take the objectives of each genome that `ask` returned, the larger the better."""
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        # pymoo minimises.
        Evaluator().eval(StaticProblem(self._algorithm.problem, F=-np.array(values)), self._asked)
        self._algorithm.tell(infills=self._asked)


def _genome(row: NDArray[np.int64]) -> Genome:
    return tuple(row.tolist())
