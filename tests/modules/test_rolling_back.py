"""A step whose gradients are not finite is undone by the last checkpoint's weights and moments, if asked for."""

import math
from pathlib import Path

import pytest
import torch
from child_processes import both_ranks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from text_corpus import fit, make_data, make_encoder, write_corpus

from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining
from lit_pretrain.modules.averaging import AVERAGE, AverageConfig
from lit_pretrain.modules.base import ROLL_BACKS, NonFiniteLossError
from lit_pretrain.objectives import MaskedLanguageModeling


class Breaking(TextPretraining):
    """Has a loss that is no number at some steps, in the last process alone."""

    broken: tuple[int, ...] = ()

    def sum_losses(self, *arguments):
        loss = super().sum_losses(*arguments)
        breaks = self.trainer.global_step in self.broken and self.trainer.global_rank == self.trainer.world_size - 1
        return loss * math.nan if breaks else loss


class Watch(Callback):
    """Keeps a table's weights as each step ends, and which samples were seen."""

    def __init__(self):
        self.after, self.seen = {}, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, *rest):
        self.after[trainer.global_step] = pl_module.encoder.embeddings.token.weight.detach().clone()
        self.seen += batch["sample_id"].tolist()


def train(directory, name, broken, checkpoint=None, every=2, **settings):
    """Six steps, saved after every other one; returns the module, what was watched, and the logs."""
    torch.manual_seed(0)
    average = AverageConfig(decay=0.5)
    module = Breaking(make_encoder(), [MaskedLanguageModeling()], seed=0, non_finite="roll_back", average=average)
    module.broken = broken
    saver = ModelCheckpoint(directory / name, "{step}", save_top_k=-1, every_n_train_steps=every, monitor=None)
    watch = Watch()
    logger = CSVLogger(directory, name="logs", version=name)
    settings = {"logger": logger, "callbacks": [saver, watch], "log_every_n_steps": 1, "max_steps": 6} | settings
    settings |= {"default_root_dir": directory}
    data = make_data(directory / "texts.json", directory, layout="segments")
    fit(module, data, checkpoint, **{"enable_checkpointing": True} | settings)
    logs = directory / "logs" / name / "metrics.csv"
    return module, watch, logs.read_text() if logs.is_file() else ""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rolling")
    write_corpus(directory / "texts.json", documents=20)
    return directory


def test_weights_moments_and_averages_are_those_of_the_checkpoint_and_nothing_else_goes_back(directory):
    module, watch, logs = train(directory, "straight", (3,))
    after = watch.after
    assert torch.equal(after[2], after[4])
    assert not torch.equal(after[2], after[3]) and not torch.equal(after[4], after[5])
    before, undone = (torch.load(directory / f"straight/step={step}.ckpt", weights_only=True) for step in (2, 4))
    for name, values in before["state_dict"].items():
        assert torch.equal(values, undone["state_dict"][name]), name
    (moments,), (same_moments,) = before["optimizer_states"], undone["optimizer_states"]
    for number, state in moments["state"].items():
        assert all(torch.equal(value, same_moments["state"][number][name]) for name, value in state.items())
    for name, values in before[AVERAGE]["weights"].items():
        assert torch.equal(values, undone[AVERAGE]["weights"][name]), name
    # The schedule, the place within the epoch and the count go on.
    assert undone["lr_schedulers"][0]["last_epoch"] == 4 != before["lr_schedulers"][0]["last_epoch"]
    assert [group["lr"] for group in same_moments["param_groups"]] != [group["lr"] for group in moments["param_groups"]]
    assert len(watch.seen) == len(set(watch.seen)) == 48
    assert undone[ROLL_BACKS] == {"total": 1, "in_a_row": 1} and module.roll_backs.total == 1
    names, *rows = [line.split(",") for line in logs.splitlines()]
    rows = [dict(zip(names, row, strict=True)) for row in rows]
    counts = [(row["step"], row["train/roll_backs"]) for row in rows if row["train/roll_backs"]]
    assert counts == [(str(step), "1.0" if step >= 3 else "0.0") for step in range(6)]
    # Gone on with, before it or behind it, it is the same training.
    for step, count in ((2, 4), (4, 2)):
        resumed, again, _ = train(directory, f"from {step}", (3,), directory / f"straight/step={step}.ckpt")
        assert len(again.after) == count and torch.equal(again.after[6], after[6])
        assert resumed.roll_backs.total == 1 and resumed.roll_backs.in_a_row == 0


def test_it_ends_where_nothing_is_saved_or_one_checkpoint_does_not_help(directory):
    with pytest.raises(NonFiniteLossError, match="not finite at step 0, and no checkpoint is saved yet"):
        train(directory, "at once", (0,))
    # Saved meanwhile or not: it is the same weights.
    for every in (1, 2):
        with pytest.raises(NonFiniteLossError, match=r"at step 5, and so often in a row after .*step=\d\.ckpt"):
            train(directory, f"often {every}", (2, 3, 4, 5), every=every)
    with pytest.raises(UserError, match=r"keeps none \(trainer\.enable_checkpointing\)"):
        train(directory, "none", (), enable_checkpointing=False, callbacks=[])


def undo_together(directory: Path) -> list[torch.Tensor]:
    """Weights after the steps of two processes, of which one breaks, in memory that each holds."""
    _, watch, _ = train(directory, "together", (3,), devices=2, strategy="ddp")
    return [watch.after[step] for step in sorted(watch.after)]


def test_processes_go_back_together(directory):
    first, second = both_ranks(undo_together, directory)
    assert len(first) == len(second) == 6
    assert all(torch.equal(*step) for step in zip(first, second, strict=True))
    assert torch.equal(first[1], first[3]) and not torch.equal(first[1], first[2]) and first[5].isfinite().all()
