"""MLflow's database, held by another program for a while or for long."""

import contextlib
import functools
import sqlite3
import time
import warnings

import pytest
import sqlalchemy
from lightning.pytorch.callbacks import Callback
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.errors import UserError
from lit_pretrain.tracking import mlflow_logger, store
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.writer import Writer


@contextlib.contextmanager
def held(database, how="EXCLUSIVE"):
    """Within this nobody else reads it, or writes it."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(f"BEGIN {how}")
        yield
        connection.execute("ROLLBACK")


class Hold(Callback):
    """Takes the database at step 5, until something that was logged could not be sent, and gives it back at step 10."""

    def __init__(self, database):
        self.database, self.holding = database, contextlib.ExitStack()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5:
            assert trainer.logger.flush()
            self.holding.enter_context(held(self.database))
        if trainer.global_step == 10:
            deadline = time.monotonic() + 60
            while not (trainer.logger.run_directory / "unsent.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            self.holding.close()


@pytest.fixture
def impatient(monkeypatch):
    """What waits for a lock does so for moments."""

    def shorter(connection, cursor, statement, *arguments):
        return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), arguments[0]

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", shorter, retval=True)
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(mlflow_logger, "Writer", functools.partial(Writer, interval=0.05, retry_after=0.2))
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", shorter)


def test_a_locked_database_costs_a_sentence_and_all_that_is_logged_arrives(tmp_path, impatient):
    logger = MLflowLogger("toy", runs_directory=str(tmp_path))
    trainer = make_trainer(tmp_path, [Hold(tmp_path / "mlflow.db")], logger=logger, max_steps=20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(ToyModule(), ToyData())
    said = [str(one.message) for one in caught if "tracking store" in str(one.message)]
    assert len(said) == 2 and "database is locked" in said[0] and "answers again" in said[1]
    history = logger.experiment.get_metric_history(logger.run_id, "train/loss")
    assert sorted(one.step for one in history) == list(range(1, 21))
    assert not (logger.run_directory / "unsent.jsonl").exists()
    # Where a run begins there is no run yet to which anything could be sent later.
    for how in ("EXCLUSIVE", "IMMEDIATE"):
        with held(tmp_path / "mlflow.db", how), pytest.raises(UserError, match=r"mlflow.db is locked by another prog"):
            _ = MLflowLogger("other", runs_directory=str(tmp_path)).experiment
