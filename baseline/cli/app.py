"""The command line: parse, call, print. Knows words; does no work, and loads no torch until a command needs it."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from baseline.cli.data import audit, copy, recipes
from baseline.cli.doctor import doctor
from baseline.cli.experiments import clean, curve, ladder
from baseline.cli.results import compare, report, runs
from baseline.cli.train import run
from baseline.cli.use import bundle, check, export, import_, predict, push, serve, submit
from baseline.errors import BaselineError

app = typer.Typer(
    name="baseline",
    help="The first honest number for an image-classification problem, and a model to go with it.",
    epilog="Start with: baseline run cifar10 | baseline run images/ | baseline doctor",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    *(run, ladder, curve, audit, clean, compare, report, runs, predict, serve),
    *(check, export, import_, bundle, push, submit, recipes, copy, doctor),
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)


def main() -> None:
    """Runs the command line; errors of the input become one line and exit code 2, Ctrl-C becomes 130."""
    # said by timm's and fastai's imports, which nobody who runs this command can mend
    warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of images, whose rows or findings say more
    try:
        code = app(standalone_mode=False, prog_name="baseline")
    except BaselineError as error:
        code = _print_error(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's errors of usage have it, whichever click is below
            raise
        context, words = getattr(error, "ctx", None), error.format_message()
        where = context.command_path if context else "baseline"
        code = _print_error(f"{words} See {where} --help.") if words else 2  # without words, it was help that was shown
    raise SystemExit(code or 0)


def _print_error(words: str, code: int = 2) -> int:
    print(f"baseline: {' '.join(words.split())}", file=sys.stderr)
    return code


def _version(value: bool) -> None:
    if value:
        from baseline import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Prints the version and ends.")
    ] = False,
) -> None:
    pass
