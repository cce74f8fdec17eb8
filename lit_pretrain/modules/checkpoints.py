"""Checkpoints of this suite: read without running pickled code, and compared with what a config builds."""

import copy
import inspect
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.class_paths import class_named, short_name
from lit_pretrain.errors import UserError
from lit_pretrain.modules.averaging import with_averages
from lit_pretrain.tracking.checkpoint_file import check_sums, unreadable
from lit_pretrain.tracking.find import SHARDS, find_checkpoint, holds_shards, read_run_file, run_directory_of_checkpoint
from lit_pretrain.tracking.paths import RUN_FILE_NAME, shown_path

CHECKPOINT_FORMAT = 1
# In the place of an encoder's class where there are two.
TWO_TOWERS = "pair of towers"
# What a checkpoint tells of its encoder beside its shape: how evaluation frames pictures.
NO_SHAPE = ("crop_share",)
# What the checkpoint that was read last tells of itself, by its file as it was: a command asks several times.
_latest_record: dict[tuple[Path, int, int, int], dict[str, Any]] = {}


def difference(name: str, saved: Any, ours: Any) -> list[str]:
    """Where two nested settings differ, as "encoder.transformer.width (256 there, 128 here)"."""
    if isinstance(saved, dict) and isinstance(ours, dict):
        # A setting that is off or at its default here and unknown there came after the checkpoint.
        known = saved.keys() | {
            key for key, value in ours.items() if not (value in (None, False) or is_default(key, value))
        }
        keys = sorted(known.difference(NO_SHAPE))
        return [line for key in keys for line in difference(f"{name}.{key}", saved.get(key), ours.get(key))]
    return [] if saved == ours else [f"{name} ({saved} there, {ours} here)"]


def is_default(name: str, value: object) -> bool:
    """Whether a setting is what encoders and their Transformers have where it is not given."""
    kinds = (TextEncoder, VisionEncoder, TransformerConfig, VisionTransformerConfig)
    found = (inspect.signature(kind).parameters.get(name) for kind in kinds)
    return any(parameter.default == value for parameter in found if parameter is not None)


def take_framing(encoder: TextEncoder | VisionEncoder, record: dict[str, Any]) -> None:
    """Frame pictures as the encoder of a checkpoint does.

    Args:
        encoder: Of pictures; any other is left alone.
        record: The checkpoint's. Older ones tell only of two towers how large the pictures were stored.
    """
    if not hasattr(encoder, "crop_share"):
        return
    settings, vision = record.get("vision_encoder") or record["encoder"], cast(VisionEncoder, encoder)
    if settings.get("crop_share"):
        vision.crop_share = settings["crop_share"]
    elif "stored_size" in record.get("inputs", {}):
        vision.frame_as_stored(record["inputs"]["stored_size"], training=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours, mapped and read without running any pickled code; anything else is a `UserError`.

    Its weights are the averages where it has some. One that is damaged, or whose weights are no numbers, is an error
    too: what is computed with it would look like figures.
    """
    if holds_shards(path):
        raise UserError(
            f"{path} holds the shards of a checkpoint: make a file of them by `python -m "
            f"lightning.fabric.utilities.consolidate_checkpoint {path} --output_file FILE.ckpt`, and give that."
        )
    checkpoint = with_averages(_read(Path(path)))
    check_numbers(checkpoint.get("state_dict", {}), path)
    return checkpoint


def read_record(path: str | Path) -> dict[str, Any]:
    """What a checkpoint tells of itself, one of shards too; errors as of `read_checkpoint`."""
    file = Path(path) / SHARDS if holds_shards(path) else Path(path)
    try:
        state = file.stat()
    except OSError:
        # Which is told as what it is.
        return read_checkpoint(path)["lit_pretrain"]
    key = (file.absolute(), state.st_ino, state.st_size, state.st_mtime_ns)
    if key not in _latest_record:
        checkpoint = _read(file) if file != Path(path) else read_checkpoint(path)
        _latest_record.clear()
        _latest_record[key] = checkpoint["lit_pretrain"]
    return copy.deepcopy(_latest_record[key])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}: give a .ckpt file from a run's checkpoints folder.")
    check_sums(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged or foreign file fails in many ways
        raise unreadable(path, error) from error
    if "lit_pretrain" not in checkpoint:
        raise UserError(f"{path} was not written by lit_pretrain: give one from a run's checkpoints folder.")
    return checkpoint


def check_numbers(tensors: dict[str, Any], path: str | Path) -> None:
    """Refuse weights that a training has spoilt.

    Args:
        tensors: By name; a constant among them may be infinite.
        path: Where they are from.

    Raises:
        UserError: If any of them is NaN.
    """
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    floats = {
        name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor) and tensor.dtype in kinds
    }
    broken = [name for name, tensor in floats.items() if bool(tensor.isnan().any())]
    if broken:
        raise UserError(
            f"The weights in {shown_path(path)} are not numbers but NaN ({len(broken)} of {len(floats)} tensors, "
            f"{broken[0]} is the first): take an earlier checkpoint of the run."
        )


def checkpoint_of(kind: type, reference: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checkpoint of a module, and what it tells of itself.

    Args:
        kind: Class of the module that has written it.
        reference: A file; or a run's name or id, "RUN:best", "last".

    Raises:
        UserError: If there is no such file or run, or it is not a checkpoint of this class.
    """
    path = find_checkpoint(str(reference))
    checkpoint = read_checkpoint(path)
    record = checkpoint["lit_pretrain"]
    if record["module"] != kind.__name__:
        raise UserError(f"{path} is a checkpoint of {record['module']}, not of {kind.__name__}.")
    return checkpoint, record


def common_record(module: Any, data: Any) -> dict[str, Any]:
    """What every checkpoint tells of itself: its format, its module, the whole tokenizer, the data's fingerprint.

    Args:
        module: The module; weights on text are worthless without its tokenizer.
        data: Its data module, or null.
    """
    record: dict[str, Any] = {"format": CHECKPOINT_FORMAT, "module": type(module).__name__}
    tokenizer = getattr(module, "tokenizer", None)
    if tokenizer is not None:
        record |= {"tokenizer": tokenizer.to_json(), "tokenizer_hash": tokenizer.hash}
    if getattr(data, "fingerprint", None):
        record["data_fingerprint"] = data.fingerprint
    return record


def encoder_class_named(class_path: str) -> type[TextEncoder | VisionEncoder]:
    """The class of an encoder by its name in a checkpoint, a user's own one too.

    Raises:
        UserError: If it cannot be imported, or is no encoder.
    """
    base = VisionEncoder if class_path == VisionEncoder.__name__ else TextEncoder
    kind = class_named(class_path, nn.Module if "." in class_path else base, "an encoder")
    if not issubclass(kind, TextEncoder | VisionEncoder):
        raise UserError(f"The checkpoint's encoder is a {class_path}, neither a TextEncoder nor a VisionEncoder.")
    return kind


def objective_names(record: dict[str, Any]) -> list[str]:
    """The short names of the classes of a record's objectives; empty where it has none."""
    return [short_name(objective["class_path"]) for objective in record.get("objectives", [])]


Encoder = TypeVar("Encoder", bound=TextEncoder | VisionEncoder)


def load_encoder(reference: str, kind: type[Encoder], tower: str | None = None) -> tuple[Encoder, dict[str, str]]:
    """Build the encoder of a checkpoint with its weights; every tensor must be there.

    Args:
        reference: "last", a run's name or id, or a file.
        kind: Class of the encoder that is wanted.
        tower: Of a checkpoint with two towers, whose encoder: `text` or `vision`.

    Returns:
        The encoder, and where it comes from: checkpoint, module, objectives, step and run.

    Raises:
        UserError: If there is no such checkpoint, or its encoder is of another kind or not whole.
    """
    path = find_checkpoint(reference)
    checkpoint = read_checkpoint(path)
    record = checkpoint["lit_pretrain"]
    if tower is None:
        encoder_class = encoder_class_named(record["encoder_class"])
        if not issubclass(encoder_class, kind):
            raise UserError(f"{shown_path(path)} holds a {record['encoder_class']}, a {kind.__name__} is needed here.")
        kind = encoder_class
    encoder = cast(Encoder, kind.from_settings(record["encoder" if tower is None else f"{tower}_encoder"]))
    take_framing(encoder, record)
    prefix = "encoder." if tower is None else f"{tower}_tower.encoder."
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    missing, unexpected = encoder.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise UserError(
            f"The weights in {shown_path(path)} are not those of the encoder it describes: missing "
            f"{missing or 'none'}, unexpected {unexpected or 'none'}."
        )
    objectives = " + ".join(objective_names(record))
    objectives = objectives if tower is None else "Contrastive"
    lineage = {"init_from": str(path), "init_from_module": record["module"], "init_from_objectives": objectives}
    lineage |= {"init_from_step": str(checkpoint["global_step"]), "init_from_tower": tower or ""}
    if (directory := run_directory_of_checkpoint(path)) is not None:
        lineage["init_from_run"] = read_run_file(directory / RUN_FILE_NAME).run_id
    return encoder, {name: value for name, value in lineage.items() if value}
