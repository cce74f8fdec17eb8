"""A disk of runs that is really full in the middle of a training."""

import json
import os
import sys
import warnings
from pathlib import Path

import child_processes
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from toy_training import ToyData, ToyModule

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.find import find_checkpoint
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.trainer import Trainer


class Fill(Callback):
    """Takes all room at a step, and gives it back at another."""

    def __init__(self, path, until):
        self.path, self.until = path, until

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5:
            trainer.logger.flush()
            with self.path.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"0" * 4096)
                except OSError:
                    pass
        if trainer.global_step == self.until:
            self.path.unlink()


def train_on_small_disk(runs: Path, result: Path, until: int | None) -> None:
    """Train on a file system of 12 MB; what came of it is written elsewhere."""
    libc = child_processes.own_mounts()
    runs.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(runs), b"tmpfs", 0, b"size=12m"):
        os._exit(child_processes.NOT_ALLOWED)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logger = MLflowLogger(experiment="toy", runs_directory=str(runs))
    settings = {"accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False, "num_sanity_val_steps": 0}
    settings["enable_checkpointing"] = until is None
    trainer = Trainer(
        max_steps=20, log_every_n_steps=1, logger=logger, callbacks=[Fill(runs / "fill", until)], **settings
    )
    told = {"raised": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(ToyModule(), ToyData(batches=4))
        except UserError as error:
            told["raised"] = str(error)
    told["said"] = [str(one.message) for one in caught if "cannot be written" in str(one.message)]
    if until is None:
        (runs / "fill").unlink()
        step = torch.load(find_checkpoint(logger.run_id, runs_directory=runs), weights_only=True)["global_step"]
        told["checkpoint"] = step
    logger.finalize("success")
    history = logger.experiment.get_metric_history(logger.run_id, "train/loss")
    told["steps"] = sorted({one.step for one in history})
    told["left"] = [path.name for path in logger.run_directory.rglob("*") if "part" in path.name]
    result.write_text(json.dumps(told))


@pytest.mark.skipif(sys.platform != "linux", reason="mounts of a process's own are Linux's")
@pytest.mark.parametrize("until", [10, None], ids=["for a while", "when a checkpoint is due"])
def test_a_full_disk_costs_a_sentence(tmp_path, until):
    result = tmp_path / "result.json"
    child = child_processes.children().Process(target=train_on_small_disk, args=(tmp_path / "runs", result, until))
    child.start()
    child.join(timeout=120)
    if child.exitcode == child_processes.NOT_ALLOWED:
        pytest.skip("this machine lets no process mount a file system of its own")
    told = json.loads(result.read_text())
    if until is None:
        # The checkpoint of an epoch's end stays; all that was logged until the one that found no room is there. That is
        # the second, or the third, if the database gave some room back.
        assert told["raised"].startswith("There is no room left to save") and told["checkpoint"] in (4, 8)
        assert told["steps"] == list(range(1, told["checkpoint"] + 5))
    else:
        # Tables of examples were left out, and said to be; all that was logged is there.
        assert told["raised"] is None and told["steps"] == list(range(1, 21))
        assert any("left out" in sentence for sentence in told["said"])
    assert told["left"] == []
