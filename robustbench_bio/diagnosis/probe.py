"""A short diagnosis before the time is spent: kept in the store, asked again from there."""

import json

from robustbench_bio.attacks import rules_of
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.core.version import __version__
from robustbench_bio.diagnosis.classifier import classifies
from robustbench_bio.diagnosis.diagnose import diagnose
from robustbench_bio.evaluation.plan import Slice, Subject
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.base import Record
from robustbench_bio.records.diagnosis import Diagnosis
from robustbench_bio.records.gradient import EXACT, Gradient
from robustbench_bio.records.threat import Threat

#: Norms in which a network can be diagnosed.
DIAGNOSED = ("linf", "l2")


class _Question(Record):
    """What a short diagnosis depends on; its budget is a small part of an evaluation's."""

    version: str = __version__
    answers: int = 2
    """Raised when a diagnosis holds something else than before."""
    network_sha256: str
    data_sha256: str
    threat: Threat
    gradient: Gradient
    rules: str
    seed: int
    n_examples: int
    steps: int = 10
    queries: int = 100


def probe(
    subject: Subject,
    examples: Slice,
    threat: Threat,
    gradient: Gradient,
    *,
    seed: int,
    n_examples: int = 64,
    store: Store | None = None,
    progress: Progress = silent,
) -> Diagnosis | None:
    """Return a short diagnosis of a network, from the store if it was made before.

    `examples` must be on the network's device. For any norm but linf and l2 nothing is asked but whether there is a
    classifier, and None is returned if there is. A `gradient` of rules, or the network's own, is held
    against the exact one.

    Raises:
        UserError: see `diagnose`.
    """
    if threat.norm not in DIAGNOSED:
        check = classifies(subject.net, examples.x, examples.y)
        return Diagnosis.of([check], 0, 0.0) if check.fired else None
    rules = rules_of(subject.net)
    question = _Question(
        network_sha256=subject.fingerprint(examples.x),
        data_sha256=examples.sha256,
        threat=threat,
        gradient=EXACT if gradient.claimed else gradient,
        rules=json.dumps(rules and [rules.assignment, rules.option_values]),
        seed=seed,
        n_examples=n_examples,
    )
    known = store and store.recall(question, subject.label, Diagnosis)
    if known:
        return known
    diagnosis = diagnose(
        subject.net,
        (examples.x, examples.y),
        norm=threat.norm,
        eps=threat.eps,
        gradient=question.gradient,
        n_examples=n_examples,
        steps=question.steps,
        queries=question.queries,
        seed=seed,
        progress=lambda done, total, line: progress(done, total, f"probe: {line}"),
    )
    if store:
        store.remember(question, subject.label, diagnosis)
    return diagnosis
