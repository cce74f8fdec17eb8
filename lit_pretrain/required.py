"""For what is None until it is made, and is read afterwards: heads wait for the encoder, runs for their beginning."""

from typing import TypeVar

Value = TypeVar("Value")


def required(value: Value | None) -> Value:
    """The value, which is not None where this is called."""
    assert value is not None
    return value
