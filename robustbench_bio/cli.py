"""The command `biorobust`: parse, call one function, print with `terminal`; no other place prints."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from robustbench_bio import __version__, terminal
from robustbench_bio.boards.cli import add_commands
from robustbench_bio.errors import UserError
from robustbench_bio.terminal import AsJson, DataFile, DataRoot, Device

app = typer.Typer(
    name="biorobust",
    help="How robust networks trained with brain-like learning rules really are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# The base of all complaints about arguments, whether typer carries its own click or imports it.
_USAGE: Any = typer.BadParameter.__mro__[2]

#: Exit status after Ctrl-C, as shells have it.
_INTERRUPTED = 130


class Kind(StrEnum):
    """What `list` can list."""

    models = "models"
    attacks = "attacks"
    rules = "rules"
    datasets = "datasets"
    genotypes = "genotypes"
    presets = "presets"
    networks = "networks"
    spaces = "spaces"
    engines = "engines"
    boards = "boards"


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """How robust networks trained with brain-like learning rules really are."""
    if version:
        terminal.out.print(f"biorobust {__version__}", highlight=False)
        raise typer.Exit


@app.command("eval")
def eval_command(
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
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder of results [default: $BIOROBUST_HOME/results].")
    ] = None,
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Attack a network and print how much of its accuracy is left."""
    from robustbench_bio import report
    from robustbench_bio.campaign import eval_model

    with terminal.bar("attacking") as progress:
        done = eval_model(
            model,
            attack=attack,
            dataset=dataset,
            norm=norm,
            eps=eps,
            params=_params(param, steps),
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
    terminal.show(
        as_json,
        report.eval_document(done.results, done.diagnosis),
        report.eval_table(done.results, done.diagnosis),
    )


@app.command()
def grid(
    preset: Annotated[str, typer.Argument(help="Name of a preset, see `biorobust list presets`, or path to TOML.")],
    models: Annotated[str, typer.Option(help="Ids, patterns with *, paths of cards; with commas: 'bionas-*,bp-*'.")],
    dataset: Annotated[str, typer.Option(help="Name of a data set, or path of an .npz.")] = "digits",
    n_examples: Annotated[
        int | None, typer.Option(help="First N of the test split [default: the preset's number].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the attacks' random draws.")] = 0,
    device: Device = "auto",
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder of results [default: $BIOROBUST_HOME/results].")
    ] = None,
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Run every attack of a preset on many networks and rank them; continue where an interrupted run stopped.

    Writes results.csv, table.md and, for attacks at several radii, eps-curve.png and .svg into OUT/grid-PRESET.
    """
    from robustbench_bio import grid as grids
    from robustbench_bio import grid_report
    from robustbench_bio.store import default_home

    folder = out_dir or default_home() / "results"
    with terminal.bar("attacking") as progress:
        found = grids.run(
            preset,
            models,
            dataset=dataset,
            n_examples=n_examples,
            seed=seed,
            device=device,
            out=folder,
            data_root=data_root,
            data_file=data_file,
            progress=progress,
            notice=terminal.err.print,
        )
    files = grid_report.write(found, folder / f"grid-{found.preset.name}")
    terminal.show(as_json, grid_report.document(found, files), grid_report.table(found))
    if not as_json:
        terminal.out.print(f"written to {files[0].parent}: {', '.join(path.name for path in files)}", highlight=False)


@app.command()
def train(
    model: Annotated[
        str | None, typer.Option(help="Card to train: id of the zoo, or a path that ends in .toml.")
    ] = None,
    genotype: Annotated[str | None, typer.Option(help="Train these cells instead: name, or a path to TOML.")] = None,
    rule: Annotated[str | None, typer.Option(help="Rules of the layers: usf, genotype, random:3, 'layer*=fa'.")] = None,
    dataset: Annotated[str, typer.Option(help="Name of a data set, or path of an .npz.")] = "digits",
    name: Annotated[str | None, typer.Option("--id", help="Id of the new card.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="recipe.lr=0.1, net.channels=16, …; repeatable.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the card's.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after this time; the same call continues.")] = None,
    device: Device = "auto",
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of the run [default: runs/ID-DATASET].")] = None,
    to_zoo: Annotated[bool, typer.Option("--to-zoo", help="Also write card and weights into the zoo.")] = False,
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Train a network by its rules; continue where an interrupted run stopped."""
    from robustbench_bio import catalog, recipes, runs
    from robustbench_bio.campaign import pick_device

    card = recipes.prepare(
        model=model, genotype=genotype, rule=rule, dataset=dataset, name=name, seed=seed,
        changes=[*(change or []), *([f"recipe.epochs={epochs}"] if epochs else [])],
    )  # fmt: skip
    folder = out_dir or Path("runs") / f"{card.id}-{Path(dataset).stem}"
    with terminal.bar("training") as progress:
        run = runs.train_card(
            card,
            dataset,
            folder,
            data_root=data_root,
            data_file=data_file,
            max_minutes=max_minutes,
            device=pick_device(device),
            zoo_folder=catalog.data_folder("models") if to_zoo else None,
            progress=progress,
        )
    terminal.show(as_json, runs.document(run), runs.table(run))


@app.command()
def search(
    space: Annotated[str, typer.Option(help="Name of a space, see `biorobust list spaces`, or a path to TOML.")],
    engine: Annotated[str, typer.Option(help="Name of an engine; see `biorobust list engines`.")] = "darts",
    dataset: Annotated[str, typer.Option(help="Name of a data set, or path of an .npz.")] = "digits",
    epochs: Annotated[int | None, typer.Option(help="Of the supernet, or of each candidate's training.")] = None,
    channels: Annotated[int | None, typer.Option(help="Width of the networks [default: the space's].")] = None,
    layers: Annotated[int | None, typer.Option(help="Cells of the networks [default: the space's].")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Parameter of the engine as name=value; repeatable.")
    ] = None,
    fitness: Annotated[
        str | None,
        typer.Option(help="accuracy, loss, robust:pgd5:8/255, or a sum: accuracy=1,robust=0.5; mse-nas: rdm, sahd, …"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after this time; the same call continues.")] = None,
    executor: Annotated[
        str, typer.Option(help="Who scores candidates: local, or ray ($RAY_ADDRESS or here).")
    ] = "local",
    workers: Annotated[int | None, typer.Option(help="Processes that score candidates [default: all cores].")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="Of forward and backward passes: float32 or bfloat16.")] = "float32",
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder of the search [default: runs/search-SPACE-ENGINE-DATASET].")
    ] = None,
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Search cells and the learning rules of their operations; continue where an interrupted search stopped.

    Writes genotype.toml (for `biorobust train --genotype`), trace.csv and plots. Only the train split is used.
    Images under 16 pixels take 4 channels, 3 cells and few epochs unless told otherwise: under three minutes in
    the space bionas on two cores.
    """
    from robustbench_bio import searches
    from robustbench_bio.campaign import pick_device
    from robustbench_bio.recipes import parse_pairs

    order = searches.Order(
        space=space, engine=engine, dataset=dataset, channels=channels, layers=layers, seed=seed, fitness=fitness,
        params=parse_pairs([*(change or []), *([] if epochs is None else [f"epochs={epochs}"])]),
        executor=executor, workers=workers, device=pick_device(device), precision=precision,
        data_root=data_root, data_file=data_file,
    )  # fmt: skip
    folder = out_dir or Path("runs") / f"search-{Path(space).stem}-{engine}-{Path(dataset).stem}"
    with terminal.bar("searching") as progress:
        run = searches.search(order, folder, max_minutes=max_minutes, progress=progress)
    terminal.show(as_json, searches.document(run), searches.table(run))
    if not as_json and (command := searches.next_command(run)):
        terminal.out.print(f"train it: {command}", highlight=False, soft_wrap=True)


@app.command()
def diagnose(
    model: Annotated[str, typer.Option(help="Id of the zoo, or path of a card that ends in .toml.")],
    dataset: Annotated[str, typer.Option(help="Name of a data set, or path of an .npz.")] = "digits",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    eps: Annotated[str, typer.Option(help="Radius in input units, such as 8/255.")] = "8/255",
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
    from robustbench_bio import campaign, report

    with terminal.bar("probing") as progress:
        found = campaign.diagnose_model(
            model,
            dataset=dataset,
            norm=norm,
            eps=eps,
            gradient=gradient,
            source=source,
            n_examples=n_examples,
            seed=seed,
            device=device,
            data_root=data_root,
            data_file=data_file,
            progress=progress,
        )
    terminal.show(
        as_json, {"model": model, "dataset": dataset} | found.document(), report.diagnosis_table(model, found)
    )


@app.command("list")
def list_command(kind: Kind, as_json: AsJson = False) -> None:
    """List models, attacks, rules, data sets, genotypes, presets, networks, spaces, engines or boards."""
    from robustbench_bio import describe

    rows = describe.listing(kind.value)
    table = Table(title=kind.value)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name, line in rows.items():
        table.add_row(name, line)
    terminal.show(as_json, {kind.value: rows}, table)


@app.command()
def show(
    name: str,
    dataset: Annotated[str, typer.Option(help="Which of a model's networks.")] = "digits",
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one model, attack, rule, data set, genotype, preset, network, space, engine or board.

    Of a model's network also: cost, share of each rule, and for each layer how its feedback and the gradient that it
    learns from lie to the exact ones.
    """
    from robustbench_bio import describe, facts_text

    with terminal.late_bar("measuring") as progress:
        facts = describe.facts(name, dataset, data_root=data_root, data_file=data_file, progress=progress)
    table = Table(title=name if not name.endswith(".toml") else Path(name).stem, show_header=False)
    table.add_column("field", no_wrap=True)
    table.add_column("value")
    for field, value in facts.items():
        if field != describe.LAYERS:
            table.add_row(field, facts_text.text(field, value))
    layers = [facts_text.layer_table(facts[describe.LAYERS])] if describe.LAYERS in facts else []
    terminal.show(as_json, facts, Group(table, *layers))


def _params(pairs: Sequence[str] | None, steps: int | None) -> dict[str, Any]:
    from robustbench_bio.recipes import parse_pairs

    return parse_pairs([*(pairs or []), *([] if steps is None else [f"steps={steps}"])])


add_commands(app)


def main() -> None:
    """Run the command; the user's mistake is one line on stderr and exit status 2."""
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except _USAGE as error:
        if message := error.format_message():
            _fail(message)
        sys.exit(0)  # no command at all: the help was printed
    except (typer.Abort, KeyboardInterrupt):
        status = _INTERRUPTED
    if status == _INTERRUPTED:  # typer too makes this of Ctrl-C
        sys.stderr.write("stopped: what is finished is kept, the same command continues\n")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)
