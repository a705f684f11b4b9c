"""`biorobust eval`: attack a network and print how much of its accuracy is left."""

from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import (
    AsJson,
    AttackNorm,
    DataFile,
    DataRoot,
    DatasetName,
    Device,
    OutDir,
    Radii,
    attack_params,
)


def evaluate(
    model: Annotated[str, typer.Option(help="Id of the zoo, or path of a card that ends in .toml.")],
    attack: Annotated[
        str | None,
        typer.Option(
            help="Name of an attack; see `biorobust list attacks` [default: swift, with thresholds coordinate as well; "
            "pgd of other libraries]."
        ),
    ] = None,
    dataset: DatasetName = "digits",
    norm: AttackNorm = None,
    eps: Radii = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the attack.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--set", help="Attack parameter as name=value; repeatable.")
    ] = None,
    gradient: Annotated[
        str | None,
        typer.Option(
            help="exact, rule, own (the network's backward pass), both (rule or own, and exact), surrogate:NAME, eot:K "
            "(mean of K draws), rule+eot:K [default: rule and exact, exact without rules; surrogates with thresholds]."
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Whose attack runs: native, torchattacks, foolbox, autoattack, or all of them.")
    ] = "native",
    n_examples: Annotated[int | None, typer.Option(help="First N examples of the test split [default: all].")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples attacked together.")] = 256,
    precision: Annotated[str, typer.Option(help="Of gradient passes: auto, float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the attack's random draws.")] = 0,
    device: Device = "auto",
    out_dir: OutDir = None,
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Attack a network and print how much of its accuracy is left."""
    from robustbench_bio.core.files import default_home
    from robustbench_bio.diagnosis.assess import assess
    from robustbench_bio.evaluation.planning import AskedAttack, eval_plan, read_settings
    from robustbench_bio.evaluation.store import Store
    from robustbench_bio.report import tables as report
    from robustbench_bio.zoo.loading import DataSource

    params = attack_params(param, steps)
    asked = AskedAttack.read(attack, norm, eps, params=params, gradient=gradient, backend=backend)
    settings = read_settings(seed=seed, batch_size=batch_size, precision=precision, device=device)
    store = Store(out_dir or default_home() / "results")
    with terminal.progress_shown("attacking") as progress:
        plan = eval_plan(
            model,
            DataSource(dataset, data_root, data_file),
            asked,
            n_examples=n_examples,
            settings=settings,
            notice=lambda line: terminal.err.print(line, soft_wrap=True),
        )
        [assessment] = assess(plan, asked.threats[0], store=store, progress=progress)
    results, diagnosis = assessment.measured, assessment.diagnosis
    terminal.print_result(as_json, report.eval_document(results, diagnosis), report.eval_table(results, diagnosis))
