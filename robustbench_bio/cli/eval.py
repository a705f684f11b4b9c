"""`biorobust eval`: attack a network and print how much of its accuracy is left."""

from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, DataFile, DataRoot, Device, OutDir, attack_params


def evaluate(
    model: Annotated[str, typer.Option(help="Id of the zoo, or path of a card that ends in .toml.")],
    attack: Annotated[str, typer.Option(help="Name of an attack; see `biorobust list attacks`.")] = "pgd",
    dataset: Annotated[str, typer.Option(help="Name of a data set, or path of an .npz.")] = "digits",
    norm: Annotated[str, typer.Option(help="linf, l2, l1 or l0.")] = "linf",
    eps: Annotated[str, typer.Option(help="Radius in input units, several with commas: 4/255,8/255.")] = "8/255",
    steps: Annotated[int | None, typer.Option(help="Steps of the attack.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--set", help="Attack parameter as name=value; repeatable.")
    ] = None,
    gradient: Annotated[
        str | None,
        typer.Option(
            help="exact, rule, both, surrogate:NAME, eot:K (mean of K draws), rule+eot:K "
            "[default: both with rules, else exact; surrogates for exact with thresholds]."
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
    from robustbench_bio.diagnosis.campaign import eval_model
    from robustbench_bio.report import tables as report

    with terminal.progress_shown("attacking") as progress:
        done = eval_model(
            model,
            attack=attack,
            dataset=dataset,
            norm=norm,
            eps=eps,
            params=attack_params(param, steps),
            gradient=gradient,
            backend=backend,
            n_examples=n_examples,
            batch_size=batch_size,
            precision=precision,
            seed=seed,
            device=device,
            out=out_dir,
            data_root=data_root,
            data_file=data_file,
            progress=progress,
            notice=lambda line: terminal.err.print(line, soft_wrap=True),
        )
    terminal.print_result(
        as_json,
        report.eval_document(done.results, done.diagnosis),
        report.eval_table(done.results, done.diagnosis),
    )
