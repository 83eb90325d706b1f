"""Errors in how a command was typed: what is wrong with it, in one line, and what to type instead."""

from __future__ import annotations

import os
import re
from typing import Any

from baseline.recipe.load import recipe_names

__all__ = ["describe_usage_error"]

OTHER_NAMES = {
    "--learning-rate": "--lr", "--learning_rate": "--lr", "--num-epochs": "--epochs",
    "--bs": "--batch-size", "--batch": "--batch-size", "--batch_size": "--batch-size",
    "--size": "--image-size", "--img-size": "--image-size", "--imgsz": "--image-size", "--image_size": "--image-size",
    "--model": "--arch", "--backbone": "--arch", "--architecture": "--arch",
    "--output": "--out", "--output-dir": "--out", "--folds": "--split", "--time": "--budget",
}  # fmt: skip
"""Names that other tools give to an option of this one."""

MAX_LISTED = 60
"""Maximum number of characters of the arguments that are too many, which may be all files of a folder."""

EXAMPLE = re.compile(r"^\s*baseline \S+ (.+?)(?:\s{2,}#.*)?$", re.MULTILINE)
"""A command in the help of a command, without its name and the comment behind it."""

NOT_A_NUMBER = re.compile(
    r"(?:Input should be a valid (integer|number)|(?<=: )'.*' is not a valid (integer|float))\b.*"
)
"""How pydantic and click say that a value is no number."""

NUMBERS = {"integer": "a whole number", "number": "a number", "float": "a number"}


def describe_usage_error(error: Any) -> str:
    """Return the line for an error of click; empty if it has no message because the help was printed."""
    context = getattr(error, "ctx", None)
    path, command = (context.command_path, context.command) if context else ("baseline", None)
    message = re.sub(r"(Did you mean .+?\?) \1", r"\1", error.format_message())  # of Typer and of click
    message = NOT_A_NUMBER.sub(lambda match: f"needed: {NUMBERS[match[1] or match[2]]}", message).rstrip(".")
    if not message:
        return ""
    if message.startswith("Missing ") and (example := EXAMPLE.search(getattr(command, "help", "") or "")):
        message += f", as in {path} {example[1]}"
    elif message.startswith("Got unexpected extra argument"):
        message = re.sub(rf"\((.{{{MAX_LISTED}}}).+\)$", r"(\1...)", message)
        message += ". Put a path with spaces in quotes, and pass a folder instead of a pattern such as images/*"
    elif name := re.fullmatch(r"No such command '(.+)'", message):
        if os.path.exists(name[1]) or name[1] in recipe_names():  # noqa: PTH110  # no error for a name too long
            message += f". To train on it: {path} run {name[1]}"
    elif message.startswith("No such option"):
        typed = str(getattr(error, "option_name", ""))
        meant = OTHER_NAMES.get(typed, "")
        if any(meant in param.opts for param in getattr(command, "params", ())):
            message = f"No such option: {typed}. Did you mean {meant}?"
    return f"{message}{'' if message.endswith('?') else '.'} See {path} --help."
