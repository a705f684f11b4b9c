"""Who scores candidates, one file a way: this process and its workers, or a Ray cluster. The scores are the same."""

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.search.executors.base import CandidateScores, Executor, Scorer
from robustbench_bio.search.executors.local import LocalExecutor
from robustbench_bio.search.executors.ray_cluster import RayExecutor

__all__ = ["CandidateScores", "Executor", "LocalExecutor", "RayExecutor", "Scorer", "make_executor"]


def make_executor(name: str, workers: int, device: str = "cpu") -> Executor:
    """Return the executor `local` or `ray`; raises `UserError` for another name, no workers, or a missing Ray."""
    if workers < 1:
        raise UserError(f"expected workers >= 1, got {workers}")
    if name == "local":
        return LocalExecutor(workers)
    if name == "ray":
        return RayExecutor(workers, device)
    raise UserError(unknown("executor", name, ["local", "ray"]))
