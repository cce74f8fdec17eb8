"""What a registered model needs on another machine: packages in the versions that are here, and this package's code."""

import importlib
import importlib.metadata
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

import lit_pretrain
from lit_pretrain.errors import UserError

PACKAGE = Path(lit_pretrain.__file__).parent
# Caches, and the bundled data, which no model needs.
LEFT_OUT = ("__pycache__", "*.pyc", "*.parquet")


def pinned_requirements() -> list[str]:
    """The packages that this one depends upon, each at the version that is installed, as pip takes them.

    A version's local part, as in 2.14.1+cpu, is left out: package indices do not have it.

    Raises:
        UserError: If what it depends upon is not known, or is not installed.
    """
    pinned = {}
    for requirement in map(Requirement, declared_requirements()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(
                f"The package {requirement.name}, which lit_pretrain depends upon, is not installed: pip install "
                f"'{requirement}'."
            ) from error
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        pinned[requirement.name] = f"{requirement.name}{extras}=={Version(version).public}"
    return sorted(pinned.values(), key=str.lower)


def declared_requirements() -> Iterable[str]:
    """As the package declares them: in its checkout, or in its installation."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        content = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if content.get("name") == PACKAGE.name:
            return content["dependencies"]
    try:
        return importlib.metadata.requires(PACKAGE.name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "lit_pretrain is neither installed nor in its checkout, so that what it depends upon is not known: pip "
            "install it."
        ) from error


def copy_code(record: dict[str, Any], directory: Path) -> list[str]:
    """Copy the code that a model needs and no package index has: this package, and files of a person's own classes.

    Args:
        record: Of the checkpoint, which names the classes.
        directory: Where to; it is made.

    Returns:
        What lies there, for MLflow's `code_paths`.
    """
    directory.mkdir()
    for source in (PACKAGE, *own_code(record)):
        target = directory / source.name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copyfile(source, target)
    return sorted(str(path) for path in directory.iterdir())


def own_code(record: dict[str, Any]) -> list[Path]:
    """Files, or packages, of the classes of a person's own that a checkpoint is built from."""
    modules = {path.partition(".")[0] for path in class_paths_in(record) if "." in path} - {PACKAGE.name, "__main__"}
    found = []
    for module in (importlib.import_module(name) for name in sorted(modules)):
        file = Path(module.__file__ or next(iter(module.__path__))).resolve()
        found.append(file.parent if file.name == "__init__.py" else file)
    return found


def class_paths_in(content: Any) -> Iterator[str]:
    """All classes that a checkpoint's record names, at any depth."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name in ("class_path", "encoder_class"):
                yield str(value)
            else:
                yield from class_paths_in(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from class_paths_in(value)
