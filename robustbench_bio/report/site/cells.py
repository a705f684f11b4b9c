"""What a page shows of an entry's cells or motifs, and of the rules that its card assigns."""

from markupsafe import Markup

from robustbench_bio.records.entry import Entry
from robustbench_bio.records.genotype import RANDOM_RULES, SUFFIXES
from robustbench_bio.records.motifs import MotifGenotype, reduction_cells
from robustbench_bio.report import drawing, motif_drawing
from robustbench_bio.report.rendering import Key, svg


def card_rules(entry: Entry) -> list[str]:
    """Return the rules that a card assigns, each once; of `random:SEED` those that it draws from.

    A genotype of motifs prescribes none, so that its layers learn by bp where the card names none.
    """
    rules: dict[str, None] = {}
    genotype = entry.genotype
    for term in entry.card.rule.split(","):
        name = term.rpartition("=")[2].strip()
        if name == "genotype" and genotype:
            edges = () if isinstance(genotype, MotifGenotype) else (*genotype.normal, *genotype.reduce)
            rules |= dict.fromkeys([rule for op, _ in edges if (rule := drawing.edge_rule(op))] or ["bp"])
        elif name.startswith("random:"):
            drawn = name.split(":")[2:]
            rules |= dict.fromkeys(drawn[0].split("+") if drawn else RANDOM_RULES)
        else:
            rules[name] = None
    return list(rules)


def one_rule(entry: Entry) -> str:
    """Return the rule that the card gives to every edge of its cells; "" where the genotype decides."""
    rule = entry.card.rule.strip()
    if rule == "genotype":
        return ""
    return rule if rule in SUFFIXES else drawing.UNTOLD


def cell_drawings(entry: Entry) -> list[tuple[str, Markup]]:
    """Return heading and drawing of each cell or motif; nothing for a network without cells."""
    genotype = entry.genotype
    if genotype is None:
        return []
    if isinstance(genotype, MotifGenotype):
        placed = motif_drawing.placed_motifs(genotype, _reductions(entry, genotype))
        return [(head, svg(motif_drawing.motif_circuit(motif), f"{head}, {genotype.name}")) for head, motif in placed]
    both = drawing.both_cells(genotype, one_rule(entry))
    return [(head, svg(drawn, f"{head} of {genotype.name}")) for head, drawn in both]


def cell_keys(entry: Entry) -> list[Key]:
    """Return the legend of an entry's cells or motifs."""
    genotype = entry.genotype
    if genotype is None:
        return []
    if isinstance(genotype, MotifGenotype):
        placed = motif_drawing.placed_motifs(genotype, _reductions(entry, genotype))
        return motif_drawing.sign_keys(motif for _, motif in placed)
    edges = (*genotype.normal, *genotype.reduce)
    return drawing.rule_keys(edges, one_rule(entry), untold=f"as the card assigns: {entry.card.rule}")


def _reductions(entry: Entry, genotype: MotifGenotype) -> frozenset[int]:
    """Return which cells halve the map; the card tells how images are coded."""
    nets = (entry.card.net, *(network.net for network in entry.card.datasets.values()))
    frames = any(net.get("coding") == "frames" for net in nets)
    return reduction_cells(len(genotype.cells), "frames" if frames else "direct")


def wiring(entry: Entry) -> str:
    """Return in words how the cells of motifs follow each other; "" for other networks."""
    genotype = entry.genotype
    if not isinstance(genotype, MotifGenotype):
        return ""
    halve = _reductions(entry, genotype)
    order = " → ".join("halving" if i in halve else f"{i}: {motif.name}" for i, motif in enumerate(genotype.cells))
    return (
        f"stem → {order} → classifier. Each cell reads the last {genotype.inputs} outputs, the stem's where there are "
        "not that many yet. A node is the sum of its links; feedback adds to an earlier state, for what comes after; "
        "the nodes side by side are the output."
    )
