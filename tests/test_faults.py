"""What breaks in the middle of a training, or of its files, is a sentence through the entry point, and it goes on."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small_training import small_config, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main


class KillWorker(Callback):
    """Ends one of the loader's workers at a step, as a system without memory does."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 7:
            workers = multiprocessing.active_children()
            assert workers
            os.kill(workers[0].pid, signal.SIGKILL)
        if trainer.global_step >= 7:
            time.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def broken(tmp_path_factory):
    """A training whose worker was killed after its first save: the command line, its exit status, its checkpoint."""
    directory = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        trainer = {"max_steps": 20, "val_check_interval": 5, "num_sanity_val_steps": 0}
        config = write_config(
            directory / "small.yaml", small_config(write_corpus(directory / "corpus.jsonl"), trainer=trainer)
        )
        yield ["fit", "--config", str(config)], directory


def test_a_killed_worker_is_a_sentence_and_the_run_goes_on_from_the_last_save(broken, capsys, monkeypatch):
    command, directory = broken
    # How long torch waits for a worker before it looks whether it is alive, 5 seconds else.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    killed = ["--data.workers", "2", "--trainer.callbacks+", f"{__name__}.KillWorker"]
    assert main([*command, *killed]) == 1
    errors = capsys.readouterr().err
    assert "A process that reads data has died (DataLoader worker (pid" in errors and "Traceback" not in errors
    assert "lower data.workers" in errors and "--ckpt_path" in errors
    (checkpoint,) = directory.glob("runs/small/*/checkpoints/last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 5
    assert main([*command, "--ckpt_path", "last"]) == 0
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 20


@pytest.mark.parametrize("fault", ["NaN", "a bit", "cut short"])
@pytest.mark.parametrize("command", ["validate", "fit"])
def test_what_is_no_checkpoint_any_more_is_refused_before_any_work(broken, tmp_path, capsys, command, fault):
    (_, *config), directory = broken
    (whole,) = directory.glob("runs/small/*/checkpoints/last.ckpt")
    path = tmp_path / "broken.ckpt"
    sentence = "cannot be read as a checkpoint"
    if fault == "NaN":
        content = torch.load(whole, weights_only=True)
        content["state_dict"]["encoder.embeddings.token.weight"][3, 1] = torch.nan
        torch.save(content, path)
        sentence = "are not numbers but NaN (1 of"
    else:
        content = bytearray(whole.read_bytes())
        if fault == "a bit":
            weights = torch.load(whole, weights_only=True)["state_dict"]["encoder.embeddings.token.weight"]
            content[content.find(weights.numpy().tobytes()) + 100] ^= 2
            sentence = "is not what was written"
        path.write_bytes(content if fault == "a bit" else content[: len(content) // 2])
    assert main([command, *config, "--ckpt_path", str(path)]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and "Traceback" not in errors
