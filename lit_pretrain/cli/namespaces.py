"""Settings while they are parsed: what jsonargparse does with each of them, in less time.

It takes every name such as "model.encoder" apart anew, forty thousand times for a small training, reads every word of
a config as YAML whenever it comes to it, and writes the settings of each class as YAML to read them again at once: half
of the seconds of parsing. Whatever is not an ordinary name or value is still left to jsonargparse.
"""

import functools
import inspect
import sys
from typing import Any

from jsonargparse import Namespace, _core, _loaders_dumpers, _namespace, _typehints, _util, set_dumper

# As jsonargparse has them.
THEIRS = {name: vars(Namespace)[name] for name in ("_parse_key", "__getitem__", "__setitem__", "__contains__", "get")}
copied_by_theirs = _namespace.recreate_branches
# Values that a copy shares.
PLAIN = frozenset({str, int, float, bool, type(None)})


@functools.lru_cache(1 << 14)
def parts_of(key: str) -> tuple[tuple[str, ...], str, str]:
    """The branches that a name leads through, its last part, and the name of the last branch.

    Raises:
        KeyError: If it is no name.
    """
    # Which marks parts that are methods of a namespace, and raises.
    leaf, _, parent = THEIRS["_parse_key"](Namespace(), key)
    branches = tuple(map(_namespace.add_clash_mark, key.split(".")[:-1]))
    return branches, leaf, parent


def parse_key(self: Namespace, key: Any) -> tuple[str, Any, str]:
    """Last part of a name, the namespace that it is in (null: none yet), and the name of that one."""
    if type(key) is not str:
        return THEIRS["_parse_key"](self, key)
    branches, leaf, parent = parts_of(key)
    found: Any = self
    for name in branches:
        if type(found) is not Namespace:
            return THEIRS["_parse_key"](self, key)
        values = found.__dict__
        if name not in values:
            return leaf, None, parent
        found = values[name]
    return (leaf, found, parent) if type(found) is Namespace else THEIRS["_parse_key"](self, key)


def get_item(self: Namespace, key: Any) -> Any:
    """The value of a name."""
    leaf, found, _ = parse_key(self, key)
    if type(found) is Namespace and leaf in found.__dict__:
        return found.__dict__[leaf]
    return THEIRS["__getitem__"](self, key)


def set_item(self: Namespace, key: Any, item: Any) -> None:
    """Set the value of a name."""
    leaf, found, _ = parse_key(self, key)
    if type(found) is Namespace:
        found.__dict__[leaf] = item
    else:
        THEIRS["__setitem__"](self, key, item)


def contains(self: Namespace, key: Any) -> bool:
    """Whether a name has a value."""
    try:
        leaf, found, _ = parse_key(self, key)
    except KeyError:
        return False
    if found is None:
        return False
    return leaf in found.__dict__ if type(found) is Namespace else THEIRS["__contains__"](self, key)


def get(self: Namespace, key: str, default: Any = None) -> Any:
    """The value of a name, or the default."""
    try:
        leaf, found, _ = parse_key(self, key)
    except (KeyError, TypeError):
        return default
    if found is None:
        return default
    return found.__dict__.get(leaf, default) if type(found) is Namespace else THEIRS["get"](self, key, default)


def copied(data: Any, skip_keys: Any = None) -> Any:
    """A copy of namespaces, mappings and lists within one another, without the keys that are skipped."""
    kind = type(data)
    if kind in PLAIN:
        return data
    if kind is Namespace:
        new = Namespace()
        new.__dict__.update(
            (key, copied(value, skip_keys))
            for key, value in data.__dict__.items()
            if skip_keys is None or key not in skip_keys
        )
        return new
    if kind is dict:
        return {
            key: copied(value, skip_keys) for key, value in data.items() if skip_keys is None or key not in skip_keys
        }
    if kind is list:
        return [copied(value, skip_keys) for value in data]
    return copied_by_theirs(data, skip_keys)


OURS = {
    "_parse_key": parse_key,
    "__getitem__": get_item,
    "__setitem__": set_item,
    "__contains__": contains,
    "get": get,
}


# A form of `dump`, for settings within others.
NESTED = "lit_pretrain_nested"


class Dumped(str):
    """Dumped settings as they are, of which nobody needs the text."""

    settings: Any


def dump_nested(data: Any) -> str:
    """Settings within others: themselves if YAML would give the same back, else YAML."""
    try:
        dumped = Dumped()
        dumped.settings = plain(data)
    except TypeError:
        return _loaders_dumpers.yaml_dump(data)
    return dumped


def plain(data: Any) -> Any:
    """A copy of mappings and lists of plain values.

    Raises:
        TypeError: If there is anything else in it.
    """
    kind = type(data)
    if kind in PLAIN:
        return data
    if kind is dict:
        return {plain(key): plain(value) for key, value in data.items()}
    if kind is list:
        return [plain(value) for value in data]
    raise TypeError(kind)


set_dumper(NESTED, dump_nested)


def load_dumped(value: str, *arguments: Any, **settings: Any) -> Any:
    """As jsonargparse's, which reads what was dumped."""
    return value.settings if type(value) is Dumped else load_value(value, *arguments, **settings)


@functools.lru_cache(1 << 12)
def word_of_yaml(text: str) -> Any:
    """What a text is in YAML.

    Raises:
        ValueError: If it is more than one value, and may not be shared.
    """
    value = yaml_load(text)
    if type(value) not in PLAIN:
        raise ValueError(text)
    return value


def load_yaml(text: str) -> Any:
    """As jsonargparse's, which reads the same word each time."""
    if type(text) is str and len(text) < 200 and text.isprintable() and not any(sign in text for sign in "[{:,"):
        try:
            return word_of_yaml(text)
        except ValueError:
            pass
    return yaml_load(text)


@functools.lru_cache(1 << 10)
def path_of_class(kind: type) -> str | None:
    """As jsonargparse's: a class's module and name."""
    return get_import_path(kind)


def path_of(value: Any) -> str | None:
    """As jsonargparse's, which looks for the class of every type hint again, and nearly all are Python's own."""
    if type(value) is type and value.__module__ in ("builtins", "types", "typing"):
        return path_of_class(value)
    return get_import_path(value)


class Frames:
    """What jsonargparse's parsers take of `inspect`: the module that has called them.

    Python's own lists the whole stack, with lines of source, and looks for the file of every module that is loaded.
    """

    @staticmethod
    def stack() -> list[tuple[Any, ...]]:
        """The frame that asks and the one that has called it."""
        frame = sys._getframe(1)
        return [(frame,), (frame.f_back,)]

    @staticmethod
    def getmodule(frame: Any) -> Any:
        """The module whose code runs in a frame, or null."""
        return sys.modules.get(frame.f_globals.get("__name__"))

    def __getattr__(self, name: str) -> Any:
        return getattr(inspect, name)


FRAMES = Frames()
get_import_path = _util.get_import_path
load_value, yaml_load = _typehints.load_value, _loaders_dumpers.yaml_load


def use(ours: bool) -> None:
    """Let jsonargparse have the functions of this module, or its own again."""
    for name, function in (OURS if ours else THEIRS).items():
        setattr(Namespace, name, function)
    for module in (_core, _namespace):
        setattr(module, "recreate_branches", copied if ours else copied_by_theirs)  # noqa: B010
    setattr(_typehints, "load_value", load_dumped if ours else load_value)  # noqa: B010
    setattr(_core, "inspect", FRAMES if ours else inspect)  # noqa: B010
    setattr(_util, "get_import_path", path_of if ours else get_import_path)  # noqa: B010
    _loaders_dumpers.loaders["yaml"] = load_yaml if ours else yaml_load
