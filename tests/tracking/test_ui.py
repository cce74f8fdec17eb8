"""The command that opens MLflow's page: what stops it, and that asking for help loads nothing heavy."""

import argparse
import json
import subprocess
import sys

import pytest

from lit_pretrain.commands import ui
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.processes import process_identity
from lit_pretrain.tracking.runs_table import VIEW_TAG, latest_experiment, with_columns
from lit_pretrain.tracking.store import end_all_dead_runs


def parse(*words):
    parser = argparse.ArgumentParser()
    ui.add_arguments(parser)
    return parser.parse_args(words)


def test_no_database_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="There is no mlflow.db in"):
        ui.run(parse("--runs", str(tmp_path)))
    with pytest.raises(UserError, match="Port 99999 does not exist"):
        ui.check_port("127.0.0.1", 99999)
    with pytest.raises(UserError, match="Port 5000 of 192.0.2.1 cannot be used"):  # an address of nobody's
        ui.check_port("192.0.2.1", 5000)


def test_command_line_of_the_server(tmp_path):
    command = ui.server_command(tmp_path / "mlflow.db", tmp_path, "127.0.0.1", 5001)
    assert f"sqlite:///{tmp_path}/mlflow.db" in command
    assert (tmp_path / "artifacts").as_uri() in command


def test_looking_marks_the_runs_whose_process_is_gone(tmp_path):
    loggers = [MLflowLogger("ui", runs_directory=str(tmp_path)) for _ in range(2)]
    client = loggers[0].experiment
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    client.set_tag(loggers[0].run_id, "process.identity", process_identity(gone.pid))
    gone.communicate(b"\n")
    assert loggers[1].run_id
    end_all_dead_runs(tmp_path / "mlflow.db", tmp_path)
    assert [client.get_run(logger.run_id).info.status for logger in loggers] == ["KILLED", "RUNNING"]
    (tmp_path / "other.db").write_text("no database")
    end_all_dead_runs(tmp_path / "other.db", tmp_path)


def test_the_table_of_runs_is_opened_with_figures(tmp_path):
    logger = MLflowLogger("ui", runs_directory=str(tmp_path))
    client = logger.experiment
    assert latest_experiment(tmp_path / "mlflow.db") is None
    logger.show_columns(["best/validation/loss"])
    logger.show_columns(["test/accuracy", "best/validation/loss"])
    logger.finalize()
    experiment = client.get_experiment(logger.experiment_id)
    view = json.loads(experiment.tags[VIEW_TAG])
    columns = json.loads(view["state"])["selectedColumns"]
    assert columns[1:3] == ["metrics.`best/validation/loss`", "metrics.`test/accuracy`"]
    assert latest_experiment(tmp_path / "mlflow.db") == (experiment.experiment_id, "ui")
    # The page of an experiment links to it, unless a person has described the experiment.
    way = f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=lit_pretrain"
    assert f"[Figures]({way}" in experiment.tags["mlflow.note.content"]
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "mine")
    again = MLflowLogger("ui", runs_directory=str(tmp_path))
    assert again.experiment
    again.show_columns(["test/f1"])
    again.finalize()
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"] == "mine"
    # A person's own columns stay.
    for changed in (view | {"updatedAt": 1}, view | {"state": "deflate;abc"}, view | {"name": "mine"}):
        assert with_columns(json.dumps(changed), ["new"], 2) == json.dumps(changed)


def test_nothing_heavy_is_imported():
    program = (
        "import sys, lit_pretrain.commands.ui, lit_pretrain.tracking.find, lit_pretrain.tracking.store\n"
        "print([name for name in ('torch', 'lightning', 'mlflow', 'pandas', 'sqlalchemy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
