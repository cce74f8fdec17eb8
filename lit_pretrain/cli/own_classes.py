"""What is wrong with a class of a person's own that a config names: its import, its name, its constructor.

jsonargparse keeps of an error within a person's file the message alone, or takes the class for one that does not exist;
so the file is imported, or the class made, once more, to tell the file and the line.
"""

import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_pretrain.errors import nearest

# Packages whose classes configs name, and which are not a person's own.
OTHERS = ("lit_pretrain", "lightning", "pytorch_lightning", "torch", "torchmetrics")


def explain_own_import(class_paths: Iterable[str]) -> str | None:
    """The sentence for the first class that cannot be imported; null if all can be, or are not a person's own.

    Args:
        class_paths: As a config names them, "file.Class" or "package.file.Class".
    """
    for path in class_paths:
        if "." in path and path.partition(".")[0] not in OTHERS and (sentence := explain_path(path)):
            return sentence
    return None


def explain_path(path: str) -> str | None:
    """As `explain_own_import`, of one."""
    parts, module, wanted = path.split("."), None, ""
    for end in range(1, len(parts)):
        wanted = parts[end]
        name = ".".join(parts[:end])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                return failing_import(path, name, error)
            file = f"{name.replace('.', '/')}.py"
            return (
                f"There is no module '{name}' for {path}: give the command in the directory of {file}, or put that "
                "directory into PYTHONPATH."
            )
        except Exception as error:  # whatever the person's file raises
            return failing_import(path, name, error)
        if not hasattr(module, "__path__"):
            break
    if module is None or hasattr(module, wanted):
        return None
    classes = [name for name, var in vars(module).items() if inspect.isclass(var) and var.__module__ == module.__name__]
    guess = nearest(wanted, classes) or (f" (it has {', '.join(classes)})" if classes else "")
    return f"{shown_file(module.__file__ or module.__name__)} has no '{wanted}'{guess}: correct the class_path {path}."


def failing_import(path: str, name: str, error: Exception) -> str:
    """The sentence for a module whose import raises an error of its own."""
    try:
        specification = importlib.util.find_spec(name)
    except Exception:  # its package fails already
        specification = None
    file = specification.origin if specification is not None else None
    return f"{path} cannot be imported ({what_happened(error, file)}): correct that, the class is not reached before."


def explain_own_constructor(message: str, classes: Iterable[tuple[str, dict[str, Any]]]) -> str | None:
    """The sentence for the class whose constructor has raised what a parser says; null if it is none of a person's own.

    Args:
        message: Of the parser, which holds that of the constructor.
        classes: Paths and arguments, as the configs have them.
    """
    for path, arguments in classes:
        if "." not in path or path.partition(".")[0] in OTHERS:
            continue
        try:
            kind = pkgutil.resolve_name(path)
            kind(**arguments)
        except Exception as error:  # whatever the constructor raises
            if " ".join(str(error).split()) not in message:
                continue
            if "before Module.__init__() call" in str(error):
                return f"The constructor of {path} does not begin with super().__init__(): add that."
            file = sys.modules[kind.__module__].__file__ if inspect.isclass(kind) else None
            return f"{path} cannot be made ({what_happened(error, file)}): correct that."
    return None


def what_happened(error: Exception, file: str | None) -> str:
    """Where in a file an error came up, the innermost place, and what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    where, line = place.filename, place.lineno
    if isinstance(error, SyntaxError) and error.filename:
        where, line = error.filename, error.lineno
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{shown_file(where)}, line {line}: {type(error).__name__}: {message[:300].rstrip('.')}"


def shown_file(path: str) -> str:
    """A file's path, from here if it lies here."""
    file = Path(path)
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
