"""What a training may start from: a checkpoint or run of ours, or public weights, with the tokenizer that they need."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.data.tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import load_encoder, read_checkpoint
from lit_pretrain.tracking.find import find_checkpoint
from lit_pretrain.tracking.paths import RUN_FILE_NAME, shown_path

ENCODERS: dict[str, type[nn.Module]] = {"TextEncoder": TextEncoder, "VisionEncoder": VisionEncoder}
# The towers of a checkpoint that has two.
TOWERS: dict[str, type[nn.Module]] = {"text": TextEncoder, "vision": VisionEncoder}
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
# What a directory of public weights says that it holds: transformers' model_type, timm's architecture.
BERT_TYPES = ("bert",)


@dataclass(frozen=True)
class StartingPoint:
    """An encoder, and where it comes from.

    Attributes:
        encoder: With its weights.
        tokenizer: The one that the weights were trained with; null for pictures, or where the source has none.
        lineage: Plain facts for the record of a run: `init_from`, and of ours the module, objectives, step and run.
        fresh: Parameters that the source does not have, with new random values.
        left_out: Tensors of the source that the encoder has no place for.
    """

    encoder: nn.Module
    tokenizer: WordPieceTokenizer | None
    lineage: dict[str, str]
    fresh: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def told(self) -> str:
        """One sentence that lists what was not taken over as it was."""
        parts = [
            f"{verb} {', '.join(names)}" for verb, names in (("new", self.fresh), ("left out", self.left_out)) if names
        ]
        return f"The encoder starts from {self.lineage['init_from']}" + (f" ({'; '.join(parts)})." if parts else ".")


def load_starting_point(reference: str, tower: str | None = None) -> StartingPoint:
    """Load an encoder.

    Args:
        reference: "last", a run's name or id, a checkpoint of ours; a directory in Hugging Face's BERT format or in
            timm's; a file of timm's ViT weights; a name of timm's, or of a BERT on the hub ("owner/name"). One tower
            of a contrastive pretraining is "RUN:text" or "RUN:vision".
        tower: `text` or `vision`: which one where there are two and the reference does not say.

    Raises:
        UserError: If it is none of these, or cannot be read.
    """
    reference, named = split_tower(reference)
    path = Path(reference).expanduser()
    if path.is_file() and path.suffix in WEIGHT_SUFFIXES:
        return StartingPoint(VisionEncoder.from_pretrained(path), None, {"init_from": shown_path(path)})
    if path.is_dir() and not (path / RUN_FILE_NAME).is_file():
        return open_directory(path)
    try:
        checkpoint = find_checkpoint(reference)
    except UserError as not_ours:
        if path.suffix == ".ckpt" or reference == "last" or path.exists():
            raise
        if path.is_absolute() or reference.startswith("."):
            raise UserError(
                f"There is nothing at {reference} to start from: give a checkpoint, a run, or a directory of public "
                "weights as model.init_from."
            ) from not_ours
        return open_name(reference, not_ours)
    record = read_checkpoint(checkpoint)["lit_pretrain"]
    two_towers = record["encoder_class"] not in ENCODERS
    tower = named or (tower if two_towers else None)
    if two_towers and tower is None:
        raise UserError(
            f"{shown_path(checkpoint)} holds a {record['encoder_class']}: say which one, {reference}:text or "
            f"{reference}:vision."
        )
    if tower is not None and not two_towers:
        raise UserError(
            f"{shown_path(checkpoint)} holds one {record['encoder_class']} and no two towers: leave ':{tower}' out."
        )
    kind = TOWERS[tower] if tower is not None else ENCODERS[record["encoder_class"]]
    encoder, lineage = load_encoder(str(checkpoint), kind, tower)
    has_tokenizer = kind is TextEncoder and "tokenizer" in record
    return StartingPoint(encoder, WordPieceTokenizer.from_json(record["tokenizer"]) if has_tokenizer else None, lineage)


def split_tower(reference: str) -> tuple[str, str | None]:
    """A reference without the tower that it ends with, and that tower, or null if it names none."""
    name, _, tower = reference.rpartition(":")
    return (name, tower) if name and tower in TOWERS and not Path(reference).exists() else (reference, None)


def open_directory(directory: Path) -> StartingPoint:
    """Public weights in a directory with a config.json, of transformers' BERT or of timm's ViT.

    Raises:
        UserError: If it is neither.
    """
    import json

    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{shown_path(directory)} is neither a run nor a directory of public weights: its config.json cannot be "
            f"read ({type(error).__name__})."
        ) from error
    lineage = {"init_from": shown_path(directory)}
    if config.get("model_type") in BERT_TYPES:
        named = any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        tokenizer = WordPieceTokenizer.load(directory) if named else None
        return StartingPoint(TextEncoder.from_pretrained(directory), tokenizer, lineage)
    if "architecture" in config:
        return StartingPoint(VisionEncoder.from_pretrained(directory), None, lineage)
    kind = config.get("model_type") or "no model_type and no architecture"
    raise UserError(
        f"{shown_path(directory)}/config.json tells of {kind}, which is neither BERT of transformers nor a ViT of "
        "timm: give a directory of one of these."
    )


def open_name(name: str, not_ours: UserError) -> StartingPoint:
    """Public weights by their name: timm's models, or a BERT on the hub.

    Args:
        name: "vit_small_patch16_224", "owner/name", ...
        not_ours: Why it is no run of ours, raised if it is nothing else either.
    """
    import timm

    if timm.is_model(name) or name.startswith(("hf-hub:", "hf_hub:")):
        return StartingPoint(VisionEncoder.from_pretrained(name), None, {"init_from": name})
    if name.count("/") == 1:
        from lit_pretrain.backbone.weights.huggingface_bert import find_directory

        return replace(open_directory(find_directory(name)), lineage={"init_from": name})
    raise UserError(
        f"{str(not_ours).rstrip('.')}; nor is it a directory of public weights, a model of timm's, or owner/name of a "
        "BERT on the hub."
    ) from not_ours


def with_settings(start: StartingPoint, changes: dict[str, Any]) -> StartingPoint:
    """The same weights in an encoder of other settings, such as another pooling.

    Args:
        start: Where from.
        changes: Settings by their name, `transformer`'s by "transformer.name"; nulls change nothing.

    Returns:
        A starting point that lists which parameters are new and which were left out.

    Raises:
        UserError: If a tensor has another shape then.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    settings = start.encoder.settings()
    for name, value in changes.items():
        inner, _, key = name.rpartition(".")
        (settings[inner] if inner else settings)[key] = value
    if settings == start.encoder.settings():
        return start
    encoder = type(start.encoder).from_settings(settings)
    ours, theirs = encoder.state_dict(), start.encoder.state_dict()
    for name in ours.keys() & theirs.keys():
        if ours[name].shape != theirs[name].shape:
            raise UserError(
                f"With {', '.join(changes)} changed, {name} has the shape {tuple(ours[name].shape)}, the weights of "
                f"{start.lineage.get('init_from', 'the encoder')} have {tuple(theirs[name].shape)}: leave it as it was."
            )
    missing, unexpected = encoder.load_state_dict(theirs, strict=False)
    return replace(start, encoder=encoder, fresh=sorted(missing), left_out=sorted(unexpected))


def without_weights(start: StartingPoint) -> StartingPoint:
    """An encoder of the same settings with new random weights: what pretraining is compared with."""
    lineage = {"init_from": "scratch", "architecture_from": start.lineage["init_from"]}
    return StartingPoint(type(start.encoder).from_settings(start.encoder.settings()), start.tokenizer, lineage)
