"""Results that were measured under the first schema of specs: found under their old key, kept under the new one."""

import hashlib
import json
from typing import Any

from torch import nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.evaluation.fingerprint import is_described, state_digest
from robustbench_bio.evaluation.store import Store, file_name, sealed_record
from robustbench_bio.records.result import EvalSpec, Result

#: Surrogates that went by another name.
_RENAMED = {"surrogate:qgate": "surrogate:triangle"}


def first_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of the first schema, which rested on the text that torch prints for a module."""
    text = repr(model).replace("surrogate=triangle", "surrogate=qgate")
    digest = hashlib.sha256(text.encode())
    digest.update(getattr(model, "description", "").encode())
    state_digest(digest, model)
    return digest.hexdigest()


def upgraded_spec(document: dict[str, Any], network_sha256: str) -> dict[str, Any]:
    """Return the document of a spec of the first schema as one of today's, for the network with that fingerprint."""
    kept = {name: value for name, value in document.items() if name not in {"weights_sha256", "norm", "eps", "votes"}}
    threat = {"norm": document["norm"], "eps": document["eps"]}
    gradient = _RENAMED.get(document["gradient"], document["gradient"])
    today = {"schema_version": 2, "network_sha256": network_sha256, "threat": threat, "gradient": gradient}
    return kept | today | {"draws": document.get("votes", 1)}


def first_spec(spec: EvalSpec, weights_sha256: str) -> dict[str, Any]:
    """Return the document that a spec had under the first schema, with which its key was made."""
    document = spec.model_dump(mode="json")
    threat, draws = document.pop("threat"), document.pop("draws")
    del document["network_sha256"], document["batch_size"]
    former = {today: old for old, today in _RENAMED.items()}
    gradient = former.get(document["gradient"], document["gradient"])
    first = {"schema_version": 1, "weights_sha256": weights_sha256, "gradient": gradient, "votes": draws}
    return {**document, **threat, **first}


def recall(store: Store, spec: EvalSpec, model: nn.Module) -> Result | None:
    """Return a result that the store holds under the first schema, and keep it under today's; None if it has none.

    Where outcomes depend on the batch size, which the first schema did not record, nothing is taken over, nor of a
    network without a card, whose first fingerprint says too little of its code.
    """
    folder = store.path(spec).parent
    if spec.batch_size is not None or not is_described(model) or not folder.is_dir():
        return None
    document = first_spec(spec, first_fingerprint(model))
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    key = hashlib.sha256(text.encode()).hexdigest()
    path = folder / file_name(spec.attack, spec.threat.norm, document["gradient"], key)
    record = sealed_record(path)
    if record is None or record.get("spec") != document:
        return None
    try:
        result = Result.read(record | {"spec": spec.model_dump(mode="json")})
    except UserError:
        return None
    if len(result.outcomes_record) != spec.n:
        return None
    store.put(result)
    return result.model_copy(update={"from_store": True})
