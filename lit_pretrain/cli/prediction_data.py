"""`predict --data.path`: any source in the place of the training's, of texts or of pictures alone."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_pretrain.cli.arguments import CONFIG_OPTIONS, value_of, values_of
from lit_pretrain.data.file_reader import ending
from lit_pretrain.data.images.image_source import FOLDER, ImageSource
from lit_pretrain.data.sources import everything_in
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import read_checkpoint
from lit_pretrain.required import required

# Settings of a training's data that say what was read of its texts or pictures: as `inputs` of a record has them.
INPUTS = {"text": ("maximum_length", "sequence_length"), "image": ("stored_size", "stored_size")}
# Pretraining on one modality.
KINDS = {"TextPretraining": "text", "VisionPretraining": "image"}


def with_data_to_predict(arguments: list[str], training: Namespace, checkpoint: Path | None) -> list[str]:
    """Let `predict --data.path` name the whole source: a training's data_files, name and split are not of it.

    What pretraining left is applied to texts or pictures alone, in the place of documents or of pairs.

    Args:
        arguments: Of the command line.
        training: What they say without their `--data` settings.
        checkpoint: The one that they name, or null.

    Raises:
        UserError: If two towers are to embed what may be texts or pictures.
    """
    path = value_of(arguments, "--data.path")
    settings = {"name": "null", "data_files": "null", "split": "train"}
    if checkpoint is not None and checkpoint.is_file() and value_of(arguments, "--data") is None:
        record = read_checkpoint(checkpoint)["lit_pretrain"]
        kind = KINDS.get(record["module"])
        if record["module"] == "ContrastivePretraining":
            kind = one_side(required(path), arguments)
        if kind is not None:
            settings |= settings_of_side(kind, record, training.data.init_args)
            # Before all settings, which are the class's own then.
            place = after_configs(arguments)
            arguments = [*arguments[:place], "--data", "LabelledDataModule", *arguments[place:]]
    for setting, value in settings.items():
        names = (f"--data.{setting}", f"--data.init_args.{setting}")
        if not values_of(arguments, *names):
            arguments = [*arguments, names[0], value]
    return arguments


def after_configs(arguments: list[str]) -> int:
    """Where the arguments go on after the last config."""
    ends = [
        place + (1 if "=" in argument else 2)
        for place, argument in enumerate(arguments)
        if argument.partition("=")[0] in CONFIG_OPTIONS
    ]
    return max(ends, default=1)


def one_side(path: str, arguments: list[str]) -> str:
    """Whether two towers are to embed texts ("text") or pictures ("image").

    Args:
        path: The source.
        arguments: Of the command line, which may name a column.

    Raises:
        UserError: If nothing says which of the two it is.
    """
    names = {kind: (f"--data.{kind}_column", f"--data.init_args.{kind}_column") for kind in ("image", "text")}
    named = [kind for kind, options in names.items() if values_of(arguments, *options)]
    if len(named) > 1:
        raise UserError("--data.image_column and --data.text_column are both given: embed pictures or texts.")
    kind = named[0] if named else kind_of(path)
    if kind is None:
        raise UserError(
            f"Whether pictures or texts of {path} are to be embedded is not said: give --data.image_column COLUMN or "
            "--data.text_column COLUMN."
        )
    return kind


def settings_of_side(kind: str, record: dict[str, Any], training: Namespace) -> dict[str, str]:
    """Settings of `LabelledDataModule` for texts alone or pictures alone, as they were in training.

    Args:
        kind: `text` or `image`.
        record: The checkpoint's.
        training: Settings of the training's data.
    """
    setting, name_in_training = INPUTS[kind]
    size = record.get("inputs", {}).get(setting) or training.get(name_in_training)
    if size is None and kind == "image" and "encoder" in record:
        size = record["encoder"]["image_size"]
    settings = {"label_column": "null", "tokenizer": "null", "image_column": "image" if kind == "image" else "null"}
    return settings | ({setting: str(size)} if size is not None else {})


def kind_of(path: str) -> str | None:
    """`image` of a picture or a folder of pictures, `text` of a text file or a folder of these, else null."""
    place = Path(path).expanduser()
    files = everything_in([str(place)]) if place.is_dir() else [str(place)]
    endings = {ending(file) for file in files}
    if any(ImageSource.builders.get(ending) == FOLDER for ending in endings):
        return "image"
    return "text" if endings == {".txt"} else None
