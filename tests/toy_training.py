"""A training small enough to run hundreds of steps in a second, for tests of what surrounds a training.

The module draws its own batches from (epoch, index), so a resumed run can be compared with one that was never stopped;
the loader counts the batches it has handed out, as the suite's own loaders do.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class CountingLoader:
    """Batches of an epoch, each a function of (epoch, index); knows how many it has handed out."""

    def __init__(self, batches: int) -> None:
        self.batches, self.epoch, self.handed_out, self.start = batches, 0, 0, 0

    def __len__(self):
        return self.batches

    @property
    def batch_sampler(self):
        """Where Lightning looks for `set_epoch`."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self):
        start, self.start = self.start, 0
        for index in range(start, self.batches):
            self.handed_out = index + 1
            generator = torch.Generator().manual_seed(self.epoch * 1000 + index)
            yield {
                "input_ids": torch.randn(4, 8, generator=generator),
                "sample_id": torch.full((4,), self.epoch * 1000 + index),
            }

    def state_dict(self):
        return {"epoch": self.epoch, "handed_out": self.handed_out}

    def load_state_dict(self, state):
        self.epoch, self.start, self.handed_out = state["epoch"], state["handed_out"], state["handed_out"]


class ToyData(LightningDataModule):
    """Training batches by the counting loader, a few validation batches."""

    def __init__(self, batches: int = 20, validation_batches: int = 3) -> None:
        super().__init__()
        self.batches, self.validation_batches = batches, validation_batches
        self.fingerprint = "f" * 16

    def describe(self):
        return {"documents": 7, "tokens": 1234}

    def train_dataloader(self):
        return CountingLoader(self.batches)

    def val_dataloader(self):
        return CountingLoader(self.validation_batches)

    def predict_dataloader(self):
        return CountingLoader(self.validation_batches)


class ToyModule(LightningModule):
    """A linear layer with everything the callbacks ask of a module; notes the batches it saw."""

    def __init__(self, step_seconds: float = 0.0, validation_seconds: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
        self.step_seconds, self.validation_seconds = step_seconds, validation_seconds
        self.seen: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_index):
        if self.step_seconds:
            time.sleep(self.step_seconds)
        self.seen.append([self.trainer.global_step, int(batch["sample_id"][0])])
        loss = self.layer(batch["input_ids"]).pow(2).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_index):
        if self.validation_seconds:
            time.sleep(self.validation_seconds)
        loss = self.layer(batch["input_ids"]).pow(2).mean()
        self.log("validation/loss", loss)
        self.log("validation/mlm/accuracy", 1.0 / (1.0 + loss))

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.validated.append(self.trainer.global_step)

    def predict_step(self, batch, batch_index):
        return {"sample_id": batch["sample_id"], "embedding": self.layer.weight.expand(4, 8) * 1.0}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def step_cost(self, batch):
        return {"samples": 4, "tokens": 32, "flops": 6.0 * 32}

    def examples(self, count=8):
        row = {"masked": "a [MASK] c", "prediction": "b", "truth": "b"}
        return {"masked_language_modeling": [row] * min(count, 2)}

    def chance(self):
        return {"loss": 0.25}

    def describe(self):
        return {"parameters": 9, "objectives": "toy"}


class WriteProgress(Callback):
    """Tells the outside which step or validation batch has begun, and at the end what was seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text + "\n")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.note(f"step {trainer.global_step}")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.note(f"validation {trainer.global_step} {batch_idx}")

    def on_exception(self, trainer, pl_module, exception):
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        self.note("seen " + json.dumps([pl_module.seen, pl_module.validated]))


def make_trainer(runs: Path, callbacks=(), monitor: str | None = "validation/loss", **settings) -> Trainer:
    """A trainer with the suite's logger, recorder and atomic checkpoints; `callbacks` are added."""
    from lit_pretrain.tracking.checkpoint_io import AtomicCheckpointIO
    from lit_pretrain.tracking.mlflow_logger import MLflowLogger
    from lit_pretrain.tracking.run_record import RunRecorder

    logger = settings.pop("logger", None) or MLflowLogger(experiment="toy", runs_directory=str(runs))
    settings = {
        "max_steps": 50,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
    } | settings
    return Trainer(
        logger=logger,
        callbacks=[RunRecorder(), *callbacks, ModelCheckpoint(save_last=True, monitor=monitor)],
        plugins=[AtomicCheckpointIO(), *settings.pop("plugins", [])],
        **settings,
    )


def train_in_child(runs: Path, progress: Path, output: Path, slowness: dict[str, float]) -> None:
    """What a child process does: train with the suite's handling of signals, its output going to a file."""
    from lit_pretrain.callbacks.interruption import Interruption

    handle = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    trainer = make_trainer(runs, [WriteProgress(progress), Interruption()])
    trainer.fit(ToyModule(**slowness), ToyData())


def main() -> None:
    """As a program: train on two processes, which Lightning starts by running this file again."""
    from lit_pretrain.callbacks.interruption import Interruption

    runs, progress = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    progress = progress.with_name(f"{progress.name}-{os.environ.get('LOCAL_RANK', '0')}")
    trainer = make_trainer(runs, [WriteProgress(progress), Interruption()], devices=2, strategy="ddp")
    trainer.fit(ToyModule(step_seconds=0.05), ToyData())


def be_program(arguments: list[str], environment: dict[str, str], directory: Path, output: Path) -> None:
    """What a child process does: be this program, in a session of its own, its output going to a file."""
    os.setsid()
    os.environ.clear()
    os.environ |= environment
    os.chdir(directory)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # By which Lightning starts the other process.
    sys.argv = [__file__, *arguments]
    main()


if __name__ == "__main__":
    main()
