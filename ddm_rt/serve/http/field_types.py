"""Types of fields in a body that hold more than one thing."""

from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

_MOST_CALLS = 10_000


def numbers(count: int, **limits: Any) -> Any:
    """So many numbers, or null."""
    number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False, **limits)]
    return Annotated[list[number], Field(min_length=count, max_length=count)] | None


def _calls(value: Any) -> Any:
    """As it is. A union of types would say what is wrong of each, and name none of the others."""
    if value not in (None, "auto", "off") and not (type(value) is int and 2 <= value <= _MOST_CALLS):
        raise ValueError("expected auto, off, or a number of calls, at least 2")
    return value


Calls = Annotated[
    Any,
    PlainValidator(_calls),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 2, "maximum": _MOST_CALLS},
                {"type": "string", "enum": ["auto", "off"]},
                {"type": "null"},
            ]
        }
    ),
]
"""Calls of the model by a cache: a number, "auto", "off" or null."""
