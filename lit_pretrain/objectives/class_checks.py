"""Mistakes in an objective's class, each told in one sentence before any training: what is missing, and where."""

import inspect
import json
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_pretrain.class_paths import class_and_file
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.objectives.objective import Objective

# Methods that objectives had before texts and pictures had the same ones.
FORMER_METHODS = {
    "check": "check_data(encoder, facts)",
    "check_pictures": "check_data(encoder, facts)",
    "panel": "examples(encoder, batch, vocabulary, generator, count)",
    "sequences": "pass_shape(encoder, samples, sequence_length)",
}
# What a subclass may have: all but nn.Module's own.
METHODS = [
    name for name, attribute in vars(Objective).items() if inspect.isfunction(attribute) and not name.startswith("_")
]


def check_class(objective: Any) -> None:
    """Refuse an objective whose class does not keep to `Objective`.

    Raises:
        UserError: In one sentence, which names class and file.
    """
    kind = type(objective)
    shown = class_and_file(kind)
    if isinstance(objective, dict):
        raise UserError(
            "model.objectives holds settings and no objectives, since the model's own constructor does not say of "
            "which type they are: annotate that argument with Sequence[Objective], and model.encoder likewise."
        )
    if not isinstance(objective, Objective):
        raise UserError(f"{shown} is no objective: derive it from lit_pretrain.objectives.Objective.")
    if "_modules" not in vars(objective):
        raise UserError(f"The constructor of {shown} does not begin with super().__init__(): add that.")
    if not isinstance(kind.name, str) or not re.fullmatch(r"[\w. -]+", kind.name):
        given = f"the name '{kind.name}'" if kind.name else "no name"
        raise UserError(f'{shown} has {given}: set name = "some_words" in the class, by which its metrics are logged.')
    for former, now in FORMER_METHODS.items():
        if callable(getattr(kind, former, None)) and not overrides(kind, now.partition("(")[0]):
            raise UserError(f"{shown} has a method {former}, which is {now} now: rename it, and take these arguments.")
    for name in METHODS:
        check_signature(kind, name, shown)
    if not overrides(kind, "compute"):
        raise UserError(f"{shown} has no method compute{arguments_of('compute')}: write it; it returns the loss.")
    if kind.passes and not overrides(kind, "make_pass"):
        raise UserError(
            f"{shown} has no method make_pass{arguments_of('make_pass')}: write it, or set passes = 0 to read the "
            "pass of another objective."
        )
    if kind.uneven and not (overrides(kind, "terms") or overrides(kind, "count_terms")):
        raise UserError(f"{shown} is uneven and has no method terms{arguments_of('terms')}: write it.")
    check_number(f"{kind.__name__}.weight", objective.weight, above=0)
    settings = objective.settings()
    try:
        json.dumps(settings)
    except TypeError as error:
        raise UserError(
            f"{shown} has arguments that no checkpoint can keep ({error}): give it numbers, words and lists of them."
        ) from error


def check_signature(kind: type, name: str, shown: str) -> None:
    """Refuse a method that cannot be called as the base's is."""
    if not overrides(kind, name) or not callable(method := getattr(kind, name)):
        return
    parameters = inspect.signature(getattr(Objective, name)).parameters
    given = inspect.signature(method)
    try:
        given.bind(*parameters)
    except TypeError:
        taken = f"({', '.join([str(parameter) for parameter in given.parameters if parameter != 'self'])})"
        raise UserError(
            f"{name} of {shown} takes {taken}, and is called with {arguments_of(name)}: take these."
        ) from None


def check_reading(objectives: Sequence[Objective]) -> None:
    """Refuse a mix in which an objective reads a pass of which nobody has said that it may be read.

    A class that makes another pass than its base inherits what the base said of its own.

    Raises:
        UserError: In one sentence.
    """
    readers = [objective for objective in objectives if not objective.passes]
    source = next((type(objective) for objective in objectives if objective.passes and objective.shares_pass), None)
    if not readers or source is None:
        return
    order = source.__mro__
    said = next(place for place, kind in enumerate(order) if "shares_pass" in vars(kind))
    made = next(place for place, kind in enumerate(order) if "make_pass" in vars(kind))
    if made < said:
        raise UserError(
            f"{class_and_file(order[made])} makes a pass of its own, which {type(readers[0]).__name__} would read: set "
            "shares_pass = True in the class if its rows and places are the batch's, else shares_pass = False."
        )


def overrides(kind: type, name: str) -> bool:
    """Whether a class has a method of its own instead of `Objective`'s."""
    return getattr(kind, name) is not getattr(Objective, name)


def arguments_of(name: str) -> str:
    """The arguments of a method of `Objective`, as they are written."""
    return f"({', '.join(list(inspect.signature(getattr(Objective, name)).parameters)[1:])})"


def is_measuring(objective: nn.Module) -> bool:
    """Whether an objective takes something from the data before the first step."""
    return overrides(type(objective), "measure")
