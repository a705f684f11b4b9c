"""Records that tests of several rooms need."""

from typing import Any

from robustbench_bio.records.result import EvalSpec, Outcomes, Provenance, Result


def spec(**changes: Any) -> EvalSpec:
    fields = {
        "model": "tiny",
        "network_sha256": "0" * 64,
        "dataset": "digits",
        "split": "test",
        "n": 2,
        "data_sha256": "1" * 64,
        "attack": "pgd",
        "params": {"steps": 40, "step_size": None, "random_start": True},
        "threat": {"norm": changes.pop("norm", "linf"), "eps": changes.pop("eps", 8 / 255)},
        "gradient": "exact",
        "precision": "float32",
        "seed": 0,
    }
    return EvalSpec.model_validate(fields | changes)


def outcomes(**changes: list[Any]) -> Outcomes:
    columns = {
        "id": [3, 7, 9, 11],
        "label": [0, 1, 2, 3],
        "clean_prediction": [0, 1, 5, 3],
        "adversarial_prediction": [0, 4, 5, 3],
        "distance": [0.03, 0.02, 0.0, 0.03],
        "queries": [40, 8, 0, 42],
        "steps": [40, 7, 0, 40],
    }
    return Outcomes.model_validate(columns | changes)


def result(**changes: Any) -> Result:
    provenance = Provenance(seconds=1.5, device="cpu", created="2025-01-01T00:00:00+00:00", packages={"torch": "2"})
    return Result(spec=spec(n=4, **changes), outcomes_record=outcomes(), provenance=provenance)


CHANGES: dict[str, Any] = {
    "version": "9.9",
    "model": "other",
    "network_sha256": "2" * 64,
    "dataset": "cifar10",
    "split": "train",
    "n": 3,
    "data_sha256": "3" * 64,
    "attack": "fgsm",
    "params": {"steps": 41, "step_size": None, "random_start": True},
    "threat": {"norm": "l2", "eps": 8 / 255},
    "gradient": "rule",
    "backend": "foolbox",
    "precision": "bfloat16",
    "seed": 1,
    "draws": 20,
    "batch_size": 7,
}
