"""The command `biorobust`: every command parses, calls one function, and prints with `terminal`."""

import sys
from typing import Annotated, Any

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.diagnose import diagnose
from robustbench_bio.cli.eval import evaluate
from robustbench_bio.cli.grid import grid
from robustbench_bio.cli.leaderboard import leaderboard
from robustbench_bio.cli.list import list_members
from robustbench_bio.cli.regress import regress
from robustbench_bio.cli.search import search
from robustbench_bio.cli.show import show
from robustbench_bio.cli.submit import submit
from robustbench_bio.cli.train import train
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.version import __version__

app = typer.Typer(
    name="biorobust",
    help="How robust networks trained with brain-like learning rules really are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are defaults, not markup
)

# The base of all complaints about arguments, whether typer carries its own click or imports it.
_USAGE: Any = typer.BadParameter.__mro__[2]

#: Exit status after Ctrl-C, as shells have it.
_INTERRUPTED = 130


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """How robust networks trained with brain-like learning rules really are."""
    if version:
        terminal.out.print(f"biorobust {__version__}", highlight=False)
        raise typer.Exit


app.command("eval")(evaluate)
app.command("grid")(grid)
app.command("train")(train)
app.command("search")(search)
app.command("diagnose")(diagnose)
app.command("list")(list_members)
app.command("show")(show)
app.command("submit")(submit)
app.command("regress")(regress)
app.add_typer(leaderboard, name="leaderboard")


def main() -> None:
    """Run the command; the user's mistake is one line on stderr and exit status 2."""
    try:
        status = app(standalone_mode=False, prog_name="biorobust")
    except UserError as error:
        _fail(str(error))
    except _USAGE as error:
        message = error.format_message()
        if not message.startswith("Usage:"):
            _fail(message)
        sys.stdout.write(f"{message}\n")  # no command at all: the message is the help
        sys.exit(0)
    except (typer.Abort, KeyboardInterrupt):
        status = _INTERRUPTED
    if status == _INTERRUPTED:  # typer too makes this of Ctrl-C
        sys.stderr.write("stopped: what is finished is kept, the same command continues\n")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)
