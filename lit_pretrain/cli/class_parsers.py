"""The parsers of a config's classes, each made once a command.

jsonargparse makes the parser of a class from its signature and its docstring whenever it looks at the class: for a
small training two hundred times of twenty classes, which was a third of the seconds until its first step.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse._typehints import ActionTypeHint, import_object, nested_links, parent_parser


@contextmanager
def made_once() -> Iterator[None]:
    """Within it, a class that was parsed with the same settings before has the parser that was made then."""
    make = ActionTypeHint.get_class_parser
    made: dict[Hashable, ArgumentParser] = {}

    def get_class_parser(
        kind: Any, settings: dict[str, Any] | None = None, skip_args: Any = None, **others: Any
    ) -> ArgumentParser:
        settings, parent = others.pop("sub_add_kwargs", settings) or {}, parent_parser.get()
        # Links and skipped arguments change a parser after it was made.
        if parent is None or others or skip_args or nested_links.get() or settings.get("linked_targets"):
            return make(kind, settings, skip_args, **others)
        kind = import_object(kind) if isinstance(kind, str) else kind
        values = [(name, frozenset(value) if isinstance(value, set) else value) for name, value in settings.items()]
        key = (kind, frozenset(values), type(parent), parent.parser_mode, parent.logger)
        if key not in made:
            made[key] = make(kind, settings)
        return made[key]

    setattr(ActionTypeHint, name := "get_class_parser", staticmethod(get_class_parser))
    try:
        yield
    finally:
        setattr(ActionTypeHint, name, staticmethod(make))
