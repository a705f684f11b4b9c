"""How robust networks trained with brain-like learning rules really are.

import robustbench_bio as rb

model = rb.load_model("bionas-darts", dataset="digits")
x, y = rb.load_data("digits", split="test", n_examples=200)
result = rb.evaluate(model, (x, y), attack="pgd", norm="linf", eps=8 / 255, steps=40)
result.robust_accuracy, result.ci95, result.outcomes
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_bio.api import load_data
    from robustbench_bio.diagnosis import diagnose
    from robustbench_bio.errors import UserError
    from robustbench_bio.evaluation import evaluate
    from robustbench_bio.judge import AttackViolation
    from robustbench_bio.store import Store
    from robustbench_bio.zoo import load_model

__version__ = "0.1.0"

__all__ = ["AttackViolation", "Store", "UserError", "__version__", "diagnose", "evaluate", "load_data", "load_model"]

_WHERE = {
    "AttackViolation": "judge",
    "Store": "store",
    "UserError": "errors",
    "diagnose": "diagnosis",
    "evaluate": "evaluation",
    "load_data": "api",
    "load_model": "zoo",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import robustbench_bio` alone loads no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
