"""Small pictures with known pixels, and files of all kinds that hold them."""

import io
from pathlib import Path

import datasets
import numpy
from PIL import Image

CLASSES = ["blue", "green", "red"]


def pixels_of(number: int, side: int = 8) -> numpy.ndarray:
    """(S, S, 3) uint8, of a pattern of its own."""
    return numpy.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=numpy.uint8)


def png(pixels: numpy.ndarray) -> bytes:
    """A file without loss."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_folder(directory: Path, count: int = 12, side: int = 8) -> Path:
    """Pictures 0, 1, 2, ... shared out over a directory a class in turn, two levels down."""
    for number in range(count):
        target = directory / "all" / CLASSES[number % len(CLASSES)]
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{number:03}.png").write_bytes(png(pixels_of(number, side)))
    return directory


def make_rows(count: int = 12, side: int = 8) -> datasets.Dataset:
    """The same pictures as rows, with their class, name and number."""
    features = {
        "picture": datasets.Image(),
        "label": datasets.ClassLabel(names=CLASSES),
        "name": datasets.Value("string"),
        "number": datasets.Value("int64"),
        "weight": datasets.Value("float64"),
    }
    columns = {
        "picture": [{"bytes": png(pixels_of(number, side)), "path": f"{number:03}.png"} for number in range(count)],
        "label": [number % len(CLASSES) for number in range(count)],
        "name": [CLASSES[number % len(CLASSES)] for number in range(count)],
        "number": list(range(count)),
        "weight": [number / 2 for number in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write_parquet(path: Path, count: int = 12, side: int = 8) -> Path:
    """The same rows as a file."""
    make_rows(count, side).to_parquet(path)
    return path


def spoil(path: Path) -> Path:
    """Cut a file short."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path
