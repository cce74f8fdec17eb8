"""`gradient_checkpointing` of every module: the same gradients, dropout and all, from blocks that run once more."""

from collections import Counter

import pytest
import torch
from labelled_texts import TOKENIZER, write_texts
from labelled_texts import make_encoder as make_text_encoder
from labelled_texts import make_texts as make_labelled
from lightning import Callback
from small_joint import make_joint, make_replaying, write_joint
from small_pictures import make_pictures, write_pictures
from text_corpus import make_data, write_corpus
from torch.nn.modules.module import register_module_forward_pre_hook

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.backbone.transformer import Block
from lit_pretrain.modules import FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.objectives import MaskedImageModeling, MaskedLanguageModeling, ReplacedTokenDetection
from lit_pretrain.trainer import Trainer

SMALL = {"depth": 2, "width": 16, "heads": 2, "dropout": 0.2}


def text(directory, **settings):
    encoder = TextEncoder(transformer=TransformerConfig(**SMALL), max_positions=32)
    module = TextPretraining(encoder, [MaskedLanguageModeling(), ReplacedTokenDetection()], seed=0, **settings)
    return module, make_data(write_corpus(directory / "corpus.jsonl", documents=20), directory)


def pictures(directory, **settings):
    encoder = VisionEncoder(image_size=16, transformer=VisionTransformerConfig(**SMALL, stochastic_depth=0.3))
    module = VisionPretraining(encoder, [MaskedImageModeling(decoder_width=16)], seed=0, **settings)
    return module, make_pictures(write_pictures(directory / "pictures.parquet", count=20), directory)


def fine_tuning(directory, **settings):
    TOKENIZER.save(directory / "tokenizer")
    data = make_labelled(write_texts(directory / "texts.parquet"), directory / "tokenizer")
    return FineTuning(make_text_encoder(), dropout=0.2, seed=0, **settings), data


def pairs(directory, **settings):
    write_joint(directory)
    return make_replaying(directory, dropout=0.2, chunk_size=4, **settings), make_joint(directory)


# Module and data of each; blocks of a training step: passes of encoders, generator and decoder times their depth; and
# those that run without gradients before, for chunks.
CASES = {
    "text": (text, 2 + 2 + 2, 0),
    "pictures": (pictures, 2 + 2, 0),
    "fine-tuning": (fine_tuning, 2, 0),
    "pairs in chunks, replayed": (pairs, 2 * (2 + 2) + 2 + 2 + 1, 2 * (2 + 2)),
}


class Watch(Callback):
    """Keeps the gradients of a step, and how often blocks have run for it."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.gradients = {name: one.grad.clone() for name, one in named if one.grad is not None}


def step(make, directory, **settings):
    """The gradients of a step, and how often blocks have run for it."""
    torch.manual_seed(0)
    module, data = make(directory, **settings)
    runs, watch = Counter(), Watch()
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with register_module_forward_pre_hook(lambda module, inputs: runs.update([type(module)])):
        trainer.fit(module, data)
    return watch.gradients, runs[Block]


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_and_every_transformer_recomputes(name, tmp_path):
    make, blocks, before = CASES[name]

    expected, once = step(make, tmp_path)
    found, twice = step(make, tmp_path, gradient_checkpointing=True)

    assert once == before + blocks and twice == before + 2 * blocks
    assert found.keys() == expected.keys() and len(found) > 20
    for parameter, gradient in expected.items():
        assert torch.equal(found[parameter], gradient), parameter
