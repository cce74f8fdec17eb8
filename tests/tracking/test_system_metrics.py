"""The load of the machine in a run's metrics."""

from importlib.util import find_spec

import pytest
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.mlflow_logger import MLflowLogger

NAME = "system/cpu_utilization_percentage"


def test_the_load_is_logged_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    if find_spec("psutil") is None:
        # All that can be seen here.
        with pytest.raises(UserError, match="psutil, which measures the load, is missing: pip install psutil"):
            MLflowLogger("toy", runs_directory=str(tmp_path), system_metrics=True)
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
        with pytest.raises(UserError, match="MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is set"):
            MLflowLogger("toy", runs_directory=str(tmp_path))
        return
    logger = MLflowLogger("toy", runs_directory=str(tmp_path), system_metrics=True)
    trainer = make_trainer(tmp_path, logger=logger, max_steps=20)
    trainer.fit(ToyModule(step_seconds=0.03), ToyData())
    client, run_id = logger.experiment, logger.run_id
    first = [one.step for one in client.get_metric_history(run_id, NAME)]
    assert first == list(range(len(first))) and len(first) > 2
    assert "system/system_memory_usage_percentage" in client.get_run(run_id).data.metrics

    # A resumed run counts on; neither does it measure on when it has ended.
    checkpoint = str(logger.run_directory / "checkpoints" / "last.ckpt")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    again = MLflowLogger("toy", runs_directory=str(tmp_path))
    again.resume_from(checkpoint)
    make_trainer(tmp_path, logger=again, max_steps=30).fit(ToyModule(0.03), ToyData(), ckpt_path=checkpoint)
    steps = [one.step for one in client.get_metric_history(run_id, NAME)]
    assert steps == list(range(len(steps))) and len(steps) > len(first)
    assert again._monitor is None
    assert client.get_run(run_id).info.status == "FINISHED"
