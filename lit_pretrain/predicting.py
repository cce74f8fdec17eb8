"""`predict --data.path`: any source in the place of the training's, of texts or of pictures alone for two towers."""

from pathlib import Path

from lit_pretrain.arguments import CONFIG_OPTIONS, value_of, values_of
from lit_pretrain.data.image_source import FOLDER, ImageSource
from lit_pretrain.data.sources import ending, everything_in
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import read_checkpoint


def with_data_to_predict(arguments: list[str]) -> list[str]:
    """Let `predict --data.path` name the whole source: a training's data_files, name and split are not of it.

    Args:
        arguments: With `--ckpt_path` as a path.

    Raises:
        UserError: If two towers are to embed what may be texts or pictures.
    """
    path = value_of(arguments, "--data.path")
    if arguments[0] != "predict" or path is None:
        return arguments
    settings = {"name": "null", "data_files": "null", "split": "train"}
    checkpoint = value_of(arguments, "--ckpt_path")
    if checkpoint is not None and Path(checkpoint).is_file() and value_of(arguments, "--data") is None:
        record = read_checkpoint(checkpoint)["lit_pretrain"]
        if record["module"] == "ContrastivePretraining":
            settings |= one_side(path, arguments, record.get("inputs", {}))
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


def one_side(path: str, arguments: list[str], inputs: dict[str, int]) -> dict[str, str]:
    """Settings of `LabelledDataModule` for pictures alone or for texts alone, as they were in training.

    Args:
        path: The source.
        arguments: Of the command line, which may name a column.
        inputs: `stored_size` and `maximum_length` of the training, as the checkpoint has them.

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
    size = "stored_size" if kind == "image" else "maximum_length"
    settings = {"label_column": "null", "tokenizer": "null", "image_column": "image" if kind == "image" else "null"}
    return settings | ({size: str(inputs[size])} if size in inputs else {})


def kind_of(path: str) -> str | None:
    """`image` of a picture or a folder of pictures, `text` of a text file or a folder of these, else null."""
    given = Path(path).expanduser()
    files = everything_in([str(given)]) if given.is_dir() else [str(given)]
    endings = {ending(file) for file in files}
    if any(ImageSource.builders.get(one) == FOLDER for one in endings):
        return "image"
    return "text" if endings == {".txt"} else None
