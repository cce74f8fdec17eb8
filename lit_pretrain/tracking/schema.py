"""The version of the tables in MLflow's database: one of an earlier MLflow is backed up and upgraded.

After an upgrade MLflow refuses a database of before, or, where it misses a table, changes it at once and keeps no copy.
Here a copy is upgraded and takes the database's place in one transaction, so that whatever fails or is killed leaves
it as it was.
"""

import contextlib
import re
import sqlite3
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lit_pretrain.errors import UserError
from lit_pretrain.required import required
from lit_pretrain.tracking.find import list_runs
from lit_pretrain.tracking.paths import shown_path
from lit_pretrain.tracking.processes import is_worked_on
from lit_pretrain.tracking.writer import first_line

State = Literal["current", "older", "newer", "unknown"]
NAMED = 3


def migrations() -> dict[str, str | None]:
    """Versions of the schema that the installed MLflow knows, each with the one before it; read without importing it.

    Returns:
        Nothing where MLflow keeps them elsewhere than it did.
    """
    package = find_spec("mlflow")
    found: dict[str, str | None] = {}
    for place in (package.submodule_search_locations or []) if package is not None else []:
        for path in (Path(place) / "store" / "db_migrations" / "versions").glob("*.py"):
            text = path.read_text(encoding="utf-8")
            revision = re.search(r"^revision\b[^=\n]*=\s*[\"'](\w+)[\"']", text, re.MULTILINE)
            former = re.search(r"^down_revision\b[^=\n]*=\s*[\"'](\w+)[\"']", text, re.MULTILINE)
            if revision is not None:
                found[revision[1]] = former[1] if former is not None else None
    return found


def schema_of(database: Path) -> tuple[State, str]:
    """How the tables of a database stand to the installed MLflow, and their version.

    Returns:
        `unknown` for a file that is not there, is empty, is busy or is no database of MLflow's.
    """
    if not database.is_file():
        return "unknown", ""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"experiments", "runs"} <= tables:
                return "unknown", ""
            # MLflow's first versions had no number.
            rows = connection.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else []
            revision = next((str(number) for (number,) in rows), "")
    except sqlite3.Error:
        return "unknown", ""
    known = migrations()
    if not known:
        return "unknown", revision
    if revision and revision not in known:
        return "newer", revision
    return ("older" if not revision or revision in known.values() else "current"), revision


def bring_up_to_date(database: Path, runs_directory: Path) -> None:
    """Upgrade the tables of a database that an earlier MLflow has made, and say so; whoever comes meanwhile waits.

    Args:
        database: MLflow's, which need not be there.
        runs_directory: Where the directories of its runs lie.

    Raises:
        UserError: If it is of a newer MLflow, other processes still log to it, or it cannot be upgraded.
    """
    state, _ = schema_of(database)
    if state == "newer":
        raise UserError(newer(database))
    if state != "older":
        return
    from filelock import FileLock

    try:
        # Beside the database: processes with other runs directories may share it.
        with FileLock(database.with_name(f".{database.name}.lock"), timeout=600):
            state, revision = schema_of(database)
            if state == "older":
                backup = upgrade(database, revision, runs_directory)
                print(
                    f"{shown_path(database)} had the tables of an earlier MLflow: they were upgraded for MLflow "
                    f"{version('mlflow')}, and the database as it was is {backup.name} beside it.",
                    file=sys.stderr,
                )
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{shown_path(database)} has the tables of an earlier MLflow and cannot be upgraded ({first_line(error)}): "
            "make room, or make it and its directory writable."
        ) from error


def newer(database: Path) -> str:
    """The sentence for a database of a newer MLflow."""
    return (
        f"{shown_path(database)} has the tables of a newer MLflow than {version('mlflow')}, which is installed: run "
        "pip install --upgrade mlflow, or set LIT_PRETRAIN_RUNS to another place."
    )


def upgrade(database: Path, revision: str, runs_directory: Path) -> Path:
    """Upgrade a database that no other process upgrades.

    Args:
        database: MLflow's.
        revision: The version of its tables.
        runs_directory: Where the directories of its runs lie.

    Returns:
        The backup.
    """
    # With the MLflow of before in its memory, a process would go on writing to the tables of before.
    working = [
        record.run_name
        for record in list_runs(runs_directory)
        if record.tracking_uri.startswith("sqlite") and is_worked_on(record.directory)
    ]
    if working:
        listed = ", ".join(working[:NAMED]) + (" and others" if len(working) > NAMED else "")
        raise UserError(
            f"{shown_path(database)} has the tables of an earlier MLflow and cannot be upgraded while {listed} still "
            "log to it: start again when that has ended, or set LIT_PRETRAIN_RUNS to another place meanwhile."
        )
    backup, number = database.with_name(f"{database.stem}-{revision or 'first'}.backup.db"), 1
    while backup.exists():
        number += 1
        backup = database.with_name(f"{database.stem}-{revision or 'first'}-{number}.backup.db")
    draft, partial = (database.with_name(f".{database.name}.{name}.part") for name in ("upgrade", "backup"))
    try:
        for path in (draft, partial):
            path.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(database, timeout=30)) as source:
            # What is not writable is found out before the work.
            source.execute("BEGIN IMMEDIATE")
            source.rollback()
            while True:
                written = source.execute("PRAGMA data_version").fetchone()
                copy(source, partial)
                copy(source, draft)
                migrate(database, draft)
                if source.execute("PRAGMA data_version").fetchone() == written:
                    break
            partial.replace(backup)
            with contextlib.closing(sqlite3.connect(draft)) as upgraded:
                upgraded.backup(source)
    finally:
        for path in (draft, partial):
            path.unlink(missing_ok=True)
    return backup


def copy(source: sqlite3.Connection, path: Path) -> None:
    """Write a whole copy of a database, in the place of another one."""
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as target:
        source.backup(target)


def migrate(database: Path, draft: Path) -> None:
    """Let MLflow upgrade a copy, as `mlflow db upgrade` does.

    Args:
        database: What it is a copy of, to be named.
        draft: The copy.

    Raises:
        UserError: If MLflow cannot.
    """
    import mlflow.db

    try:
        required(mlflow.db.upgrade.callback)(f"sqlite:///{draft}")
    except Exception as error:  # whatever a migration meets
        raise UserError(
            f"{shown_path(database)} has the tables of an earlier MLflow, and MLflow {version('mlflow')} cannot "
            f"upgrade them ({first_line(error)}); nothing was changed: install the MLflow of before, or move the file "
            "away."
        ) from error
