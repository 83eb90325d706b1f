"""Checks the fields of a recipe's dataclasses by pydantic, with messages that say what is and what was needed.

pydantic is imported when the first recipe is made, so that `baseline --help` does not wait for it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Interval

from baseline.errors import MAX_LISTED, unknown_name

__all__ = ["Before", "Needed", "as_numbers", "as_tuple", "check", "describe_needed", "is_int", "is_number", "is_range"]


@dataclass(frozen=True)
class Needed:
    """Annotation that describes valid values in error messages."""

    text: str


@dataclass(frozen=True)
class Before:
    """Annotation with a function that converts a value before it is checked."""

    convert: Callable[[Any], Any]


def as_tuple(value: Any) -> Any:
    """Convert a list to a tuple; return other values unchanged. TOML and JSON have lists only."""
    return tuple(value) if isinstance(value, list) else value


def as_numbers(value: Any) -> Any:
    """Numbers in a list, or in one text with commas, as a tuple of floats."""
    parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
    try:
        return tuple(map(float, parts))
    except (TypeError, ValueError):
        return value


def is_range(value: tuple[float, ...]) -> bool:
    """Whether the numbers are none, or two that increase."""
    return not value or (len(value) == 2 and -math.inf < value[0] < value[1] < math.inf)


def check(
    kind: type,
    value: Any,
    where: str,
    faults: list[str],
    *,
    flat: Mapping[str, str] | None = None,
    only: tuple[str, ...] = (),
) -> Any:
    """Return `value` as an instance of the dataclass `kind`, its fields converted; what is wrong is added to `faults`.

    Args:
        value: an instance, or a mapping of field names to values.
        where: what the messages call the value, such as `stage 2`.
        flat: names that the messages use for fields, by field; those are unique, so that `where` is left out.
        only: the fields to check; all of them by default. The value is then returned as it is.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if isinstance(value, Mapping):
        unknown = [name for name in value if name not in fields]
        messages = [unknown_name("key", str(name)[:99], fields, limit=99) for name in unknown[:MAX_LISTED]]
        faults += [f"{where}: {message.rstrip('.')}" for message in messages]
        missing = [name for name, f in fields.items() if _is_required(f) and name not in value]
        if unknown or missing:
            if missing:
                faults.append(f"{where} is {value!r:.200}, needed: a table with {', '.join(missing)}")
            return value
        value = kind(**value)
    elif not isinstance(value, kind):
        faults.append(f"{where} is {value!r:.200}, needed: a table of {', '.join(fields)}")
        return value
    names = only or tuple(fields)
    values = {name: getattr(value, name) for name in names}
    converted, wrong = _validate(kind, names, values)
    for name in wrong:
        label = flat[name] if flat and name in flat else f"{where}: {name}" if where else name
        faults.append(f"{label} is {values[name]!r:.200}, needed: {describe_needed(kind, name)}")
    return value if only or wrong else dataclasses.replace(value, **converted)


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _validate(kind: type, names: tuple[str, ...], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the converted values and the names of invalid fields."""
    from pydantic import ValidationError

    try:
        return dict(_validator(kind, names).model_validate(values)), []
    except ValidationError as error:
        return {}, list(dict.fromkeys(str(fault["loc"][0]) for fault in error.errors(include_url=False)))


@functools.cache
def _validator(kind: type, names: tuple[str, ...]) -> Any:
    """Return a pydantic model with these fields of a dataclass.

    Validation is strict: strings are not coerced to numbers, nor numbers to booleans.
    """
    from pydantic import BeforeValidator, ConfigDict, create_model

    hints = field_hints(kind)
    fields: dict[str, Any] = {}
    for name in names:
        converters = [BeforeValidator(part.convert) for part in metadata_of(hints[name]) if isinstance(part, Before)]
        fields[name] = (Annotated[hints[name], *converters] if converters else hints[name], ...)
    return create_model(kind.__name__, __config__=ConfigDict(strict=True, protected_namespaces=()), **fields)


@functools.cache
def field_hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their annotations."""
    return typing.get_type_hints(kind, include_extras=True)


def metadata_of(hint: Any) -> tuple[Any, ...]:
    """Return the metadata of an `Annotated` type."""
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def describe_needed(kind: type, name: str) -> str:
    """Describe the valid values of a field.

    >>> from baseline.recipe.schema import Augment, ModelSettings
    >>> describe_needed(ModelSettings, "resize"), describe_needed(Augment, "rotate")
    ('one of squish, crop, pad', 'a number from 0 to 180')
    """
    hint = field_hints(kind)[name]
    for part in metadata_of(hint):
        if isinstance(part, Needed):
            return part.text
    for part in metadata_of(hint):
        if isinstance(part, Interval):
            return f"a number from {part.ge} to {part.le}"
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(inner) is Literal:
        return f"one of {', '.join(map(str, get_args(inner)))}"
    return {bool: "true or false", int: "a whole number"}.get(inner, "another type")


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether the value is a number from `low` to `high`, and not a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_int(value: Any, low: int, high: int) -> bool:
    """Whether the value is a whole number from `low` to `high`, and not a flag."""
    return isinstance(value, int) and is_number(value, low, high)
