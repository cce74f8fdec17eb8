"""Small made-up pictures with something to learn in them, and the parts and a config to train on them."""

from pathlib import Path

import numpy
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from small_training import training_of

from lit_pretrain.backbone import VisionEncoder, VisionTransformerConfig
from lit_pretrain.data import ImageDataModule

COLORS = {"apple": (200, 30, 40), "leaf": (40, 160, 60), "sea": (30, 80, 200)}


def draw(label: int, generator: numpy.random.Generator, size: int = 16) -> PILImage.Image:
    """A sky that gets darker downwards, and on it a square of the label's colour."""
    shade = numpy.linspace(230, 120, size)[:, None, None] + generator.normal(0, 6, (size, size, 1))
    pixels = numpy.repeat(shade, 3, axis=2)
    left, top = generator.integers(1, size // 2, 2)
    color = list(COLORS.values())[label]
    pixels[top : top + size // 2, left : left + size // 2] = color + generator.normal(0, 12, 3)
    return PILImage.fromarray(pixels.clip(0, 255).astype("uint8"))


def write_pictures(path: Path, count: int = 120, size: int = 16, seed: int = 0) -> Path:
    """A parquet file of pictures with their labels."""
    generator = numpy.random.default_rng(seed)
    labels = [index % len(COLORS) for index in range(count)]
    pictures = [draw(label, generator, size) for label in labels]
    features = Features({"image": Image(), "label": ClassLabel(names=list(COLORS))})
    Dataset.from_dict({"image": pictures, "label": labels}, features=features).to_parquet(str(path))
    return path


def make_pictures(path: Path, caches: Path, **settings: object) -> ImageDataModule:
    """A data module over them."""
    defaults = {"label_column": "label", "batch_size": 8, "validation_share": 0.2, "seed": 1}
    return ImageDataModule(data_files=str(path), path="parquet", cache_directory=str(caches), **defaults | settings)


def make_encoder(**settings: object) -> VisionEncoder:
    """A very small encoder for them."""
    defaults = {"image_size": 16, "patch_size": 4, "class_token": False, "pooling": "mean"}
    return VisionEncoder(transformer=VisionTransformerConfig(depth=2, width=32, heads=2), **defaults | settings)


def picture_config(path: Path, objectives: list[dict], trainer: dict | None = None, **settings: object) -> dict:
    """A config that trains on them in seconds; `settings` are the data's."""
    return training_of(
        trainer=trainer,
        model={
            "class_path": "VisionPretraining",
            "init_args": {
                "encoder": {
                    "class_path": "VisionEncoder",
                    "init_args": {
                        "image_size": 16,
                        "patch_size": 4,
                        "transformer": {"depth": 1, "width": 32, "heads": 2, "dropout": 0.1},
                        "class_token": False,
                    },
                },
                "objectives": objectives,
                "augmentation": {"padding": 2},
            },
        },
        data={
            "class_path": "ImageDataModule",
            "init_args": {"path": str(path), "label_column": "label", "batch_size": 8, "validation_share": 0.2}
            | settings,
        },
    )
