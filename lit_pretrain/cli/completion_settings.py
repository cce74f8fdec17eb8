"""What can be set on the command line of `fit`, as jsonargparse finds it: the table that completion looks into."""

import inspect
import typing
from types import NoneType, UnionType
from typing import Any, Literal

from jsonargparse import ArgumentParser
from lightning import LightningDataModule, LightningModule

import lit_pretrain.backbone
import lit_pretrain.data
import lit_pretrain.modules
import lit_pretrain.objectives
from lit_pretrain.class_paths import subclasses
from lit_pretrain.trainer import Trainer

# Characters of a docstring that are shown beside an option.
LONGEST_HELP = 100


def all_settings() -> dict[str, Any]:
    """Options of the trainer, and of each class of model and data by its name: help and values; see `completion`."""
    bases: dict[str, tuple[type, Any]] = {
        "model": (LightningModule, lit_pretrain.modules),
        "data": (LightningDataModule, lit_pretrain.data),
    }
    found: dict[str, Any] = {"trainer": options_of(Trainer, "trainer")}
    for section, (base, package) in bases.items():
        kinds = [getattr(package, name) for name in package.__all__]
        kinds = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, base)]
        found[section] = {kind.__name__: options_of(kind, section) for kind in kinds if not inspect.isabstract(kind)}
    return found


def options_of(kind: type, section: str) -> dict[str, tuple[str, list[str]]]:
    """Options of a class's arguments, those of groups within them too, with help and values."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, section, fail_untyped=False)
    options = {}
    for action in parser._actions:
        for option in action.option_strings:
            if option.startswith(f"--{section}.") and not option.endswith((".help", "+")):
                text = " ".join(str(action.help or "").split()).partition(" (required")[0].partition(" (type:")[0]
                options[option] = text[:LONGEST_HELP], values_of(getattr(action, "_typehint", None))
    return options


def values_of(annotation: Any) -> list[str]:
    """The values that an annotation allows, if those are few: of choices, of switches, names of classes."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return [str(value) for value in arguments]
    if origin in (typing.Union, UnionType, list):
        return list(dict.fromkeys(value for argument in arguments for value in values_of(argument)))
    if annotation is NoneType:
        return ["null"]
    if annotation is bool:
        return ["true", "false"]
    if inspect.isclass(annotation) and annotation.__module__.startswith(("lit_pretrain", "lightning")):
        kinds = [kind for kind in subclasses(annotation) if not kind.__name__.startswith("_")]
        return sorted({kind.__name__ for kind in kinds if not inspect.isabstract(kind)})
    return []
