"""How robust networks trained with brain-like learning rules really are.

import robustbench_bio as rb

model = rb.load_model("bionas-darts", dataset="digits")
x, y = rb.load_data("digits", split="test", n_examples=200)
result = rb.evaluate(model, (x, y), attack="pgd", norm="linf", eps=8 / 255, steps=40)
result.robust_accuracy, result.ci95, result.outcomes
"""

import importlib
from typing import TYPE_CHECKING, Any

from robustbench_bio.core.version import __version__

if TYPE_CHECKING:
    from robustbench_bio.core.errors import UserError
    from robustbench_bio.datasets import load_data
    from robustbench_bio.diagnosis.diagnose import diagnose
    from robustbench_bio.evaluation.evaluate import evaluate
    from robustbench_bio.evaluation.judge import AttackViolation
    from robustbench_bio.evaluation.store import Store
    from robustbench_bio.zoo.loading import load_model

__all__ = ["AttackViolation", "Store", "UserError", "__version__", "diagnose", "evaluate", "load_data", "load_model"]

_WHERE = {
    "AttackViolation": "evaluation.judge",
    "Store": "evaluation.store",
    "UserError": "core.errors",
    "diagnose": "diagnosis.diagnose",
    "evaluate": "evaluation.evaluate",
    "load_data": "datasets",
    "load_model": "zoo.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import robustbench_bio` alone loads no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
