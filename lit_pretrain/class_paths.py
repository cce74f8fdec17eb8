"""Classes by their names in checkpoints: the suite's own by their short names, a user's by their import paths."""

import inspect
import pydoc
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError

PACKAGE = __name__.partition(".")[0]


def is_ours(kind: type) -> bool:
    """Whether a class is the suite's own."""
    return kind.__module__.partition(".")[0] == PACKAGE


def class_path_of(kind: type) -> str:
    """What a checkpoint keeps of a class: its name if it is the suite's own, wherever it may lie, else where it is."""
    return kind.__name__ if is_ours(kind) else f"{kind.__module__}.{kind.__qualname__}"


def class_and_file(kind: type) -> str:
    """A class as errors name it: the suite's own by its name, a user's with the file that it stands in."""
    if is_ours(kind):
        return kind.__name__
    try:
        file = Path(inspect.getfile(kind))
    except (OSError, TypeError):
        return class_path_of(kind)
    return f"{kind.__name__} ({file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file})"


def short_name(class_path: str) -> str:
    """The class's own name."""
    return class_path.rpartition(".")[2]


def subclasses(kind: type) -> list[type]:
    """All classes below a class, at any depth."""
    below: list[type] = kind.__subclasses__()
    return [one for child in below for one in (child, *subclasses(child))]


def arguments_of(kind: type) -> dict[str, inspect.Parameter]:
    """What a class is made with, by name: its own arguments, and those of its bases that it takes by `**settings`.

    Where a class has them as its `__signature__`, all that shows one, `help` and notebooks, tells them too.
    """
    found: dict[str, inspect.Parameter] = {}
    for constructor in (vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)):
        own, parameters = not found, list(inspect.signature(constructor).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter if own else parameter.replace(kind=parameter.KEYWORD_ONLY))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def class_named(class_path: str, base: type, role: str) -> type:
    """The class that a checkpoint names; a user's own is imported.

    Args:
        class_path: As `class_path_of` made it. Checkpoints of earlier versions have the name alone of any class.
        base: What it must be, or be below.
        role: It is in the checkpoint, such as "an objective".

    Raises:
        UserError: If it cannot be imported, is not below the base, or has a name alone and is not there.
    """
    kinds = [base, *subclasses(base)]
    if "." not in class_path:
        named = [kind for kind in kinds if kind.__name__ == class_path]
        if not named:
            raise UserError(
                f"The checkpoint has {role} of the class {class_path}, which is not known here, and does not say where "
                "it is defined: import it before, in Python."
            )
        return next((kind for kind in named if is_ours(kind)), named[-1])
    reason = "there is none"
    try:
        kind = pydoc.locate(class_path)
    except pydoc.ErrorDuringImport as error:
        kind, reason = None, " ".join(str(error.value).split())
    if kind is None:
        # Defined in a script or in a function, and there again.
        kind = next((candidate for candidate in kinds if class_path_of(candidate) == class_path), None)
    if kind is None:
        raise UserError(
            f"The checkpoint has {role} of the class {class_path}, which cannot be imported ({reason}): install the "
            "module that defines it, or put its directory into PYTHONPATH."
        )
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise UserError(f"The checkpoint has {role} of {class_path}, which is no {base.__name__} of the suite's.")
    return kind


def build(class_path: str, arguments: dict[str, Any], base: type, role: str) -> Any:
    """An instance of the class that a checkpoint names; see `class_named`.

    Raises:
        UserError: If there is no such class, or it takes other arguments by now.
    """
    kind = class_named(class_path, base, role)
    try:
        return kind(**arguments)
    except TypeError as error:
        raise UserError(
            f"{class_path} does not take the arguments that the checkpoint keeps of it ({error}): use the version of "
            "it that the checkpoint was made with."
        ) from error
