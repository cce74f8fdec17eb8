"""Answers rows of texts or pictures by a checkpoint, in the batches, the precision and by the step of `predict`."""

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy
import torch
from lightning.fabric.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_pretrain.data.images.pictures import EncodedPicture, Square, UnreadablePictureError, decode, size_of
from lit_pretrain.data.text.text_encoding import TextSettings, batch_of
from lit_pretrain.modules import ContrastivePretraining, FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.modules.checkpoints import read_checkpoint
from lit_pretrain.objectives.objective import Batch
from lit_pretrain.precision import resolve_precision
from lit_pretrain.required import required
from lit_pretrain.serving.model_settings import CHECKPOINT_NAME, DEFAULTS, ModelSettings

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = {kind.__name__: kind for kind in (ContrastivePretraining, FineTuning, TextPretraining, VisionPretraining)}
# Lightning's other names of precisions.
PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


class Predictor:
    """A checkpoint with the settings of a registered model.

    Args:
        directory: Where both are.
        model_config: What is in `DEFAULTS`, or some of it.

    Raises:
        UserError: If the checkpoint cannot be read.
    """

    def __init__(self, directory: Path, model_config: dict[str, Any]) -> None:
        chosen: dict[str, Any] = DEFAULTS | model_config
        self.settings = ModelSettings.read(directory)
        self.batch_size = int(chosen["batch_size"])
        device = str(chosen["device"])
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.precision = precision_of(str(chosen["precision"]), self.device)
        path = directory / CHECKPOINT_NAME
        module = KINDS[read_checkpoint(path)["lit_pretrain"]["module"]].from_checkpoint(path)
        self.module: Any = self.precision.convert_module(module.eval().requires_grad_(False)).to(self.device)
        # Of what `predict` writes, this is asked for by nobody who asks for a label.
        self.left_out = {"sample_id", *(["embedding"] if isinstance(module, FineTuning) else [])}

    def predict(self, table: "DataFrame", params: dict[str, Any] | None = None) -> "DataFrame":
        """A row for each row, with the same index.

        Args:
            table: Has the columns of the settings: texts, missing ones being empty, or pictures, as the bytes of their
                files or these in base64.
            params: Not used.

        Returns:
            `label` and `probability` (C floats, in the order of the classes), `value`, or `embedding` (E floats).

        Raises:
            MlflowException: If a row cannot be read, which is the fault of whoever asks.
        """
        import pandas

        if not len(table):
            refuse("There are no rows to answer: give at least one.")
        columns = [table[name].tolist() for name in self.settings.columns]
        answers: list[dict[str, Any]] = [{}] * len(table)
        try:
            for places, batch in self.batches(columns):
                for place, row in zip(places, self.rows_of(batch), strict=True):
                    answers[place] = row
        except UnreadablePictureError as error:
            refuse(f"A picture cannot be read ({error}): give the bytes of a picture's file, in JSON as base64.")
        return pandas.DataFrame(answers, index=table.index)

    def rows_of(self, batch: Batch) -> list[dict[str, Any]]:
        """What `predict` writes of a batch, as plain values, a dictionary a sample."""
        batch = self.precision.convert_input(move_data_to_device(batch, self.device))
        with torch.inference_mode(), self.precision.forward_context():
            prediction = self.module.predict_step(batch, 0)
        columns = {
            name: value.float().tolist() if isinstance(value, Tensor) else value
            for name, value in prediction.items()
            if name not in self.left_out
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def batches(self, columns: Sequence[Sequence[Any]]) -> Iterator[tuple[Sequence[int], Batch]]:
        """Batches of a table, each with the places of its rows."""
        if self.settings.kind == "image":
            yield from self.picture_batches(columns[0])
            return
        settings = self.settings
        text_settings = TextSettings(settings.columns, required(settings.maximum_length), settings.truncation)
        texts = {
            name: [text_of(value, name, row) for row, value in enumerate(column)]
            for name, column in zip(settings.columns, columns, strict=True)
        }
        for start in range(0, len(columns[0]), self.batch_size):
            part = {name: column[start : start + self.batch_size] for name, column in texts.items()}
            places = range(start, start + len(part[settings.columns[0]]))
            yield places, batch_of(part, required(self.module.tokenizer), text_settings)

    def picture_batches(self, column: Sequence[Any]) -> Iterator[tuple[Sequence[int], Batch]]:
        """Pictures as squares, those of one size together."""
        name = self.settings.columns[0]
        pictures = [
            EncodedPicture(row, f"row {row} of '{name}'", bytes_of(value, name, row))
            for row, value in enumerate(column)
        ]
        sides: dict[int, list[int]] = {}
        for place, picture in enumerate(pictures):
            sides.setdefault(self.side_of(picture), []).append(place)
        for side, rows in sides.items():
            # Of pictures that are larger than what the encoder sees, fewer fit the same memory.
            at_once = max(1, self.batch_size * min(self.framed_size**2, side**2) // side**2)
            for start in range(0, len(rows), at_once):
                places = rows[start : start + at_once]
                squares = [decode(pictures[place], Square(side)) for place in places]
                yield places, {"images": torch.from_numpy(numpy.stack(squares)), "sample_id": torch.tensor(places)}

    def side_of(self, picture: EncodedPicture) -> int:
        """Pixels of a side of the square that a picture becomes."""
        if self.settings.stored_size is not None:
            return self.settings.stored_size
        # As `predict` takes squares without data.stored_size: as they are.
        width, height = size_of(picture)
        return width if width == height else self.framed_size

    @property
    def framed_size(self) -> int:
        """Pixels of a side of the squares whose middle the encoder sees."""
        pair = isinstance(self.module, ContrastivePretraining)
        return (self.module.vision_encoder if pair else self.module.encoder).framed_size


def precision_of(setting: str, device: torch.device) -> Precision:
    """Lightning's plugin for a precision.

    Args:
        setting: As `trainer.precision`; what is for GPUs alone is fp32 on a CPU.
        device: What computes.
    """
    setting = PRECISIONS.get(setting, setting)
    if setting.startswith("16") and device.type == "cpu":
        return Precision()
    if setting not in ("32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"):
        setting = str(resolve_precision("auto"))
    if setting in ("bf16-mixed", "16-mixed"):
        return MixedPrecision(setting, device.type)  # type: ignore[arg-type]
    if setting in ("bf16-true", "16-true"):
        return HalfPrecision(setting)  # type: ignore[arg-type]
    return DoublePrecision() if setting == "64-true" else Precision()


def is_missing(value: Any) -> bool:
    """Whether a table has nothing in a place: None, NaN, or pandas' own."""
    return value is None or type(value).__name__ == "NAType" or value != value


def text_of(value: Any, column: str, row: int) -> str:
    """A text, empty where there is none."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple | dict | numpy.ndarray) and is_missing(value):
        return ""
    refuse(f"Row {row} of '{column}' holds {type(value).__name__}, not text: give a text a row.")


def bytes_of(value: Any, column: str, row: int) -> bytes:
    """The bytes of a picture's file; a text is these in base64, and never the name of a file, which is the server's."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            refuse(f"Row {row} of '{column}' is a text that is not base64: give the bytes of a picture's file in it.")
    refuse(f"Row {row} of '{column}' holds {type(value).__name__}, no picture: give the bytes of a picture's file.")


def refuse(sentence: str) -> NoReturn:
    """Tell whoever asks what is wrong with it; a server answers with status 400.

    Raises:
        MlflowException: Always.
    """
    from mlflow.exceptions import MlflowException

    raise MlflowException.invalid_parameter_value(sentence)
