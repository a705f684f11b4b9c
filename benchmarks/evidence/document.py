"""The page docs/claims.md: `page.md` with its fields filled in.

Every number on it comes from the evidence, or from what was published; none stands in the template or here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from evidence.judging import ALPHA, CONFIDENCE, FAILS, HOLDS, OPEN, SEEDS, UNKNOWN, Difference, Estimate, estimate
from evidence.records import RADII, STEPS, USUAL, Claim, Evidence, Family, Published
from evidence.rows import RobustRow, Row, claim_rows, counts, gradient_free, quirks, robust_rows

TEMPLATE = Path(__file__).with_name("page.md")

#: What stands where nothing was measured, or nothing can be.
NONE = "–"


def document(published: Published, evidence: Evidence, command: str, picture: str) -> str:
    """Return the page as Markdown.

    `command` is what writes it, `picture` the name of the plot beside it without its ending.
    """
    rows, hard = claim_rows(published, evidence), robust_rows(published, evidence)
    tables = {
        "short": _in_short(published, rows, hard),
        "accuracy": _accuracy(rows),
        "robustness": _robustness(published, hard),
        "curves": _curves(evidence, picture),
        "origins": _origins(published, evidence),
        "networks": _networks(published, evidence),
    }
    fields = {name: "\n".join(lines).rstrip() for name, lines in tables.items()}
    fields |= _numbers(published, evidence, rows, hard) | {"command": command, "result": _result(hard)}
    return TEMPLATE.read_text(encoding="utf-8").format_map(fields).rstrip() + "\n"


def _numbers(
    published: Published, evidence: Evidence, rows: Sequence[Row], hard: Sequence[RobustRow]
) -> dict[str, str]:
    """Return the fields of the template that are a word or a number."""
    tests = sum(len(row.compared) for row in rows) + sum(row.bp is not None for row in hard)
    margins = [claim.margin for claim in published.claims if claim.kind == "as-good"]
    return {
        "reference": published.reference,
        "preset": published.preset,
        "dataset": evidence.dataset,
        "n": str(evidence.n),
        "day": f", measured {evidence.measured}" if evidence.measured else "",
        "steps": str(STEPS),
        "usual": USUAL,
        "level": f"{100 * CONFIDENCE:g} %",
        "error": f"{ALPHA:.2g}",
        "seeds": str(SEEDS),
        "margins": ", ".join(f"{margin:g}" for margin in margins),
        "chance": _percent(1 / evidence.classes),
        "tests": str(tests),
        "attacks": "; ".join(f"`{attack}` {settings}".rstrip() for attack, settings in evidence.settings.items())
        or NONE,
        "holds": HOLDS,
        "fails": FAILS,
        "open": OPEN,
        "unknown": UNKNOWN,
    }


def _result(hard: Sequence[RobustRow]) -> str:
    """Return what the first table comes to."""
    by_rule, exact, total = counts(hard)
    if not total:
        return "No claim of robustness was measured yet."
    return (
        f"Of {total} measured rows about attacks by gradient, {by_rule} would hold if the rule gradient were all that "
        f"is known, and {exact} hold through the exact one."
    )


def _in_short(published: Published, rows: Sequence[Row], hard: Sequence[RobustRow]) -> Iterator[str]:
    titles = [f"{one.title}, mixed: `{one.mixed}-{one.id}`" for one in published.families]
    yield from _head(["claim", "published", *titles])
    for claim in published.claims:
        cells = (_short(claim, family, rows, hard) for family in published.families)
        yield _line([claim.title, f"{claim.says} ({claim.source})", *cells])


def _short(claim: Claim, family: Family, rows: Sequence[Row], hard: Sequence[RobustRow]) -> str:
    """Return the verdict of one claim and family; of robustness one for each radius."""
    if claim.kind != "robust":
        found = [row for row in rows if row.claim == claim and row.family == family]
        return _short_row(found[0]) if found else "does not apply: mixed is random"
    mine = [row for row in hard if row.claim == claim and row.family == family]
    if all(row.verdict == UNKNOWN for row in mine):
        return _verdict(UNKNOWN, mine[0].missing)
    return "; ".join(f"{_radius(row)}: {_verdict(row.verdict, row.missing)}{_left(row)}" for row in mine)


def _short_row(row: Row) -> str:
    values = [f"{_rule(model)} {_percent(value.mean)}" for model, value in row.accuracies.items()]
    values += [f"{_rule(model)} {value.rule:.2f}" for model, value in row.noise.items()]
    told = f" ({', '.join(values)})" if row.verdict != UNKNOWN else ""
    return f"{_verdict(row.verdict, row.missing)}{told}"


def _left(row: RobustRow) -> str:
    """Return in brackets what the attack leaves."""
    if row.exact is None:
        return ""
    exact, bp = _percent(row.exact.mean), NONE if row.bp is None else _percent(row.bp.mean)
    if gradient_free(row.claim) or row.rule is None:
        return f" (left {exact}, bp {bp})"
    return f" (rule {_percent(row.rule.mean)}, exact {exact}, bp {bp})"


def _accuracy(rows: Sequence[Row]) -> Iterator[str]:
    yield from _head(["claim", "measured", "seeds × images", "paired differences", "verdict"])
    for row in rows:
        pairs = [f"{_rule(pair.a)} − {_rule(pair.b)} {_points(row, pair.difference)}" for pair in row.compared]
        title, told = f"{row.claim.title}, {row.family.title}", "; ".join(pairs) or NONE
        yield _line([title, _measured(row), _size(row.accuracies), told, _verdict(row.verdict, row.missing)])
    yield ""


def _robustness(published: Published, hard: Sequence[RobustRow]) -> Iterator[str]:
    for family in published.families:
        mine = [row for row in hard if row.family == family]
        names = f"`{family.mixed}-{family.id}` against `bp-{family.id}`"
        if all(row.verdict == UNKNOWN for row in mine):
            yield from (f"{names}: {_verdict(UNKNOWN, mine[0].missing)}.", "")
            continue
        yield from (f"{names}:", "")
        heads = ["claim", "eps", "rule gradient", "exact gradient", "bp", "gap", "as released", "seeds × images"]
        yield from _head([*heads, "by the rule", "verdict"])
        for row in mine:
            yield _line(_robust_cells(row))
        yield ""


def _robust_cells(row: RobustRow) -> list[str]:
    free = gradient_free(row.claim)
    return [
        row.claim.title,
        _radius(row),
        NONE if free or row.rule is None else _interval(row.rule),
        NONE if row.exact is None else _interval(row.exact),
        NONE if row.bp is None else _interval(row.bp),
        NONE if free or row.gap is None else _difference(row.gap),
        NONE if row.as_released is None else _percent(row.as_released),
        NONE if row.exact is None else f"{row.exact.seeds} × {row.exact.n}",
        NONE if free else row.by_rule,
        _verdict(row.verdict, row.missing),
    ]


def _curves(evidence: Evidence, picture: str) -> Iterator[str]:
    if not evidence.networks:
        yield from ("Not measured yet.", "")
        return
    yield f"![Robust accuracy against eps, rule and exact gradient]({picture}.png)"
    yield from ("", f"The same as [SVG]({picture}.svg). All networks:", "")
    yield from _head(["network", "clean", *RADII])
    for model in evidence.networks:
        cells = [f"`{model}`", _percent(estimate(evidence.clean(model)).mean)]
        for eps in RADII:
            left = [evidence.robust(model, "pgd", eps, gradient) for gradient in ("rule", "exact")]
            shown = [_percent(estimate(one).mean) if one else NONE for one in left]
            cells.append(" / ".join(shown if evidence.has_rules(model) else shown[1:]))
        yield _line(cells)
    yield ""


def _origins(published: Published, evidence: Evidence) -> Iterator[str]:
    for family in published.families:
        models = [model for model in family.shown() if model in evidence.networks]
        for title, together in (("each alone", False), ("one on top of the other", True)) if models else ():
            yield from _head([title, *(f"`{model}`" for model in models)])
            yield from _quirk_lines(evidence, models, together)
            yield ""


def _quirk_lines(evidence: Evidence, models: Sequence[str], together: bool) -> Iterator[str]:
    columns = [quirks(evidence, model) for model in models]
    values = [[quirk.together if together else quirk.alone for quirk in column] for column in columns]
    for place, quirk in enumerate(columns[0]):
        cells = [quirk.name]
        for column in values:
            before = column[max(0, place - 1) if together else 0]
            cells.append(_percent(column[place]) + (f" ({_signed(column[place] - before)})" if place else ""))
        yield _line(cells)


def _networks(published: Published, evidence: Evidence) -> Iterator[str]:
    if evidence.networks:
        yield from _head(["network", "what it is", "seeds", "clean %", "learned from"])
        for model in evidence.networks:
            clean = evidence.clean(model)
            seeds = ", ".join(map(str, sorted(clean)))
            title, learned = evidence.cards.get(model, (NONE, NONE))
            yield _line([f"`{model}`", title, seeds, _interval(estimate(clean)), learned])
        yield ""
    missing = [model for model in published.networks() if model not in evidence.networks]
    if missing:
        yield from (f"Not measured yet: {_marked(missing)}.", "")


def _measured(row: Row) -> str:
    known = [f"{_rule(model)} {_interval(value)}" for model, value in row.accuracies.items()]
    known += [f"{_rule(model)} {value.rule:.2f} ({value.exact:.2f})" for model, value in row.noise.items()]
    return "; ".join(known) or NONE


def _size(accuracies: Mapping[str, Estimate]) -> str:
    sizes = dict.fromkeys(f"{value.seeds} × {value.n}" for value in accuracies.values())
    return ", ".join(sizes) or NONE


def _points(row: Row, one: Difference) -> str:
    if row.claim.kind == "variance":
        return _minus(f"{one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]") + f", p = {one.p:.2g}"
    return f"{_difference(one)}, p = {one.p:.2g}"


def _radius(row: RobustRow) -> str:
    return f"{row.radius} px" if gradient_free(row.claim) else row.radius


def _verdict(word: str, missing: Sequence[str]) -> str:
    if word == UNKNOWN:
        return f"{word} yet: needs {_marked(missing)}" if missing else word
    return f"**{word}**" + (f"; still needs {_marked(missing)}" if missing else "")


def _marked(models: Iterable[str]) -> str:
    return ", ".join(f"`{model}`" for model in models)


def _rule(model: str) -> str:
    return model.partition("-")[0]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _interval(value: Estimate) -> str:
    return f"{_percent(value.mean)} [{_percent(value.low)}, {_percent(value.high)}]"


def _signed(fraction: float) -> str:
    """Return a difference of fractions in points."""
    return _minus(f"{100 * fraction:+.1f}")


def _difference(one: Difference) -> str:
    return f"{_signed(one.mean)} [{_signed(one.low)}, {_signed(one.high)}]"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(titles: Sequence[str]) -> Iterator[str]:
    yield _line(titles)
    yield f"|{'---|' * len(titles)}"
