"""Small made-up pictures with captions that tell their colours, and the parts and a config to train on them."""

from pathlib import Path

import datasets
import numpy
from small_pictures import COLORS, draw
from small_training import training_of
from text_corpus import OBJECTS, SUBJECTS, VERBS

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.data import PairDataModule
from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, from_pieces

WORDS = ["a", "this", "is", "some", "number", *COLORS]
TEXT_WORDS = sorted({word for text in (*SUBJECTS, *VERBS, *OBJECTS) for word in text.split()} - {*WORDS})
# Of the captions of some tests, and of texts that are learned beside pairs.
MORE = ["caption", "of", "picture", *"bcdefghijkl", ".", *TEXT_WORDS]
DIGITS = [f"{prefix}{digit}" for prefix in ("", "##") for digit in range(10)]
FEATURES = {
    "image": datasets.Image(),
    "title": datasets.Value("string"),
    "others": datasets.List(datasets.Value("string")),
}


def make_rows(count: int = 60, size: int = 16) -> dict[str, list]:
    """Pictures, a title each that differs from all others, and none to three more captions."""
    generator = numpy.random.default_rng(0)
    labels = [index % len(COLORS) for index in range(count)]
    names = [list(COLORS)[label] for label in labels]
    return {
        "image": [draw(label, generator, size) for label in labels],
        "title": [f"a {name} number {index}" for index, name in enumerate(names)],
        "others": [[f"this is {name}", f"some {name}", name][: index % 4] for index, name in enumerate(names)],
    }


def write_pairs(path: Path, rows: dict[str, list] | None = None) -> Path:
    """The rows as a parquet file."""
    rows = rows or make_rows()
    features = datasets.Features({name: FEATURES[name] for name in rows})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def write_tokenizer(directory: Path) -> str:
    """A tokenizer that knows every word of the captions."""
    WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, *WORDS, *DIGITS, *MORE], lowercase=True)).save(directory)
    return str(directory)


def make_pairs(path: Path, caches: Path, **settings: object) -> PairDataModule:
    """A data module over them."""
    defaults = {
        "caption_columns": ["title", "others"],
        "vocabulary_size": 120,
        "maximum_length": 16,
        "batch_size": 8,
        "validation_share": 0.2,
        "seed": 1,
    }
    return PairDataModule(data_files=str(path), path="parquet", cache_directory=str(caches), **defaults | settings)


TRANSFORMER = {"depth": 2, "width": 32, "heads": 2, "norm_order": "pre", "norm_epsilon": 1e-6}


def make_encoders(**settings: object) -> dict:
    """Two very small encoders whose blocks are alike; `settings` are their Transformers'."""
    transformer = TRANSFORMER | settings
    vision = VisionTransformerConfig(**transformer)
    return {
        "text_encoder": TextEncoder(transformer=TransformerConfig(**transformer), max_positions=16),
        "vision_encoder": VisionEncoder(image_size=16, patch_size=4, class_token=False, transformer=vision),
    }


def pair_config(path: Path, trainer: dict | None = None, model: dict | None = None, **settings: object) -> dict:
    """A config that trains on them in seconds; `model` and `settings`, the data's, are what differs."""
    vision = {"image_size": 16, "patch_size": 4, "class_token": False, "transformer": TRANSFORMER | {"dropout": 0.1}}
    text = {"max_positions": 16, "transformer": TRANSFORMER | {"dropout": 0.1}}
    data = {
        "path": str(path),
        "caption_columns": ["title", "others"],
        "vocabulary_size": 120,
        "maximum_length": 16,
        "batch_size": 8,
        "validation_share": 0.2,
    }
    encoders = {
        "text_encoder": {"class_path": "TextEncoder", "init_args": text},
        "vision_encoder": {"class_path": "VisionEncoder", "init_args": vision},
    }
    arguments = {**encoders, "embedding_width": 16, **(model or {})}
    return training_of(
        trainer=trainer,
        model={"class_path": "ContrastivePretraining", "init_args": arguments},
        data={"class_path": "PairDataModule", "init_args": data | settings},
    )
