"""Tables and documents of results, and what all tables of numbers share; the command line prints them."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table

from robustbench_bio.core.stats import wilson
from robustbench_bio.diagnosis.comparisons import strongly_attacked
from robustbench_bio.evaluation.worst_case import worst_cases
from robustbench_bio.records.diagnosis import Diagnosis
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat

#: Heads of the columns that say whether a number may be believed and whether the usual way would have told it.
ANSWERS = ("number", "usual way")

#: What a missing number looks like.
NONE = "–"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f}"


def bounds(interval: Sequence[float]) -> str:
    """Return an interval of fractions in percent."""
    return f"[{percent(interval[0])}, {percent(interval[1])}]"


def with_interval(successes: int, n: int) -> str:
    """Return a share as a percentage with its Wilson interval."""
    return f"{percent(successes / n)} {bounds(wilson(successes, n))}"


def compact_table(title: str | None = None, caption: str | None = None) -> Table:
    """Return a table, without columns yet, that is no wider than a plain terminal needs."""
    return Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )


def markdown_row(values: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(values)} |"


def eval_table(results: Sequence[Result], diagnosis: Diagnosis | None = None) -> Table:
    """Return one row per result, two gradients of one attack beside each other, the gap, and what to think of it."""
    first = results[0]
    claimed = dict.fromkeys(result.spec.gradient.source for result in results if result.spec.gradient.claimed)
    legend = (
        f"robust accuracy with Wilson 95 % interval; gap = {' or '.join(claimed) or 'rule'} − exact; * = from the store"
    )
    notes = dict.fromkeys(f"note: {text}" for result in results for text in result.provenance.notices)
    others = any(result.spec.backend != "native" for result in results)
    named = f"{first.spec.attack}: " if others else ""
    data = f"{first.spec.dataset} ({first.spec.split}, n = {first.n})"
    clean = f"clean accuracy {percent(first.clean_accuracy)} %"
    table = compact_table(
        title=f"{named}{first.spec.model} on {data}, {clean}\n{answers(diagnosis)}",
        caption="\n".join([legend, *notes]),
    )
    # One attack runs on all backends; 80 columns are too few for both.
    for name in ("backend" if others else "attack", "threat", "gradient"):
        table.add_column(name, no_wrap=True)
    for name in ("robust %", "gap", "queries", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        same = {one.spec.gradient: one for one in results if _attack_of(one) == _attack_of(result)}
        exact = result.spec.gradient.held_against(same)
        table.add_row(
            result.spec.backend if others else result.spec.attack,
            str(result.spec.threat),
            str(result.spec.gradient).replace("surrogate:", "surrogate:\n"),
            with_interval(sum(result.outcomes_record.robust_correct()), result.n),
            "" if exact is None else f"{100 * (result.robust_accuracy - same[exact].robust_accuracy):+.1f}",
            f"{result.queries_mean:.1f}",
            f"{result.provenance.seconds:.1f}{'*' if result.from_store else ''}",
        )
    for threat, robust in worst_cases(results).items():
        # What a single loss leaves is the lowest of the table, and no worst case.
        label = "worst case" if strongly_attacked(results, threat) else "lowest"
        table.add_row(label, str(threat), "", with_interval(sum(robust), len(robust)), style="bold")
    return table


def answers(diagnosis: Diagnosis | None) -> str:
    """Return what to think of the number, and of the usual way of measuring it, in a line each."""
    if diagnosis is None:
        return "number and usual way: no verdict, only linf and l2 are diagnosed"
    overstated = f", overstates by {100 * by:.1f} points" if (by := diagnosis.overstated_by) else ""
    return (
        f"number: {diagnosis.number} ({diagnosis.number_reason})\n"
        f"usual way: {diagnosis.verdict}{overstated} ({diagnosis.reason})"
    )


def _attack_of(result: Result) -> tuple[str, str, Threat]:
    return result.spec.attack, result.spec.backend, result.spec.threat


def eval_document(results: Sequence[Result], diagnosis: Diagnosis | None = None) -> dict[str, Any]:
    """Return the JSON document of `biorobust eval --json`; accuracies are fractions."""
    first = results[0]
    worst = [worst_case_document(threat, robust) for threat, robust in worst_cases(results).items()]
    return {
        "model": first.spec.model,
        "dataset": first.spec.dataset,
        "n": first.n,
        "clean_accuracy": first.clean_accuracy,
        "results": [result_document(result) for result in results],
        "worst_case": worst[0] if len(worst) == 1 else {"by_eps": worst},
        **verdict_document(diagnosis),
    }


def result_document(result: Result) -> dict[str, Any]:
    """Return a result as JSON documents hold it; accuracies are fractions."""
    return result.summary() | {"notices": result.provenance.notices}


def worst_case_document(threat: Threat, robust: Sequence[bool]) -> dict[str, Any]:
    """Return the worst case within a threat model as JSON documents hold it."""
    share, interval = sum(robust) / len(robust), wilson(sum(robust), len(robust))
    return {**threat.document(), "robust_accuracy": share, "ci95": list(interval)}


def verdict_document(diagnosis: Diagnosis | None) -> dict[str, Any]:
    """Return both answers as JSON documents hold them."""
    if diagnosis is None:
        return {"verdict": None, "number": None, "diagnosis": None}
    return {"verdict": diagnosis.verdict, "number": diagnosis.number, "diagnosis": diagnosis.summary()}


def diagnosis_table(model: str, diagnosis: Diagnosis) -> Table:
    """Return the checks of a diagnosis, those that fired first, under what to think of number and usual way."""
    table = Table(
        title=f"{model}\n{answers(diagnosis)}",
        caption=f"{diagnosis.n} examples, {diagnosis.seconds:.1f} s; ! = fired",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("measured")
    for check in sorted(diagnosis.checks, key=lambda check: not check.fired):
        table.add_row("!" if check.fired else "", check.name, check.detail, style="bold" if check.fired else "")
    return table
