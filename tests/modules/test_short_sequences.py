"""Short sequences first: the cut by hand, when it ends, accumulation and resume, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from text_corpus import fit, make_data, make_encoder, write_corpus

from lit_pretrain.data.loading import FOLLOWING
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining
from lit_pretrain.modules.short_sequences import ShortSequencesConfig, cut
from lit_pretrain.objectives import (
    CausalLanguageModeling,
    ContrastiveSpans,
    MaskedLanguageModeling,
    ReplacedTokenDetection,
)


def test_a_cut_by_hand():
    cls, sep = 101, 102
    ids = [[cls, 1, 2, 3, 4, 5, 6, 7, sep], [cls, 1, 2, 3, 4, sep, 0, 0, 0], [cls, 1, 2, 3, 4, 5, sep, 0, 0]]
    lengths = torch.tensor([9, 6, 7])
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.arange(9) < lengths[:, None], "padded": True}
    batch |= {"sample_id": torch.tensor([7, 8, 9]), "token_type_ids": torch.zeros(3, 9, dtype=torch.long)}
    later = {name: batch[name] for name in ("input_ids", "attention_mask")}
    found = cut(batch | {FOLLOWING: [later]}, 3, SimpleNamespace(cls_id=cls, sep_id=sep))
    expected = [[cls, 1, sep], [cls, 4, sep], [cls, 7, sep]]
    expected += [[cls, 1, sep], [cls, 4, sep], [cls, 0, 0]]
    expected += [[cls, 1, sep], [cls, 4, sep], [cls, 0, 0]]
    assert found["input_ids"].tolist() == expected == found[FOLLOWING][0]["input_ids"].tolist()
    assert found["attention_mask"].sum(dim=1).tolist() == [3, 3, 3, 3, 3, 1, 3, 3, 1]
    assert found["sample_id"].tolist() == [7, 7, 7, 8, 8, 8, 9, 9, 9] and found["padded"]
    assert found["token_type_ids"].shape == (9, 3) and batch["input_ids"].tolist() == ids


class Shapes(Callback):
    """Keeps the shapes of what the steps are trained on, and of what is validated with."""

    def __init__(self):
        self.trained, self.validated = {}, set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.setdefault(self.step, set()).add(tuple(batch["input_ids"].shape))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated.add(batch["input_ids"].shape[1])


@pytest.mark.parametrize("objective", [MaskedLanguageModeling, ReplacedTokenDetection, CausalLanguageModeling])
def test_short_ones_first_and_resumed_bit_for_bit(tmp_path, objective):
    corpus = write_corpus(tmp_path / "texts.json", documents=20)

    def train(directory, checkpoint=None):
        torch.manual_seed(0)
        encoder = make_encoder(causal=objective is CausalLanguageModeling)
        short = ShortSequencesConfig(parts=4, until=0.6)
        module = TextPretraining(encoder, [objective()], short_sequences=short, seed=0)
        saver = ModelCheckpoint(tmp_path / directory, "{step}", save_top_k=-1, every_n_train_steps=1, monitor=None)
        shapes = Shapes()
        settings = {"callbacks": [saver, shapes], "enable_checkpointing": True, "accumulate_grad_batches": 2}
        settings |= {"limit_val_batches": 1, "val_check_interval": 4, "check_val_every_n_epoch": None}
        fit(module, make_data(corpus, tmp_path, layout="segments"), checkpoint, **settings)
        return shapes, module.state_dict()

    shapes, expected = train("straight")
    wanted = {step: {(32, 8) if step < 4 else (8, 32)} for step in range(6)}
    assert shapes.trained == wanted and shapes.validated == {32}
    assert all(value.isfinite().all() for value in expected.values())
    if objective is not MaskedLanguageModeling:
        return
    shapes, found = train("resumed", tmp_path / "straight" / "step=3.ckpt")
    assert shapes.trained == {step: wanted[step] for step in range(3, 6)}
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


@pytest.mark.parametrize(
    ("parts", "layout", "objective", "sentence"),
    [
        (3, "segments", MaskedLanguageModeling, "data.sequence_length 32 cannot be cut: give a number that divides"),
        (8, "segments", MaskedLanguageModeling, "leaves at least 8 tokens"),
        (2, "sentence_pairs", MaskedLanguageModeling, "pairs of texts cannot be cut: set data.layout to segments"),
        (2, "segments", ContrastiveSpans, "parts is 2, and ContrastiveSpans is about whole texts"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_any_data_is_read(tmp_path, parts, layout, objective, sentence):
    module = TextPretraining(make_encoder(), [objective()], short_sequences=ShortSequencesConfig(parts))
    with pytest.raises(UserError, match=sentence):
        fit(module, make_data(tmp_path / "nothing.json", tmp_path, layout=layout))
