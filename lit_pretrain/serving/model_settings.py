"""What a registered model has beside its checkpoint: how a request's rows become what the checkpoint was trained on."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lit_pretrain.data.text.text_encoding import Truncation

SETTINGS_NAME = "settings.json"
CHECKPOINT_NAME = "model.ckpt"
FORMAT = 1
# What MLflow lets a person set when the model is loaded, with what holds otherwise.
DEFAULTS = {"device": "auto", "precision": "auto", "batch_size": 32}


@dataclass(frozen=True)
class ModelSettings:
    """How rows are read.

    Attributes:
        kind: What they hold, `text` or `image`.
        columns: Of a request: the texts, a pair's two texts, or the pictures.
        maximum_length: Tokens of a text at most, special tokens included; null for pictures.
        truncation: What is kept of a longer text.
        stored_size: Pixels of a side of the squares that pictures become; null where training took them as they were.
    """

    kind: Literal["text", "image"]
    columns: tuple[str, ...]
    maximum_length: int | None = None
    truncation: Truncation = "head"
    stored_size: int | None = None

    def write(self, directory: Path) -> None:
        """Write them beside a checkpoint."""
        content = {"format": FORMAT, **asdict(self)}
        (directory / SETTINGS_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> "ModelSettings":
        """What `write` has written."""
        content: dict[str, Any] = json.loads((directory / SETTINGS_NAME).read_text(encoding="utf-8"))
        content.pop("format")
        return cls(**content | {"columns": tuple(cast(list[str], content["columns"]))})
