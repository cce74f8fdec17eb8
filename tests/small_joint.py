"""Pairs, texts and pictures together, very small, and towers that replay masks on both sides."""

from pathlib import Path

import torch
from small_pairs import make_encoders, make_pairs, make_rows, write_pairs
from small_pictures import make_pictures, write_pictures
from text_corpus import make_data, write_corpus

from lit_pretrain.data import JointDataModule
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.modules import ContrastivePretraining, TextReplay, VisionReplay
from lit_pretrain.objectives import MaskedImageModeling, MaskedLanguageModeling, NextSentencePrediction

TEXT_WEIGHT, VISION_WEIGHT, SENTENCE_WEIGHT = 0.5, 2.0, 3.0


def write_joint(directory: Path) -> Path:
    """Files of all three, and the tokenizer of the texts."""
    write_pairs(directory / "pairs.parquet", make_rows(40))
    write_pictures(directory / "pictures.parquet", count=30)
    write_corpus(directory / "texts.json", documents=24)
    data = make_texts(directory)
    data.prepare_data()
    data.tokenizer.save(directory / "tokenizer")
    return directory


def make_texts(directory: Path, **settings: object):
    """The texts' data module."""
    return make_data(directory / "texts.json", directory, **{"sequence_length": 16} | settings)


def make_joint(directory: Path, processes: int = 1, parts: tuple[str, ...] = ("text", "vision")) -> JointDataModule:
    """A data module over them: 8 pairs, 4 texts and 4 pictures a step, however many processes share them."""
    caches = directory / "caches"
    made = {
        "text": lambda: make_texts(directory, batch_size=4 // processes),
        "vision": lambda: make_pictures(
            directory / "pictures.parquet", caches, label_column=None, batch_size=4 // processes
        ),
    }
    pairs = make_pairs(directory / "pairs.parquet", caches, batch_size=8 // processes)
    return JointDataModule(pairs, **{name: made[name]() for name in parts})


def make_replaying(
    directory: Path, parts: tuple[str, ...] = ("text", "vision"), dropout: float = 0.0, **settings: object
):
    """Two towers with their replays; the heads are made, so that everybody starts with the same."""
    torch.manual_seed(0)
    replays = {
        "text": lambda: TextReplay(
            [MaskedLanguageModeling(0.3), NextSentencePrediction(weight=SENTENCE_WEIGHT)], TEXT_WEIGHT
        ),
        "vision": lambda: VisionReplay(
            [MaskedImageModeling(decoder_width=16, decoder_depth=1)], VISION_WEIGHT, ImageAugmentation(flip=0.0)
        ),
    }
    settings |= {f"{name}_replay": replays[name]() for name in parts}
    module = ContrastivePretraining(**make_encoders(dropout=dropout), embedding_width=16, seed=0, **settings)
    module.tokenizer = WordPieceTokenizer.load(directory / "tokenizer")
    module.configure_model()
    return module
