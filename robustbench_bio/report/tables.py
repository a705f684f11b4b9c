"""Tables and plots of results and trainings. Makes them; the command line prints them."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from robustbench_bio.core.stats import wilson
from robustbench_bio.evaluation.worst_case import worst_case
from robustbench_bio.records.diagnosis import Diagnosis
from robustbench_bio.records.gradient import EXACT, RULE
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f}"


def eval_table(results: Sequence[Result], diagnosis: Diagnosis | None = None) -> Table:
    """Return one row per result, the two gradients of one attack beside each other, the gap, and the verdict."""
    first = results[0]
    legend = "robust accuracy with Wilson 95 % interval; gap = rule − exact; * = from the store"
    notes = dict.fromkeys(f"note: {text}" for result in results for text in result.provenance.notices)
    others = any(result.spec.backend != "native" for result in results)
    table = Table(
        title=f"{first.spec.attack + ': ' if others else ''}{first.spec.model} on {first.spec.dataset} "
        f"({first.spec.split}, n = {first.n}), "
        f"clean accuracy {percent(first.clean_accuracy)} %",
        caption="\n".join([legend, *notes]),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # no narrower than this, no wider than a plain terminal
        pad_edge=False,
        show_edge=False,
    )
    # One attack runs on all backends; 80 columns are too few for both.
    for name in ("backend" if others else "attack", "threat", "gradient"):
        table.add_column(name, no_wrap=True)
    for name in ("robust %", "gap", "queries", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    exact = {_attack_of(r): r.robust_accuracy for r in results if r.spec.gradient == EXACT}
    for result in results:
        twin = exact.get(_attack_of(result)) if result.spec.gradient == RULE else None
        table.add_row(
            result.spec.backend if others else result.spec.attack,
            str(result.spec.threat),
            str(result.spec.gradient),
            with_interval(sum(result.outcomes_record.robust_correct()), result.n),
            "" if twin is None else f"{100 * (result.robust_accuracy - twin):+.1f}",
            f"{result.queries_mean:.1f}",
            f"{result.provenance.seconds:.1f}{'*' if result.from_store else ''}",
        )
    for threat, correct in worst_case(results).items():
        table.add_row("worst case", str(threat), "", with_interval(sum(correct), len(correct)), style="bold")
    table.title = f"{table.title}\n{verdict_line(diagnosis)}"
    return table


def verdict_line(diagnosis: Diagnosis | None) -> str:
    """Return the verdict and its reason in one line."""
    if diagnosis is None:
        return "verdict: none, only linf and l2 are diagnosed"
    return f"verdict: {diagnosis.verdict} ({diagnosis.reason})"


def with_interval(successes: int, n: int) -> str:
    """Return a share as a percentage with its Wilson interval."""
    low, high = wilson(successes, n)
    return f"{percent(successes / n)} [{percent(low)}, {percent(high)}]"


def _attack_of(result: Result) -> tuple[str, str, Threat]:
    return result.spec.attack, result.spec.backend, result.spec.threat


def eval_document(results: Sequence[Result], diagnosis: Diagnosis | None = None) -> dict[str, Any]:
    """Return the JSON document of `biorobust eval --json`; accuracies are fractions."""
    first = results[0]
    worst = [
        {
            **threat.document(),
            "robust_accuracy": sum(correct) / len(correct),
            "ci95": list(wilson(sum(correct), len(correct))),
        }
        for threat, correct in worst_case(results).items()
    ]
    return {
        "model": first.spec.model,
        "dataset": first.spec.dataset,
        "n": first.n,
        "clean_accuracy": first.clean_accuracy,
        "results": [result.summary() | {"notices": result.provenance.notices} for result in results],
        "worst_case": worst[0] if len(worst) == 1 else {"by_eps": worst},
        "verdict": None if diagnosis is None else diagnosis.verdict,
        "diagnosis": None if diagnosis is None else diagnosis.summary(),
    }


def diagnosis_table(model: str, diagnosis: Diagnosis) -> Table:
    """Return the checks of a diagnosis, those that fired first, under the verdict."""
    table = Table(
        title=f"{model}: {diagnosis.verdict}",
        caption=f"{diagnosis.reason}\n{diagnosis.n} examples, {diagnosis.seconds:.1f} s; ! = fired",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("measured")
    for check in sorted(diagnosis.checks, key=lambda check: not check.fired):
        table.add_row("!" if check.fired else "", check.name, check.detail, style="bold" if check.fired else "")
    return table
