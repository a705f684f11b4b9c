"""`biorobust diagnose`: look for gradient masking."""

from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, DataFile, DataRoot, DatasetName, Device


def diagnose(
    model: Annotated[str, typer.Option(help="Id of the zoo, or path of a card that ends in .toml.")],
    dataset: DatasetName = "digits",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    eps: Annotated[
        str | None, typer.Option(help="Radius in input units, such as 8/255 [default: linf 8/255, l2 0.5].")
    ] = None,
    gradient: Annotated[
        str | None, typer.Option(help="Of the white-box attacks [default: exact; with thresholds surrogate:arctan].")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Network whose adversarial examples are tried too [default: a bp network].")
    ] = None,
    n_examples: Annotated[int, typer.Option(min=1, help="Correctly classified examples to look at.")] = 200,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    device: Device = "auto",
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Look for gradient masking: may this network's robustness be believed?"""
    from robustbench_bio.diagnosis.named import diagnose_model
    from robustbench_bio.evaluation.planning import read_settings
    from robustbench_bio.records.threat import Threat
    from robustbench_bio.report import tables as report
    from robustbench_bio.zoo.loading import DataSource

    threat, settings = Threat.checked(norm, eps), read_settings(seed=seed, device=device)
    with terminal.progress_shown("diagnosing") as progress:
        diagnosis = diagnose_model(
            model,
            DataSource(dataset, data_root, data_file),
            threat,
            gradient=gradient,
            source=source,
            n_examples=n_examples,
            settings=settings,
            progress=progress,
        )
    document = {"model": model, "dataset": dataset} | diagnosis.document()
    terminal.print_result(as_json, document, report.diagnosis_table(model, diagnosis))
