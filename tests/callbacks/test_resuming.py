"""What is set when a training is gone on with is used, or refused; nothing is recorded that was not used."""

import mlflow
import pytest
from small_training import small_config, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks.resuming import compare
from lit_pretrain.cli.lightning_cli import CommandLine, command_line
from lit_pretrain.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def started(tmp_path_factory):
    """A training that stopped after 4 of an epoch's about 25 steps, at its schedule's highest rate."""
    directory = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        trainer = {"max_steps": 4, "log_every_n_steps": 1, "val_check_interval": 100, "num_sanity_val_steps": 0}
        trainer["max_time"] = "00:01:00:00"
        trainer["callbacks"] = [
            {"class_path": "EarlyStopping", "init_args": {"monitor": "validation/loss", "patience": 3}}
        ]
        config = small_config(write_corpus(directory / "corpus.jsonl"), trainer=trainer)
        config["model"]["init_args"]["schedule"] = {"shape": "constant_then_decay", "warm_up": 0, "decay": 0}
        path = str(write_config(directory / "small.yaml", config))
        assert main(["fit", "--config", path]) == 0
        yield ["fit", "--config", path, "--ckpt_path", "last"]


def run_of(arguments):
    client = mlflow.MlflowClient(command_line(arguments, CommandLine).trainer.logger.tracking_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    return client, run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data.batch_size", "4"], "so data.batch_size 4 on 1 would repeat some of its samples"),
        (["--seed_everything", "4"], "in the order of seed 3, so data.seed 4 on 1 would repeat"),
        (["--trainer.max_time", "00:00:00:00"], "trainer.max_time, which counts from the run's beginning, allows no"),
        (["--model.optimizer.learning_rate", "-1"], "optimizer.learning_rate is -1.0"),
    ],
)
def test_what_would_be_wrong_is_refused_and_not_recorded(started, capsys, arguments, sentence):
    assert main([*started, "--trainer.max_steps", "5", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_settings_of_the_optimizer_are_those_given_now(started):
    changes = {"learning_rate": 1e-5, "weight_decay": 0.5, "beta2": 0.9, "epsilon": 1e-3}
    arguments = [text for key, value in changes.items() for text in (f"--model.optimizer.{key}", str(value))]
    arguments += ["--trainer.callbacks.patience", "9", "--trainer.max_steps", "6"]
    line = command_line([*started, *arguments], CommandLine)
    (optimizer,) = line.trainer.optimizers
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["initial_lr"]) == ((0.9, 0.9), 1e-3, 1e-5)
    assert line.trainer.early_stopping_callback.patience == 9
    client = line.trainer.logger.experiment
    history = client.get_metric_history(line.trainer.logger.run_id, "learning_rate")
    expected = dict.fromkeys(range(1, 5), 1e-3) | dict.fromkeys((5, 6), 1e-5)
    assert {one.step: one.value for one in history} == pytest.approx(expected)
    tags = client.get_run(line.trainer.logger.run_id).data.tags
    assert tags["resumed.model.optimizer.learning_rate"] == "1e-05"
    # What was refused before left no trace.
    assert not {"resumed.data.batch_size", "resumed.seed_everything", "resumed.trainer.max_time"} & set(tags)


def facts(devices=1, batch_size=8, seed=3, draws=3, samples=100, name="data"):
    return {
        "devices": devices,
        "seed": draws,
        "orders": {name: {"batch_size": batch_size, "seed": seed, "samples": samples}},
    }


def test_what_cannot_be_exact_is_said():
    for changed, sentence in (
        (facts(devices=2, batch_size=4), r"trainer.devices \(1 then, 2 now\), and masks.*: what follows is not"),
        (facts(draws=5), r"the seed of the draws \(3 then, 5 now\)"),
        (facts(samples=90), r"the samples of data \(100 then, 90 now\)"),
    ):
        with pytest.warns(UserWarning, match=sentence):
            compare(facts(), changed, 13)
    with pytest.raises(UserError, match=r"data.batch_size 8 on 1 device .* so data.batch_size 8 on 2 would"):
        compare(facts(), facts(devices=2), 13)
    # Between two epochs everything may change, but for what has an epoch of its own.
    compare(facts(), facts(batch_size=16, seed=4, samples=90), 0)
    with pytest.raises(UserError, match=r"data.text.batch_size 8"):
        compare(facts(name="data.text"), facts(name="data.text", batch_size=16), 0)
