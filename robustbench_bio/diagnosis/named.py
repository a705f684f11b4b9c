"""The diagnosis of a network by name, as the command line asks for it."""

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.diagnosis.diagnose import diagnose
from robustbench_bio.diagnosis.probe import DIAGNOSED
from robustbench_bio.evaluation.plan import Settings, Slice
from robustbench_bio.evaluation.planning import gradients_of
from robustbench_bio.records.diagnosis import Diagnosis
from robustbench_bio.records.threat import Threat
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import DataSource

#: Networks of the zoo that may lend their adversarial examples to a diagnosis.
SOURCES = ("bp-resnet20", "bp-darts")


def diagnose_model(
    model: str,
    data: DataSource,
    threat: Threat,
    *,
    gradient: str | None = None,
    source: str | None = None,
    n_examples: int = 200,
    settings: Settings,
    progress: Progress = silent,
) -> Diagnosis:
    """Diagnose one model of the zoo on the test split.

    `gradient` None is the last that an evaluation would take; `source` lends its adversarial examples, by default the
    first of `SOURCES` that there is.

    Raises:
        UserError: a norm other than linf and l2, or names that do not exist.
    """
    if threat.norm not in DIAGNOSED:
        raise UserError(f"expected norm linf or l2 for a diagnosis, got {threat.norm!r}")
    net = data.network(model, settings.device)
    examples = Slice.load(data).to(settings.device)
    lender = source or _source(model, data.dataset)
    return diagnose(
        net,
        (examples.x, examples.y),
        norm=threat.norm,
        eps=threat.eps,
        gradient=gradient or gradients_of(net, None, examples.x[:2])[-1],
        source=data.network(lender, settings.device) if lender else None,
        n_examples=n_examples,
        seed=settings.seed,
        progress=progress,
    )


def _source(model: str, dataset: str) -> str | None:
    """Return a backpropagation network of the zoo for the data set, not the model itself."""
    others = (name for name in SOURCES if name != model)
    return next((name for name in others if _has_weights(name, dataset)), None)


def _has_weights(model: str, dataset: str) -> bool:
    entry = catalog.card(model).datasets.get(dataset)
    return entry is not None and entry.weights is not None
