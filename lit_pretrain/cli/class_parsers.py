"""The parsers of a config's classes, each made once, and the settings in them, each looked for once.

jsonargparse makes the parser of a class from its signature and its docstring whenever it looks at the class: for a
small training two hundred times of twenty classes, which was a third of the seconds until its first step. And it goes
through all settings of a parser, the trainer's too, for each name that it looks up: ten thousand times.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser, _core, _signatures, _subcommands
from jsonargparse._typehints import ActionTypeHint, import_object, nested_links, parent_parser

from lit_pretrain.class_paths import PACKAGE
from lit_pretrain.cli import namespaces

# By what they were made of. Those of installed classes are kept for all commands of a process; a person's class may be
# another one by then.
MADE: dict[tuple[Any, ...], ArgumentParser] = {}
KEPT = {PACKAGE, "lightning", "torch"}
_parameters: dict[tuple[type, str | None], list[Any]] = {}
# Where a parser keeps what was found in it.
FOUND = "_lit_pretrain_found"

make = ActionTypeHint.get_class_parser
read_parameters = _signatures.get_signature_parameters
find, is_branch_key = _subcommands.find_action_and_subcommand, _subcommands.is_branch_key


@contextmanager
def made_once() -> Iterator[None]:
    """Within it, a class that was parsed with the same settings before has the parser that was made then."""
    before = ActionTypeHint.get_class_parser, _subcommands.find_action_and_subcommand, _core.is_branch_key
    signatures = _signatures.get_signature_parameters
    outermost = before[1] is not find_action
    replace(get_class_parser, find_action, is_branch)
    setattr(_signatures, "get_signature_parameters", parameters_of)  # noqa: B010
    namespaces.use(ours=True)
    try:
        yield
    finally:
        replace(*before)
        _signatures.get_signature_parameters = signatures
        namespaces.use(ours=not outermost)
        for key in [key for key in MADE if getattr(key[0], "__module__", "").partition(".")[0] not in KEPT]:
            del MADE[key]


def replace(maker: Any, finder: Any, branches: Any) -> None:
    """Set the three functions wherever jsonargparse calls them."""
    setattr(ActionTypeHint, "get_class_parser", staticmethod(maker))  # noqa: B010
    for module in (_core, _subcommands):
        setattr(module, "find_action_and_subcommand", finder)  # noqa: B010
        setattr(module, "is_branch_key", branches)  # noqa: B010


def get_class_parser(
    kind: Any, settings: dict[str, Any] | None = None, skip_args: Any = None, **others: Any
) -> ArgumentParser:
    """As jsonargparse's, which makes a new one each time."""
    settings, parent = others.pop("sub_add_kwargs", settings) or {}, parent_parser.get()
    # Links and skipped arguments change a parser after it was made.
    if parent is None or others or skip_args or nested_links.get() or settings.get("linked_targets"):
        return make(kind, settings, skip_args, **others)
    kind = import_object(kind) if isinstance(kind, str) else kind
    values = [(name, frozenset(value) if isinstance(value, set) else value) for name, value in settings.items()]
    key = (kind, frozenset(values), type(parent), parent.parser_mode, parent.logger)
    if key not in MADE:
        MADE[key] = make(kind, settings)
    return MADE[key]


def parameters_of(kind: Any, method: str | None = None, logger: Any = True) -> list[Any]:
    """As jsonargparse's, which reads the code of a class, the trainer's too, for every command."""
    if not isinstance(kind, type) or kind.__module__.partition(".")[0] not in KEPT:
        return read_parameters(kind, method, logger)
    if (kind, method) not in _parameters:
        _parameters[kind, method] = read_parameters(kind, method, logger)
    found = _parameters[kind, method]
    return [dataclasses.replace(parameter, default=namespaces.copied(parameter.default)) for parameter in found]


def find_action(parser: Any, dest: str, exclude: Any = None) -> tuple[argparse.Action | None, str | None]:
    """As jsonargparse's, which looks at every argument each time."""
    if not isinstance(parser, ArgumentParser):
        return find(parser, dest, exclude)
    if parser._subcommands_action is not None:
        # It looks into the parsers of its subcommands, to which more arguments may be added.
        command, _, rest = dest.partition(".")
        inner = parser._subcommands_action._name_parser_map.get(command)
        if inner is None or not rest:
            return find(parser, dest, exclude)
        action, deeper = find_action(inner, rest, exclude)
        return action, command if deeper is None else f"{command}.{deeper}"
    found = vars(parser).setdefault(FOUND, {})
    key = (dest, exclude, len(parser._actions))
    if key not in found:
        found[key] = find(parser, dest, exclude)
    return found[key]


def is_branch(parser: Any, key: str) -> bool:
    """As jsonargparse's, which looks at every argument each time."""
    if not isinstance(parser, ArgumentParser) or parser._subcommands_action is not None:
        command, _, rest = key.partition(".")
        inner = getattr(getattr(parser, "_subcommands_action", None), "_name_parser_map", {}).get(command)
        return is_branch(inner, rest) if inner is not None and rest else is_branch_key(parser, key)
    found = vars(parser).setdefault(FOUND, {})
    place = (key, is_branch, len(parser._actions))
    if place not in found:
        found[place] = is_branch_key(parser, key)
    return found[place]
