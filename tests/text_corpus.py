"""A small corpus of made-up sentences with some order in them, and the parts to train on it."""

import json
import os
import signal
import time
from pathlib import Path

import numpy
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.data import DocumentDataModule
from lit_pretrain.trainer import Trainer

SUBJECTS = ["the senate", "a farmer", "our nation", "the treasury", "every citizen", "the army"]
VERBS = ["pays", "protects", "remembers", "considers", "builds", "needs"]
OBJECTS = ["new roads", "the old treaty", "a fair wage", "peace abroad", "many schools", "the common law"]


def write_corpus(path: Path, documents: int = 60, seed: int = 0) -> Path:
    """Documents of 4 to 12 sentences; in a document the same subject does everything."""
    generator = numpy.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(documents):
            subject = generator.choice(SUBJECTS).capitalize()
            count = int(generator.integers(4, 13))
            sentences = [f"{subject} {generator.choice(VERBS)} {generator.choice(OBJECTS)}." for _ in range(count)]
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return path


def make_data(corpus: Path, tmp_path: Path, **settings: object) -> DocumentDataModule:
    """A data module over the corpus."""
    defaults = {"vocabulary_size": 90, "sequence_length": 32, "batch_size": 8, "validation_share": 0.2, "seed": 1}
    return DocumentDataModule(
        data_files=str(corpus), path="json", cache_directory=str(tmp_path / "caches"), **defaults | settings
    )


def make_encoder(**settings: object) -> TextEncoder:
    """A very small encoder that waits for its vocabulary."""
    return TextEncoder(transformer=TransformerConfig(depth=1, width=32, heads=2), **{"max_positions": 32} | settings)


class Slow(Callback):
    """Makes every step last long enough for a test to strike within it."""

    def on_train_batch_start(self, *_: object) -> None:
        """Wait."""
        time.sleep(0.05)


class KilledAt27(Callback):
    """Kills its process within a training, as the system does one that is out of memory."""

    def on_train_batch_start(self, trainer: object, *rest: object) -> None:
        """Before the step after the 27th: the report of the 25th is of no checkpoint."""
        if trainer.global_step == 27:
            os.kill(os.getpid(), signal.SIGKILL)


class StopAt3(Callback):
    """Stops a training after three steps, as a time limit would, and not as one that was meant to be so short."""

    def on_train_batch_end(self, trainer: object, *rest: object) -> None:
        """After the third step."""
        if trainer.global_step == 3:
            trainer.should_stop = True


def fit(module, data, checkpoint=None, **settings):
    """Six steps."""
    defaults = {"max_steps": 6, "limit_val_batches": 0, "num_sanity_val_steps": 0, "precision": "32-true"}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(**{"accelerator": "cpu", "devices": 1} | defaults | quiet | settings)
    trainer.fit(module, data, ckpt_path=checkpoint)
    return trainer


def fit_and_save(module, data, directory, checkpoint=None, **settings):
    """Train it with a checkpoint after every third step; its weights, and the optimiser's state by number and name."""
    saver = ModelCheckpoint(directory, "{step}", save_top_k=-1, every_n_train_steps=3)
    trainer = fit(module, data, checkpoint, callbacks=[saver], enable_checkpointing=True, **settings)
    return module.state_dict() | {
        f"{number} {name}": value
        for number, state in trainer.optimizers[0].state_dict()["state"].items()
        for name, value in state.items()
    }
