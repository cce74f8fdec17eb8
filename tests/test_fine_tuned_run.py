"""A fine-tuned run through the real entry: measured and used by its checkpoint alone, and gone on with exactly."""

import json
import shutil

import pyarrow.parquet
import pytest
import torch
from labelled_texts import TOKENIZER, make_texts, write_texts
from labelled_texts import make_encoder as make_text_encoder
from lightning import Callback
from registered_models import check_registered
from small_pictures import make_encoder, make_pictures, write_pictures
from small_training import training_of, write_config

from lit_pretrain.__main__ import main
from lit_pretrain.modules import FineTuning
from lit_pretrain.modules.fine_tuning.picture_mixing import MixingConfig
from lit_pretrain.modules.freezing import FreezingConfig
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.trainer import Trainer


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def fine_tuning(directory, table):
    """A config that starts from a directory of BERT weights and learns several topics of each text."""
    make_text_encoder(vocabulary_size=TOKENIZER.vocabulary_size).save_pretrained(directory)
    TOKENIZER.save(directory)
    return training_of(
        {
            "class_path": "FineTuning",
            "init_args": {"init_from": str(directory), "pooling": "mean", "optimizer": {"learning_rate": 3e-3}},
        },
        {
            "class_path": "LabelledDataModule",
            "init_args": {
                "path": "parquet",
                "data_files": str(table),
                "label_column": "topics",
                "tokenizer": str(directory),
                "maximum_length": 24,
            },
        },
        {"max_steps": 4, "val_check_interval": 2, "logger": {"class_path": "MLflowLogger"}},
    )


def latest_run(runs):
    """The directory of the latest run; they are named alike."""
    (found,) = sorted(runs.glob("*/*/run.json"), key=lambda path: path.stat().st_mtime_ns)[-1:]
    return found.parent


def test_the_checkpoint_is_enough(runs, tmp_path, capsys):
    table = write_texts(tmp_path / "texts.parquet", 60)
    config = fine_tuning(tmp_path / "bert", table)
    config["trainer"]["logger"]["init_args"] = {"run_name": "topics"}
    path = write_config(tmp_path / "topics.yaml", config)
    assert main(["fit", "--config", str(path)]) == 0
    shutil.rmtree(tmp_path / "bert")

    # The run of the test has the same name, and does not stand in the way of the next.
    assert main(["test", "--ckpt_path", "topics"]) == 0
    report = latest_run(runs) / "report"
    assert {path.name for path in report.iterdir()} == {"classes.json", "mistakes.json"}
    assert main(["validate", "--ckpt_path", "topics:best"]) == 0

    # The training's files and labels are not those of what is predicted.
    lines = ["the senate pays new roads", "", "our nation needs the old treaty"]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    assert main(["predict", "--ckpt_path", "topics", "--data.path", str(tmp_path / "lines.txt")]) == 0
    written = pyarrow.parquet.read_table(latest_run(runs) / "predictions.parquet")
    assert written.column("text").to_pylist() == lines and written.column("sample_id").to_pylist() == [0, 1, 2]
    assert json.loads(written.schema.metadata[b"classes"]) == ["land", "law"]
    answers = FineTuning.from_checkpoint("topics").predict(lines)
    assert written.column("label").to_pylist() == [one["label"] for one in answers]
    told = [list(one["probability"].values()) for one in answers]
    assert torch.allclose(torch.tensor(written.column("probability").to_pylist()), torch.tensor(told), atol=1e-5)
    assert len(written.column("embedding")[0]) == 32
    check_registered(runs, "topics", {"text": [lines[0], None, lines[2]]}, written.to_pydict())

    capsys.readouterr()
    assert main(["predict", "--config", str(path)]) == 2
    assert "name a run by --ckpt_path" in capsys.readouterr().err
    # What it started from is not read again, so another start would be recorded and not used.
    assert main(["fit", "--ckpt_path", "topics", "--model.init_from", "another"]) == 2
    assert "model.init_from is another, and the run that goes on had" in capsys.readouterr().err


def texts(directory):
    TOKENIZER.save(directory / "tokenizer")
    table = write_texts(directory / "texts.parquet")
    return lambda: make_texts(table, directory / "tokenizer", cache_directory=str(directory), batch_size=8)


def pictures(directory):
    table = write_pictures(directory / "pictures.parquet")
    return lambda: make_pictures(table, directory / "caches")


KINDS = {
    "texts": (texts, make_text_encoder, {"head_dropout": 0.1, "freeze": FreezingConfig(unfreeze_every=5)}),
    "pictures": (pictures, make_encoder, {"mixing": MixingConfig(mixup=0.8, cutmix=1.0), "linear_probe_first": True}),
}


class SaveAt(Callback):
    """Saves in the middle of an epoch."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("kind", KINDS)
def test_gone_on_with_in_mid_epoch_it_ends_as_if_never_stopped(tmp_path, kind):
    make_source, encoder, settings = KINDS[kind]
    make_data = make_source(tmp_path)

    def fit(seed, **where):
        torch.manual_seed(seed)
        module = FineTuning(
            encoder(), dropout=0.1, optimizer=AdamWConfig(learning_rate=3e-3), layer_decay=0.8, seed=0, **settings
        )
        trainer = Trainer(
            accelerator="cpu",
            precision="32-true",
            max_steps=24,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[SaveAt(tmp_path / "middle.ckpt", 14)] if not where else [],
        )
        trainer.fit(module, make_data(), **where)
        return module, trainer.optimizers[0].state_dict()["state"]

    straight, moments = fit(0)
    resumed, others = fit(1, ckpt_path=str(tmp_path / "middle.ckpt"))
    assert all(torch.equal(one, resumed.state_dict()[name]) for name, one in straight.state_dict().items())
    assert all(torch.equal(moments[key]["exp_avg"], others[key]["exp_avg"]) for key in moments)
