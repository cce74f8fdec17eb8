"""What is written down of a run."""

import subprocess

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.__main__ import main
from lit_pretrain.errors import UserError, without_credentials
from lit_pretrain.tracking.best import direction
from lit_pretrain.tracking.machine import git_state
from lit_pretrain.tracking.run_record import RunRecorder
from lit_pretrain.tracking.save_config import SaveConfig, flatten_config
from lit_pretrain.tracking.writer import first_line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


class Fail(Callback):
    """Raises at a step."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            raise self.error


class ScriptedModule(ToyModule):
    """Its validation loss is 3, 1, 2, nan in turn."""

    def validation_step(self, batch, batch_index):
        self.log("validation/loss", [3.0, 1.0, 2.0, float("nan")][self.trainer.current_epoch])
        self.log("validation/mlm/accuracy", [0.1, 0.4, 0.3, 0.2][self.trainer.current_epoch])
        self.log("validation/unclear", 1.0)


def test_facts_best_values_and_checkpoints(runs):
    trainer = make_trainer(runs, max_steps=16, enable_model_summary=False)
    trainer.fit(ScriptedModule(), ToyData(batches=4))
    client, run_id = trainer.logger.experiment, trainer.logger.run_id
    run = client.get_run(run_id)
    assert run.data.params["model_facts.parameters"] == "9"
    assert run.data.params["data_facts.tokens"] == "1234"
    assert run.data.tags["data.fingerprint"] == "f" * 16
    assert run.data.tags["versions.torch"] == torch.__version__.split("+")[0]
    assert int(run.data.tags["machine.cores"]) >= 1
    assert run.data.tags["precision"] == "32-true"
    assert run.data.metrics["best/validation/loss"] == 1.0
    assert run.data.metrics["best/validation/mlm/accuracy"] == pytest.approx(0.4)
    assert not any("unclear" in name for name in run.data.metrics if name.startswith("best"))
    assert [one.step for one in client.get_metric_history(run_id, "best/validation/loss")] == [4, 8]
    checkpoints = trainer.logger.run_directory / "checkpoints"
    assert run.data.tags["checkpoint.best"] == str(checkpoints / "epoch=1-step=8.ckpt")
    assert run.data.tags["checkpoint.last"] == str(checkpoints / "last.ckpt")
    assert run.data.tags["checkpoint.best_score"] == "validation/loss = 1"
    # Checkpoints are large; they are not copied into the artifacts.
    assert not client.list_artifacts(run_id)
    state = torch.load(checkpoints / "last.ckpt", weights_only=True)["callbacks"]["RunRecorder"]
    recorder = RunRecorder()
    recorder.load_state_dict(state)
    assert recorder.best == {"validation/loss": 1.0, "validation/mlm/accuracy": pytest.approx(0.4)}


def test_a_measurement_knows_the_step_and_the_run_it_belongs_to(runs):
    trainer = make_trainer(runs, max_steps=20)
    trainer.fit(ToyModule(), ToyData())
    checkpoint = trainer.logger.run_directory / "checkpoints" / "last.ckpt"
    measuring = make_trainer(runs)
    measuring.validate(ToyModule(), ToyData(), ckpt_path=str(checkpoint), verbose=False)
    client = measuring.logger.experiment
    assert measuring.logger.run_id != trainer.logger.run_id
    tags = client.get_run(measuring.logger.run_id).data.tags
    assert (tags["stage"], tags["source.run_id"]) == ("validate", trainer.logger.run_id)
    assert tags["source.checkpoint"] == str(checkpoint)
    measured, trained = (
        client.get_metric_history(logger.run_id, "validation/loss") for logger in (measuring.logger, trainer.logger)
    )
    assert [(one.step, one.value) for one in measured] == [(20, trained[0].value)]


@pytest.mark.parametrize(
    ("error", "status", "failure"),
    [
        (RuntimeError("shapes\ndo not match"), "FAILED", "RuntimeError: shapes"),
        (UserError("The disk is full."), "FAILED", "The disk is full."),
        (KeyboardInterrupt(), "KILLED", None),
    ],
)
def test_how_it_ended(runs, error, status, failure):
    trainer = make_trainer(runs, [Fail(error)], max_steps=5)
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else type(error)):
        trainer.fit(ToyModule(), ToyData())
    run = trainer.logger.experiment.get_run(trainer.logger.run_id)
    assert run.info.status == status
    assert run.data.tags.get("failure") == failure
    # What was logged before is there.
    assert run.data.metrics["train/loss"] > 0


def test_polite_where_the_module_says_nothing(runs):
    class Silent(ToyModule):
        describe = step_cost = examples = None

    trainer = make_trainer(runs, max_steps=2)
    trainer.fit(Silent(), ToyData())
    assert trainer.logger.experiment.get_run(trainer.logger.run_id).info.status == "FINISHED"


def test_config_of_a_run_and_of_its_resumption(runs):
    parser = LightningArgumentParser()
    parser.add_argument("--model.width", type=int, default=8)
    parser.add_argument("--trainer.max_steps", type=int, default=3)
    parser.add_argument("--model.name", type=str | None, default=None)

    def fit(arguments, checkpoint=None):
        config = parser.parse_args(arguments)
        trainer = make_trainer(runs, [SaveConfig(parser, config)], max_steps=config.trainer.max_steps, monitor=None)
        if checkpoint:
            trainer.logger.resume_from(checkpoint)
        trainer.fit(ToyModule(), ToyData(batches=3), ckpt_path=checkpoint)
        return trainer.logger

    logger = fit([])
    last = str(logger.run_directory / "checkpoints" / "last.ckpt")
    with pytest.warns(UserWarning, match="trainer.max_steps"):
        fit(["--trainer.max_steps=6"], last)
    client = logger.experiment
    assert {one.path for one in client.list_artifacts(logger.run_id)} == {"config.yaml", "config-resumed-1.yaml"}
    saved = yaml.safe_load((logger.run_directory / "config.yaml").read_text())
    assert saved == {"model": {"width": 8, "name": None}, "trainer": {"max_steps": 3}}
    run = client.get_run(logger.run_id)
    assert run.data.params["trainer.max_steps"] == "3"
    assert run.data.tags["resumed.trainer.max_steps"] == "6"
    assert "model.name" not in run.data.params


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:1/path", "https://host:1/path"),
        ("to postgresql://me:secret@host/db, then", "to postgresql://host/db, then"),
        ("mysql+pymysql://me:sec/ret@host:3306/db", "mysql+pymysql://host:3306/db"),
        ("s3://key:s%40cret@bucket/x and ftp://secret@h", "s3://bucket/x and ftp://h"),
        ("postgresql://h/db?user=me&password=secret&a=b", "postgresql://h/db?user=me&password=***&a=b"),
        ("https://h/x.csv?X-Amz-Signature=secret", "https://h/x.csv?X-Amz-Signature=***"),
        *((text, text) for text in ("http://h:5000/a?mail=a@b", "sqlite:////tmp/a@b.db", "a: b@c", "x/y://")),
    ],
)
def test_passwords_are_never_shown(text, shown):
    assert without_credentials(text) == shown and "secret" not in shown


def test_passwords_are_never_stored(runs, monkeypatch, capsys):
    address = "postgresql://me:secret@127.0.0.1:1/db"
    monkeypatch.setattr("sys.argv", ["lit_pretrain", "fit", "--trainer.logger.tracking_uri", address])
    parser = LightningArgumentParser()
    parser.add_argument("--data.path", type=str)
    trainer = make_trainer(runs, [SaveConfig(parser, parser.parse_args(["--data.path", address]))], max_steps=1)
    trainer.logger.tags["store"] = address
    trainer.fit(ToyModule(), ToyData(batches=3))
    trainer.logger.set_tags({"failure": first_line(ValueError(f"no {address}"))})
    trainer.logger.finalize("success")
    run = trainer.logger.experiment.get_run(trainer.logger.run_id)
    kept = [str(run.data.tags), str(run.data.params), (trainer.logger.run_directory / "config.yaml").read_text()]
    assert all("secret" not in text and "postgresql://127.0.0.1:1/db" in text for text in kept)
    assert main(["doctor", address]) == 2 and "secret" not in capsys.readouterr().err


def test_flat_config_names_classes_by_their_last_name():
    config = {
        "seed_everything": 0,
        "config": ["a.yaml"],
        "trainer": {"max_steps": 3, "logger": {"class_path": "x.Logger"}, "devices": None},
        "model": {
            "class_path": "lit.TextPretraining",
            "init_args": {
                "objectives": [
                    {"class_path": "lit.Masked", "init_args": {"share": 0.15}},
                    {"class_path": "lit.NextSentence"},
                ],
                "betas": [0.9, 0.98],
            },
        },
    }
    assert dict(flatten_config(config)) == {
        "seed_everything": 0,
        "trainer.max_steps": 3,
        "model": "TextPretraining",
        "model.objectives": "Masked, NextSentence",
        "model.objectives.Masked.share": 0.15,
        "model.betas": [0.9, 0.98],
    }


def test_git_state_of_a_repository_and_of_none(tmp_path):
    assert git_state(tmp_path) == {}

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-b", "main")
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    state = git_state(tmp_path)
    assert len(state["git.commit"]) == 40 and state["git.branch"] == "main" and state["git.dirty"] == "false"
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path)["git.dirty"] == "true"


def test_which_way_is_better():
    assert direction("validation/loss") == direction("validation/masked_language_modeling/perplexity") == "min"
    assert direction("validation/mlm/accuracy") == direction("validation/knn") == "max"
    assert direction("validation/retrieval/image_to_text_r@5") == "max"
    assert direction("validation/probe/loss") == "min"
    assert direction("validation/bitmap") is None
    # These have words that say nothing, or something else, alone.
    names = ("colorization/cross_entropy", "text_to_picture/median_rank", "masked_image_modeling/explained_variance")
    assert [direction(f"validation/{name}") for name in names] == ["min", "min", "max"]
    assert direction("validation/text_effective_rank") is None
