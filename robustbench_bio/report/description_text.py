"""How the facts of `biorobust show` read in a terminal."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from robustbench_bio.report.tables import NONE, compact_table
from robustbench_bio.zoo.facts import LAYERS

#: With more layers of neurons than this a person reads the lowest and highest firing rate only.
MOST_RATES = 12


def facts_table(title: str, facts: dict[str, Any]) -> Group:
    """Return one row for each fact, and below it the layers of a model's network."""
    table = Table(title=title, show_header=False)
    table.add_column("field", no_wrap=True)
    table.add_column("value")
    for field, value in facts.items():
        if field != LAYERS:
            table.add_row(field, fact_text(field, value))
    return Group(table, *([layer_table(facts[LAYERS])] if LAYERS in facts else []))


def listing_table(kind: str, lines: dict[str, str]) -> Table:
    """Return one row for each member of a kind."""
    table = Table(title=kind)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name, line in lines.items():
        table.add_row(name, line)
    return table


def fact_text(field: str, value: Any) -> str:
    """Return a fact as a person reads it."""
    if isinstance(value, str):
        return value
    if field in _TEXTS:
        return _TEXTS[field](value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if whole else json.dumps(value, ensure_ascii=False)


def _variance_text(variance: dict[str, Any]) -> str:
    def both(key: str) -> str:
        values = {side: (variance[side] or {}).get(key) for side in ("rule", "exact")}
        return ", ".join(f"{side} {'none' if value is None else f'{value:.3g}'}" for side, value in values.items())

    return f"noise over signal: {both('relative')}\nper weight: {both('per_weight')}\n({variance['weights']:,} weights)"


def _rates_text(rates: dict[str, Any]) -> str:
    texts = {layer: f"{layer} {100 * rate:.1f}" for layer, rate in rates["layers"].items()}
    if len(texts) > MOST_RATES:
        low, high = (end(rates["layers"], key=rates["layers"].__getitem__) for end in (min, max))
        each = f"of {len(texts)} layers between {texts[low]} and {texts[high]}"
    else:
        each = ", ".join(texts.values())
    return f"{100 * rates['mean']:.1f} % ({rates['how']})\nby layer, %: {each}"


def _operations_text(operations: dict[str, Any]) -> str:
    repeated = operations["repeated_macs"]
    again = f" ({repeated:,.0f} of them repeat the first time step)" if repeated else ""
    return f"{operations['accumulates']:,.0f} accumulates, {operations['macs']:,.0f} MACs{again}\n({operations['how']})"


def _spiking_energy_text(energy: dict[str, Any]) -> str:
    spikes, relu, repeated = (energy[name] for name in ("picojoules", "relu_picojoules", "repeated_picojoules"))
    once = f"; {spikes - repeated:,.0f} pJ if a still image's first layers are computed once" if repeated else ""
    of_relu = f"{spikes / relu:.2f} of the {relu:,.0f} pJ of one pass with ReLU instead of spikes"
    return f"{spikes:,.0f} pJ, {of_relu}{once}\n({energy['how']})"


#: How the facts that are more than a text or a number read.
_TEXTS: dict[str, Callable[[Any], str]] = {
    "held-out accuracy": lambda share: f"{100 * share:.1f} %",
    "energy per inference": lambda energy: f"{energy['picojoules']:,.0f} pJ ({energy['how']})",
    "percent of weights": lambda shares: ", ".join(f"{rule} {share:.1f}" for rule, share in shares.items()),
    "feedback memory": lambda memory: f"{memory['bytes']:,} bytes ({memory['how']})",
    "gradients measured on": "first {examples} of {split}, variance on {batches} batches of {batch_size}".format_map,
    "gradient variance": _variance_text,
    "spikes measured on": "first {examples} of {split}, {steps} time steps".format_map,
    "firing rate": _rates_text,
    "spikes per example": "{spikes:,.0f}, from {neurons:,} neurons".format_map,
    "synaptic operations per example": _operations_text,
    "energy with spikes": _spiking_energy_text,
}


def layer_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return one row per layer: how B lies to W, and the gradient that it learns from to the exact one."""
    notes = ["angles in degrees; dW: the gradient that the layer learns from against the exact one"]
    notes += dict.fromkeys(f"–: {reason}" for row in rows for reason in row["reasons"])
    table = compact_table(caption="\n".join(notes))
    table.add_column("layer", overflow="fold")
    table.add_column("rule", no_wrap=True)
    for name in ("weights", "B to W", "‖B‖/‖W‖", "dW"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        ratio = row["weight_ratio"]
        table.add_row(
            row["layer"],
            row["rule"],
            f"{row['weights']:,}",
            _degrees(row["angle"]),
            NONE if ratio is None else f"{ratio:.2f}",
            _degrees(row.get("gradient_angle")),
        )
    return table


def _degrees(angle: float | None) -> str:
    return NONE if angle is None else f"{angle:.1f}"
