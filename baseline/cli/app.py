"""Command-line entry point and error handling."""

from __future__ import annotations

import atexit
import copy
import logging
import os
import re
import sys
import warnings
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from baseline import system
from baseline.cli.data import audit_command, copy_command, filter_command, recipes_command, sources_command
from baseline.cli.doctor import doctor_command
from baseline.cli.evaluate import embed_command, evaluate_command, reference_command
from baseline.cli.experiments import clean_command, curve_command, ladder_command
from baseline.cli.interrupts import ignore_signals, interrupt_on_signals, interrupted_code, is_interrupted
from baseline.cli.output import StandardError, StandardOutput, open_streams, print_text
from baseline.cli.results import compare_command, report_command, runs_command
from baseline.cli.train import run_command
from baseline.cli.usage import describe_usage_error
from baseline.cli.use import (
    bundle_command,
    check_command,
    export_command,
    import_command,
    predict_command,
    push_command,
    serve_command,
    submit_command,
)
from baseline.errors import BaselineError, system_errors
from baseline.terminal import shorten_runs

MAX_MESSAGE = 4000
"""Maximum number of characters of an error that are printed, half of them from its end, which says what to do."""


class Command(TyperCommand):
    """A command whose help shows no value type for flags, and names arguments in capitals."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters of the command."""
        return [set_metavar(param) for param in super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the arguments; an empty path, which would be read as the working folder, is refused."""
        options = [param for param in self.get_params(ctx) if param.param_type_name == "option" and not param.is_flag]
        texts = {name for param in options if not takes_path(param) for name in param.opts}
        for before, value in pairwise(["", *args]):
            name, _, text = value.partition("=")
            is_empty = name.startswith("--") and name != value and not text and name not in texts
            if is_empty or (not value and before not in texts):
                empty = "An argument is empty, such as a variable of the shell that is not set"
                raise typer.BadParameter(f"{empty}. Leave it out, or pass . for the working folder.", ctx)
        return super().parse_args(ctx, args)


class CommandGroup(TyperGroup):
    """The group of the commands, with the same help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters of the group."""
        return [set_metavar(param) for param in super().get_params(ctx)]


def takes_path(param: Any) -> bool:
    """Return whether the value of an option is a path or several; an empty one that is text is a field of a recipe."""
    names = ("ensemble", "fixes", "images", "reference")
    return param.name in names or "Path" in str(getattr(param, "type_descriptor", None) or param.type)


def set_metavar(param: Any) -> Any:
    """Set what the help shows as the value of a parameter, and return the parameter."""
    if getattr(param, "is_flag", False):
        param.metavar = ""
    elif param.param_type_name == "argument" and param.metavar is None:
        param.metavar = param.name.upper()
    return param


app = typer.Typer(
    name="baseline",
    cls=CommandGroup,
    help="Train an image classifier in one command, and see how far its accuracy can be trusted.",
    epilog="Start with: baseline run images/ | baseline run cifar10 | baseline doctor",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    *(run_command, predict_command, evaluate_command, embed_command, serve_command),
    *(compare_command, runs_command, report_command),
    *(audit_command, clean_command, filter_command, ladder_command, curve_command, submit_command),
    *(export_command, import_command, push_command, bundle_command, check_command, reference_command),
    *(sources_command, recipes_command, copy_command, doctor_command),
)

app.command("train", cls=Command, hidden=True)(run_command)
for command in COMMANDS:
    app.command(command.__name__.removesuffix("_command"), cls=Command)(command)


def run_process() -> None:
    """Run the command line as all that this process does."""
    codes: list[int] = []
    system.is_command = True
    if "torch" not in sys.modules:  # registered before what torch and others register, it runs after that
        atexit.register(skip_teardown, codes)
    try:
        main()
    except SystemExit as end:
        ignore_signals()
        codes.append(int(end.code or 0))
        raise
    except KeyboardInterrupt:  # between the end of the command and here
        ignore_signals()
        codes.append(interrupted_code())
        raise SystemExit(codes[0]) from None


def skip_teardown(codes: list[int]) -> None:
    """Exit with the code of a command that has loaded torch, whose objects Python would take down for two seconds.

    A process that was interrupted exits here, too: if the interrupt came in an `exec`, such as that of a dataclass,
    Python would end it with SIGINT, whichever signal it was.
    """
    if codes and ("torch" in sys.modules or is_interrupted()):
        with suppress(OSError, ValueError):  # a stream that is full or closed, as at any exit
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(codes[0])


def main() -> None:
    """Run the command line. Invalid input gives a one-line error and exit code 2, a signal 128 plus its number."""
    interrupt_on_signals()
    open_streams()
    # warnings of timm and fastai at import, which a user of this command cannot do anything about
    warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL|pydicom")  # the audit reports damaged images
    for decoder in ("tifffile", "pydicom"):
        logging.getLogger(decoder).setLevel(logging.CRITICAL)
    sys.stdout, sys.stderr = StandardOutput(), (stderr := StandardError())
    try:
        with system_errors(of_any_code=True):
            code = app_for(sys.argv[1:])(standalone_mode=False, prog_name="baseline")
            sys.stdout.flush()
    except BaselineError as error:
        code = print_error(str(error), error.exit_code)
    except typer.Exit as exit:  # the reader of standard output has left
        code = exit.exit_code
    except MemoryError:
        code = print_error("There is too little memory. Pass smaller files, or use a machine with more memory.")
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if is_interrupted():  # what a library made of the interrupt
            code = 130
        elif message := describe_device_error(error):
            code = print_error(message)
        elif hasattr(error, "format_message"):  # usage errors of click have it, whichever click Typer brings
            message = describe_usage_error(error)
            code = print_error(message) if message else 2
        else:
            raise
    stderr.end()
    is_interrupt = code == 130 or (code and is_interrupted())  # Typer ends with 130 on every interrupt
    raise SystemExit(interrupted_code() if is_interrupt else code or 0)


def app_for(args: list[str]) -> typer.Typer:
    """Return the app, with a single command if the arguments begin with its name: Typer needs 0.1 s to make them all.

    >>> len(app_for(["doctor"]).registered_commands), len(app_for(["--help"]).registered_commands)
    (1, 25)
    """
    named = [info for info in app.registered_commands if args and info.name == args[0]]
    if named:
        chosen = copy.copy(app)
        chosen.registered_commands = named
        return chosen
    return app


def describe_device_error(error: Exception) -> str:
    """Return what to print for an error of a GPU that the user can do something about; empty for any other error."""
    if not isinstance(error, RuntimeError):
        return ""
    if re.search(r"(CUDA|HIP|MPS)\b.* out of memory", str(error)):
        return "The GPU has too little memory. Pass a smaller --batch-size or --image-size, or end what else uses it."
    if "no kernel image is available" in str(error):
        return (
            "This build of torch has no code for this GPU. Install one that has (baseline doctor says more), or set "
            "CUDA_VISIBLE_DEVICES=-1 to use the CPU."
        )
    return ""


def print_error(message: str, code: int = 2) -> int:
    """Print an error in one line on standard error and return the exit code."""
    line, half = shorten_runs(" ".join(message.split())), MAX_MESSAGE // 2
    line = line if len(line) <= MAX_MESSAGE else f"{line[:half]} ... ({len(line):,} characters in all) {line[-half:]}"
    print_text(f"baseline: {line.encode(errors='replace').decode()}", file=sys.stderr)
    return code


def print_version(value: bool) -> None:
    """Print the version and exit, if asked."""
    if value:
        from baseline import __version__

        print_text(__version__)
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
