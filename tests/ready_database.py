"""New databases of MLflow: its seventy migrations are run for the first test that needs one, and copied for others.

Nothing waits until the disk has what was written: a test's database need not survive a loss of power.
"""

import contextlib
import functools
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from lit_pretrain.tracking.store import prepare_mlflow

# MLflow reads its settings when it is imported.
prepare_mlflow()

import mlflow.store.db.utils as database  # noqa: E402
import sqlalchemy  # noqa: E402

# Where the copy lies, for this process and those it starts.
VARIABLE = "LIT_PRETRAIN_TESTS_DATABASE"


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def do_not_wait(connection: object, record: object) -> None:
    """Leave it to the system when to write."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


def copying(initialize: Callable[[sqlalchemy.Engine], None]) -> Callable[[sqlalchemy.Engine], None]:
    """MLflow's function that makes all tables, for an empty file by copying what it has made before."""

    def make_tables(engine: sqlalchemy.Engine) -> None:
        path, ready = engine.url.database, os.environ.get(VARIABLE)
        if engine.dialect.name != "sqlite" or not path or not ready:
            initialize(engine)
            return
        with contextlib.closing(sqlite3.connect(path)) as new:
            empty = not new.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if empty and Path(ready).exists():
                with contextlib.closing(sqlite3.connect(ready)) as made:
                    made.backup(new)
                return
            initialize(engine)
            if empty:
                part = Path(f"{ready}.{os.getpid()}")
                new.execute("VACUUM INTO ?", [str(part)])
                part.replace(ready)

    return make_tables


database._initialize_tables = copying(database._initialize_tables)
# What the newest version of the tables is, MLflow reads out of all migrations for every database.
database._get_latest_schema_revision = functools.cache(database._get_latest_schema_revision)
