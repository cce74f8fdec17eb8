"""Imports in lit_pretrain go one way, those within functions and for type checking too; read from the sources alone."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lit_pretrain

ROOT = Path(lit_pretrain.__file__).parent
# From top to bottom: what stands on a line imports what stands on the lines below it, and nothing of its own line.
ROOMS = (
    ("__main__",),
    ("commands",),
    ("studies",),
    ("cli",),
    ("trainer",),
    ("callbacks",),
    ("evaluation", "serving"),
    ("modules",),
    ("comparison",),
    ("data", "objectives", "tracking"),
    ("backbone", "measures"),
    ("weights",),
    # Foundations; what stands on `errors` is above it, and all may be asked for the version and the samples.
    ("argument_parser", "class_paths", "hub", "memory", "picture_facts", "precision", "quiet", "yaml_files"),
    ("checksums", "collector", "errors", "required", "samples", "trainer_state"),
    ("lit_pretrain",),
)
# Other people's packages that a room may import.
OUTSIDE = {
    "backbone": {"timm", "torch"},
    "measures": {"numpy", "scipy", "torch"},
    "objectives": {"PIL", "scipy", "torch", "torchvision"},
    "weights": {"huggingface_hub", "safetensors", "timm", "torch"},
}
# What these never load, through no package of ours either.
NEVER = {"lightning", "datasets", "mlflow"}


def module_name(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement of a file, wherever it stands; the expressions in them would take longest to walk through."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for inner in getattr(tree, field, ()):
            yield inner
            yield from statements(inner)


def imports_of(path: Path) -> dict[str, int]:
    """Modules (a file's where there is one) that a file names in imports, wherever they stand, with their lines."""
    names: dict[str, int] = {}
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import."
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in FILES else node.module for name in inner]
        else:
            continue
        names.update(dict.fromkeys(found, node.lineno))
    return names


@cache
def all_imports() -> dict[str, dict[str, int]]:
    """Those of every file, which only the process that runs these tests reads."""
    return {name: imports_of(path) for name, path in FILES.items()}


def room_of(module: str) -> str:
    """The part of the package that a module of ours is in."""
    return module.split(".")[1] if "." in module else module


def packages_of(module: str) -> set[str]:
    """A module of ours, and the packages that it is in, which are loaded before it."""
    parts = module.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def loaded_by(module: str) -> set[str]:
    """Everything of ours that is loaded with a module, sooner or later."""
    found: set[str] = set()
    waiting = packages_of(module)
    while waiting:
        name = waiting.pop()
        found.add(name)
        for imported in all_imports()[name].keys() & FILES.keys():
            waiting |= packages_of(imported) - found
    return found


def test_every_import_goes_down() -> None:
    """A room imports those below it alone, and every room has its place."""
    level = {room: place for place, rooms in enumerate(ROOMS) for room in rooms}
    assert {room_of(name) for name in FILES} <= set(level)
    wrong = [
        f"{FILES[name].relative_to(ROOT.parent)}:{line} imports {imported}"
        for name, imports in all_imports().items()
        for imported, line in imports.items()
        if imported in FILES and room_of(imported) != room_of(name) and level[room_of(imported)] <= level[room_of(name)]
    ]
    assert not wrong, "Imports against the order of the rooms:\n" + "\n".join(wrong)


def test_no_circle_of_files() -> None:
    """No two files need each other, also by way of others."""
    graph = {name: imports.keys() & FILES.keys() for name, imports in all_imports().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"These import each other: {' -> '.join(reversed(error.args[1]))}.")


@pytest.mark.parametrize("room", OUTSIDE)
def test_what_comes_from_outside(room: str) -> None:
    """Rooms that others build upon need few packages, and neither Lightning, datasets nor MLflow at any distance."""
    for name in (name for name in FILES if room_of(name) == room):
        outside = {imported.partition(".")[0] for imported in all_imports()[name]} - {"lit_pretrain"}
        assert outside - sys.stdlib_module_names <= OUTSIDE[room], name
        for other in loaded_by(name):
            heavy = {imported.partition(".")[0] for imported in all_imports()[other]} & NEVER
            assert not heavy, f"{name} loads {other}, which imports {heavy}."
