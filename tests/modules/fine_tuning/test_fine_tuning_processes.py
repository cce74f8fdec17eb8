"""Fine-tuning in two processes (gloo, DDP): as in one process with all the samples, whatever is frozen."""

import json

import pytest
import torch
from child_processes import both_ranks
from labelled_texts import TOKENIZER, make_encoder, make_texts, write_texts

from lit_pretrain.modules import FineTuning
from lit_pretrain.modules.freezing import FreezingConfig
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.trainer import Trainer

CASES = {
    "a frozen block": {"freeze": FreezingConfig(1)},
    "unfreezing, from a probe": {"freeze": FreezingConfig(unfreeze_every=2), "linear_probe_first": True},
}


def train(name, directory, processes):
    """Eight steps of 16 texts, however many processes share them, a validation and a test with its report."""
    torch.manual_seed(0)
    module = FineTuning(make_encoder(), optimizer=AdamWConfig(learning_rate=1e-3), seed=0, **CASES[name])
    logger = MLflowLogger("processes", runs_directory=str(directory / f"{name} {processes}"))
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="32-true",
        max_steps=8,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    data = make_texts(
        directory / "texts.parquet",
        directory / "tokenizer",
        cache_directory=str(directory),
        batch_size=16 // processes,
        test_data_files=str(directory / "test.parquet"),
    )
    trainer.fit(module, data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("validation/")}
    (tested,) = trainer.test(module, data, verbose=False)
    report = logger.run_directory / "report" / "classes.json" if trainer.is_global_zero else None
    rows = json.loads(report.read_text())["data"] if report else None
    return {"after": module.state_dict(), "metrics": metrics | tested, "classes": rows}


def train_all(directory):
    """What one of two processes does."""
    return {name: train(name, directory, 2) for name in CASES}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("texts")
    write_texts(directory / "texts.parquet")
    write_texts(directory / "test.parquet", count=35, seed=7)
    TOKENIZER.save(directory / "tokenizer")
    return directory


@pytest.fixture(scope="module")
def ranks(directory):
    """What each of two processes came to, by case."""
    return both_ranks(train_all, directory)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_as_one(ranks, directory, name):
    first, second = (rank[name] for rank in ranks)
    assert all(torch.equal(value, second["after"][key]) for key, value in first["after"].items())
    assert first["metrics"] == second["metrics"]
    alone = train(name, directory, 1)
    for key, value in alone["after"].items():
        torch.testing.assert_close(first["after"][key], value, rtol=1e-3, atol=1e-4, msg=key)
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, abs=1e-4)
    # The report is of all processes' samples, each once.
    assert first["classes"] == alone["classes"] and sum(row[-1] for row in first["classes"]) == 35
