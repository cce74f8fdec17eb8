"""Databases that another MLflow has made: of an earlier version, as its own migrations leave it, and of a later one."""

import argparse
import contextlib
import fcntl
import multiprocessing
import os
import sqlite3
import sys
from importlib.metadata import version

import pytest
from mlflow.store.db.utils import _get_latest_schema_revision
from ready_database import EARLIER, earlier_database

from lit_pretrain.__main__ import main
from lit_pretrain.commands import checks, ui
from lit_pretrain.errors import UserError
from lit_pretrain.studies.record import StudyRecord
from lit_pretrain.tracking.find import RunRecord
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.schema import bring_up_to_date, schema_of
from lit_pretrain.tracking.store import open_store, resolve_tracking_uri

OLD_RUN = "a" * 32


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path))
    return tmp_path


def ask(path, question):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(question).fetchall()


def serve(runs):
    """What `ui` does before it becomes the server."""
    parser = argparse.ArgumentParser()
    ui.add_arguments(parser)
    ui.run(parser.parse_args(["--port", "53987"]))


OPENERS = {
    "fit": lambda runs: MLflowLogger("new").experiment,
    "compare": lambda runs: main(["compare", "--experiment", "before"]),
    "study": lambda runs: StudyRecord("s", "studies", "scaling").end("FINISHED"),
    "ui": serve,
}


@pytest.mark.parametrize(("command", "revision"), [*zip(OPENERS, EARLIER * 2, strict=True)])
def test_an_earlier_database_is_kept_and_upgraded(runs, monkeypatch, capsys, command, revision):
    monkeypatch.setattr(os, "execv", lambda *_: None)
    database = runs / "mlflow.db"
    earlier_database(database, revision)
    before = database.read_bytes()
    (number,) = ask(database, "SELECT version_num FROM alembic_version")[0]
    (row,) = checks.check_database(str(runs))
    assert row.status == checks.WARN and "earlier MLflow" in row.found and database.read_bytes() == before

    OPENERS[command](runs)

    (backup,) = runs.glob("*.backup.db")
    assert number in backup.name and ask(backup, "SELECT version_num FROM alembic_version") == [(number,)]
    assert ask(backup, "SELECT run_uuid FROM runs") == [(OLD_RUN,)]
    assert (
        f"upgraded for MLflow {version('mlflow')}, and the database as it was is {backup.name}"
        in capsys.readouterr().err
    )
    assert schema_of(database) == ("current", _get_latest_schema_revision())
    client = open_store(resolve_tracking_uri(None, runs), runs)
    assert client.get_run(OLD_RUN).info.run_name == "old" and client.get_experiment("7").name == "before"
    assert not list(runs.glob("*.part")) and len(list(runs.glob("*.backup.db"))) == 1


def upgrade_in_child(runs, barrier):
    barrier.wait(30)
    sys.stderr = (runs / f"{os.getpid()}.said").open("w")
    bring_up_to_date(runs / "mlflow.db", runs)
    sys.stderr.close()


def test_of_two_processes_one_upgrades(runs):
    earlier_database(runs / "mlflow.db", "head-5")
    import mlflow.db  # noqa: F401

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    children = [context.Process(target=upgrade_in_child, args=(runs, barrier)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert schema_of(runs / "mlflow.db")[0] == "current"
    assert len(list(runs.glob("*.backup.db"))) == 1
    assert sorted(bool(path.read_text()) for path in runs.glob("*.said")) == [False, True]


def test_what_stops_an_upgrade_leaves_the_database_as_it_was(runs):
    database = runs / "mlflow.db"
    earlier_database(database, "head-5")
    directory = runs / "before" / f"old-{OLD_RUN[:8]}"
    directory.mkdir(parents=True)
    RunRecord(OLD_RUN, "before", resolve_tracking_uri(None, runs), "old", directory).write()
    with (directory / ".alive").open("w") as sign:
        fcntl.flock(sign, fcntl.LOCK_EX)
        before = database.read_bytes()
        with pytest.raises(UserError, match="cannot be upgraded while old still log"):
            _ = MLflowLogger("new").experiment
    assert database.read_bytes() == before
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DROP TABLE trace_info")
    before = database.read_bytes()
    with pytest.raises(UserError, match="MLflow 3.* cannot upgrade them .*nothing was changed"):
        _ = MLflowLogger("new").experiment
    assert database.read_bytes() == before
    assert not list(runs.glob("*.backup.db")) and not list(runs.glob(".*.part"))


@pytest.mark.parametrize("command", OPENERS)
def test_a_later_database_is_one_sentence(runs, capsys, command):
    database = runs / "mlflow.db"
    open_store(resolve_tracking_uri(None, runs), runs)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffff00001111'")
    before = database.read_bytes()
    if command == "compare":
        assert main(["compare"]) == 2
        said = capsys.readouterr().err
    else:
        with pytest.raises(UserError) as caught:
            OPENERS[command](runs)
        said = str(caught.value)
    assert (
        "of a newer MLflow than 3." in said and "pip install --upgrade mlflow" in said and len(said.splitlines()) == 1
    )
    assert database.read_bytes() == before
