"""Steps whose gradients are not finite are left out and counted, if that is asked for, and many of them end it."""

import json
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from text_corpus import fit, make_data, make_encoder, write_corpus

from lit_pretrain.modules import TextPretraining
from lit_pretrain.modules.base import SKIPPED, NonFiniteLossError
from lit_pretrain.modules.skipping import is_finite, times_zero
from lit_pretrain.objectives import MaskedLanguageModeling


class Breaking(TextPretraining):
    """Has a loss that is no number at some steps."""

    broken: tuple[int, ...] = ()

    def sum_losses(self, *arguments):
        loss = super().sum_losses(*arguments)
        return loss * math.nan if self.trainer.global_step in self.broken else loss


class Weights(Callback):
    """Keeps a table's weights as each step ends."""

    def __init__(self):
        self.after = {}

    def on_train_batch_end(self, trainer, pl_module, *rest):
        self.after[trainer.global_step] = pl_module.encoder.embeddings.token.weight.detach().clone()


def train(tmp_path, name, broken, checkpoint=None, **settings):
    torch.manual_seed(0)
    module = Breaking(make_encoder(), [MaskedLanguageModeling()], seed=0, non_finite="skip")
    module.broken = broken
    saver = ModelCheckpoint(tmp_path / name, "{step}", save_top_k=-1, every_n_train_steps=1, monitor=None)
    weights = Weights()
    logger = CSVLogger(tmp_path, name="logs", version=name)
    settings = {"logger": logger, "callbacks": [saver, weights], "log_every_n_steps": 2} | settings
    settings |= {"enable_checkpointing": True, "default_root_dir": tmp_path}
    data = make_data(tmp_path / "texts.json", tmp_path, layout="segments")
    fit(module, data, checkpoint, **settings)
    return module, weights.after, (tmp_path / "logs" / name / "metrics.csv").read_text()


def test_a_step_is_left_out_counted_and_not_done_again_when_resumed(tmp_path):
    write_corpus(tmp_path / "texts.json", documents=20)
    module, after, logs = train(tmp_path, "straight", (2,))
    assert module.skipped.total == 1 and module.skipped.in_a_row == 0
    assert (
        torch.equal(after[2], after[3]) and not torch.equal(after[1], after[2]) and not torch.equal(after[3], after[4])
    )
    assert all(weights.isfinite().all() for weights in after.values())
    names, *rows = [line.split(",") for line in logs.splitlines()]
    shown = [found for row in rows if (found := dict(zip(names, row, strict=True)))["train/loss"]]
    assert [row["train/skipped_steps"] for row in shown] == ["0.0", "1.0", "1.0"]
    assert all(math.isfinite(float(row["train/loss"])) for row in shown)
    # Another training of the same module counts anew.
    module.broken = ()
    fit(module, make_data(tmp_path / "texts.json", tmp_path, layout="segments"), max_steps=1)
    assert module.skipped.total == 0
    (record,) = tmp_path.glob("non-finite-loss-step-*.json")
    assert json.loads(record.read_text())["step"] == 2

    saved = tmp_path / "straight" / "step=4.ckpt"
    assert torch.load(saved, weights_only=True)[SKIPPED] == {"total": 1, "in_a_row": 0}
    resumed, again, _ = train(tmp_path, "resumed", (2,), saved)
    assert resumed.skipped.total == 1 and torch.equal(again[6], after[6])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_many_in_a_row_end_the_training(tmp_path, accumulated):
    write_corpus(tmp_path / "texts.json", documents=20)
    settings = {"max_steps": 20, "accumulate_grad_batches": accumulated}
    with pytest.raises(NonFiniteLossError, match="not finite in 10 steps one after the other, up to step 12"):
        train(tmp_path, "broken", tuple(range(3, 20)), **settings)


def test_what_is_finite():
    cpu = torch.device("cpu")
    assert is_finite([], cpu) and is_finite([torch.full((3,), 3e38), torch.ones(2, 2).to_sparse(1)], cpu)
    for value in (math.nan, math.inf, -math.inf):
        assert not is_finite([torch.ones(3), torch.tensor([1.0, value])], cpu)
        assert not is_finite([torch.tensor([[1.0, value], [0.0, 0.0]]).to_sparse(1)], cpu)
    # Where the processes talk to each other, of which another may have gradients.
    assert times_zero([], torch.device("meta")).device.type == "meta"
