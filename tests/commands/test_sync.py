"""What a real store does not take: it costs nothing else, and is sent when it can be."""

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.store import open_store
from lit_pretrain.tracking.writer import read_journal


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory):
    """One database for all."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("runs")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory))
        yield directory


def artifacts_of(client, run_id):
    return {one.path for one in client.list_artifacts(run_id)}


@pytest.mark.parametrize("place", ["s3://bucket/artifacts", "file://{runs}/taken/artifacts"])
def test_where_artifacts_cannot_go_all_else_arrives(runs, capsys, recwarn, place):
    client = open_store(f"sqlite:///{runs}/mlflow.db", runs)
    # A bucket without its client library; a directory where a file lies.
    (runs / "taken").write_text("")
    client.create_experiment(place, artifact_location=place.format(runs=runs))
    logger = MLflowLogger(experiment=place)
    logger.log_text("model: x", "config.yaml")
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"loss": 2.0}, step=3)
    logger.finalize("success")
    run = client.get_run(logger.run_id)
    assert (run.data.params, run.data.metrics, run.info.status) == ({"a": "1"}, {"loss": 2.0}, "FINISHED")
    said = [str(one.message) for one in recwarn if "cannot be written" in str(one.message)]
    assert len(said) == 1 and "metrics and parameters are not touched" in said[0]
    assert [one["file"] for one in read_journal(logger.run_directory / "unsent.jsonl")] == ["config.yaml"]
    assert main(["sync", logger.run_id]) == 2
    assert "not all of the run" in capsys.readouterr().err
    if place.startswith("file"):
        (runs / "taken").unlink()
        assert main(["sync"]) == 2  # the bucket's is still waiting
        assert artifacts_of(client, logger.run_id) == {"config.yaml"}


def test_a_parameter_that_cannot_be_taken_costs_no_other(runs):
    logger = MLflowLogger()
    logger.experiment.log_param(logger.run_id, "b", "first")
    logger.log_hyperparams({name: "second" for name in "abc"})
    logger.finalize("success")
    assert logger.experiment.get_run(logger.run_id).data.params == {"a": "second", "b": "first", "c": "second"}


@pytest.mark.parametrize("resumed", [False, True])
def test_what_a_deleted_run_logged_is_sent_when_it_is_restored(runs, capsys, resumed):
    logger = MLflowLogger()
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.flush()
    logger.experiment.delete_run(logger.run_id)
    logger.log_metrics({"loss": 2.0}, step=2)
    logger.finalize("failed")
    client = logger.experiment
    if resumed:
        again = MLflowLogger(run_id=logger.run_id)
        again.log_metrics({"loss": 3.0}, step=3)
        again.finalize("success")
    else:
        assert main(["sync", logger.run_id]) == 2
        assert "is deleted in its store: restore it there, or add --restore" in capsys.readouterr().err
        assert main(["sync", logger.run_id, "--restore"]) == 0
        assert "sent 2 entries" in capsys.readouterr().out
        assert client.get_run(logger.run_id).info.status == "FAILED"
    steps = [one.step for one in client.get_metric_history(logger.run_id, "loss")]
    assert steps == ([1, 2, 3] if resumed else [1, 2])
    assert not list(logger.run_directory.glob("*.jsonl"))


def test_artifacts_of_a_moved_runs_directory_are_beside_it(runs, monkeypatch):
    logger = MLflowLogger(experiment="moved")
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finalize("success")
    moved = runs.rename(runs.with_name("moved"))
    try:
        monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(moved))
        again = MLflowLogger(experiment="moved", run_id=logger.run_id)
        again.log_text("two", "two.txt")
        again.finalize("success")
        assert artifacts_of(again.experiment, logger.run_id) == {"two.txt"} and not runs.exists()
        assert again.run_directory.parent.parent == moved
    finally:
        moved.rename(runs)
