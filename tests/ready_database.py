"""New databases of MLflow: its seventy migrations are run for the first test that needs one, and copied for others.

On the way a copy of an earlier version is kept, as an earlier MLflow would have made it.

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

import alembic.command  # noqa: E402
import mlflow.store.db.utils as database  # noqa: E402
import sqlalchemy  # noqa: E402

# Where the copy lies, for this process and those it starts.
VARIABLE = "LIT_PRETRAIN_TESTS_DATABASE"
# Versions before the newest, by how many migrations.
EARLIER = ("head-5", "head-1")


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
            for revision in EARLIER if empty else ():
                database.InitialBase.metadata.create_all(engine)
                with engine.begin() as connection:
                    config = database._get_alembic_config(str(engine.url))
                    config.attributes["connection"] = connection
                    alembic.command.upgrade(config, revision)
                # Processes that a test starts may make it at once.
                part = Path(f"{ready}.{revision}.{os.getpid()}")
                new.execute("VACUUM INTO ?", [str(part)])
                part.replace(f"{ready}.{revision}")
            initialize(engine)
            if empty:
                part = Path(f"{ready}.{os.getpid()}")
                new.execute("VACUUM INTO ?", [str(part)])
                part.replace(ready)

    return make_tables


def earlier_database(path: Path, revision: str) -> None:
    """Write a database of an earlier version, one of `EARLIER`, with an experiment and a run in it."""
    ready = Path(f"{os.environ[VARIABLE]}.{revision}")
    if not ready.exists():
        database._initialize_tables(sqlalchemy.create_engine(f"sqlite:///{path}"))
    path.write_bytes(ready.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) VALUES (7, ?, ?, ?)",
            ("before", path.parent.as_uri(), "active"),
        )
        connection.execute(
            "INSERT INTO runs (run_uuid, name, experiment_id, status, lifecycle_stage, start_time, source_type, "
            "user_id, artifact_uri) VALUES (?, 'old', 7, 'FINISHED', 'active', 1, 'LOCAL', 'me', ?)",
            ("a" * 32, path.parent.as_uri()),
        )


database._initialize_tables = copying(database._initialize_tables)
# What the newest version of the tables is, MLflow reads out of all migrations for every database.
database._get_latest_schema_revision = functools.cache(database._get_latest_schema_revision)
