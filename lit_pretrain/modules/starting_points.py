"""What a training may start from: a checkpoint or run of ours, or public weights, with the tokenizer that they need."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.byte_pair_tokenizer import BytePairTokenizer
from lit_pretrain.data.text.tokenizers_by_kind import load_tokenizer, tokenizer_from_json
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import TWO_TOWERS, encoder_class_named, load_encoder, read_checkpoint
from lit_pretrain.required import required
from lit_pretrain.tracking.find import find_checkpoint, split_tower
from lit_pretrain.tracking.paths import RUN_FILE_NAME, shown_path
from lit_pretrain.weights import huggingface_text, huggingface_vit, open_clip, timm_vit
from lit_pretrain.weights.files import read_once
from lit_pretrain.weights.open_clip_settings import HEAD_WIDTH, TowerName
from lit_pretrain.weights.public import LinearHead, PublicTower, PublicWeights, shortened

# The towers of a checkpoint that has two.
TOWERS: dict[str, type[TextEncoder] | type[VisionEncoder]] = {"text": TextEncoder, "vision": VisionEncoder}
# How the former sizes of an encoder that has grown are called in a lineage; see `modules.growth`.
GROWN = "grown_from_"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
# What a directory of public weights says that it holds: transformers' model_type, timm's architecture.
BERT_TYPES = huggingface_text.TYPES
PUBLIC_TYPES = (*BERT_TYPES[1:], *huggingface_vit.KINDS, *huggingface_vit.PAIRS)


@dataclass(frozen=True)
class ObjectiveHead:
    """What an objective of a checkpoint of ours has learned.

    Attributes:
        settings: The objective's, with its class; see `Objective.settings`.
        tensors: By the names that the objective has for them.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class StartingPoint:
    """An encoder, and where it comes from.

    Attributes:
        encoder: With its weights.
        tokenizer: The one that the weights were trained with; null for pictures, or where the source has none.
        lineage: Plain facts for the record of a run: `init_from`, and of ours the module, objectives, step and run.
        fresh: Parameters that the source does not have, with new random values.
        left_out: Tensors of the source that the encoder has no place for.
        projection: (E, D), from pooled features to where texts and pictures meet; null where the source has none.
        log_scale: Logarithm of what cosines of such embeddings are multiplied by; null where there are none.
        logit_bias: What is added to them then, of SigLIP's loss; else null.
        head: What tells classes or a number from its pooled features there; null where the source has none.
        objective_heads: Of a pretraining of ours.
        format_heads: Tensors of pretraining heads by transformers' names, without "bert.".
        taken_heads: Names of the objectives that go on with a head of the source; see `objective_heads.take_heads`.
        fresh_heads: Names of the objectives with new heads, and why where the source has one of that kind.
    """

    encoder: TextEncoder | VisionEncoder
    tokenizer: TextTokenizer | None
    lineage: dict[str, str]
    fresh: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    projection: Tensor | None = None
    log_scale: float | None = None
    logit_bias: float | None = None
    head: LinearHead | None = None
    objective_heads: tuple[ObjectiveHead, ...] = ()
    format_heads: dict[str, Tensor] = field(default_factory=dict)
    taken_heads: tuple[str, ...] = ()
    fresh_heads: tuple[str, ...] = ()

    def without_head(self, reason: str = "") -> "StartingPoint":
        """The same, its head being left out, for a reason that is told."""
        if self.head is None:
            return self
        names = [shortened(list(self.head.names)) + (f" ({reason})" if reason else "")]
        return replace(self, head=None, left_out=[*self.left_out, *names])

    def told(self) -> str:
        """One sentence that lists what was not taken over as it was, and a head that was."""
        lists = (("new", self.fresh), ("left out", self.left_out))
        former = [f"{name.removeprefix(GROWN)} {size}" for name, size in self.lineage.items() if name.startswith(GROWN)]
        parts = [f"grown from {', '.join(former)}"] if former else []
        parts += [f"{verb} {shortened(names)}" for verb, names in lists if names]
        heads = (("taken", self.taken_heads), ("new", self.fresh_heads))
        parts += [f"heads {verb}: {', '.join(names)}" for verb, names in heads if names]
        if self.head is not None:
            parts.append(
                "its head is taken" + (f", for {named_classes(self.head.classes)}" if self.head.classes else "")
            )
        source = self.lineage["init_from"]
        if "architecture_from" in self.lineage:
            source = f"new weights, in the shape of {self.lineage['architecture_from']}"
        return f"The encoder starts from {source}" + (f" ({'; '.join(parts)})." if parts else ".")

    def tell_left_out(self) -> None:
        """Say on stderr which of the source's tensors, its head among them, are not used, if there are any."""
        start = self.without_head()
        if start.left_out:
            print(start.told(), file=sys.stderr, flush=True)


def named_classes(classes: Sequence[str]) -> str:
    """The first of some classes."""
    return ", ".join(classes[:8]) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")


@read_once()
def load_starting_point(
    reference: str, tower: TowerName | None = None, architecture: str | None = None
) -> StartingPoint:
    """Load an encoder.

    Args:
        reference: "last", a run's name or id, a checkpoint of ours; a directory in Hugging Face's BERT format, in
            timm's or in open_clip's; a file of ViT weights of timm's or of a CLIP of open_clip's; a name of timm's, or
            of a BERT or an open_clip checkpoint on the hub ("owner/name"). One tower of a contrastive pretraining or
            of an open_clip checkpoint is "...:text" or "...:vision".
        tower: Which one where there are two and the reference does not say; if this does not either, it is that of
            pictures of an open_clip checkpoint.
        architecture: timm's name for the ViT that a file of its weights holds, which its tensors do not tell; null for
            everything else.

    Raises:
        UserError: If it is none of these, or cannot be read.
    """
    reference, written = split_tower(reference)
    named = cast(TowerName | None, written)
    path = Path(reference).expanduser()
    if path.is_file() and path.suffix in WEIGHT_SUFFIXES:
        if architecture is not None or not open_clip.is_checkpoint(path):
            return of_public(timm_vit.load_weights(path, architecture), VisionEncoder, None, shown_path(path))
        return open_tower(path, named or tower)
    if architecture is not None:
        raise UserError(
            f"model.architecture is {architecture}, and {reference} is no file of weights and tells its own: leave it "
            "out."
        )
    if path.is_dir() and not (path / RUN_FILE_NAME).is_file():
        return (
            open_tower(path, named or tower)
            if open_clip.is_checkpoint(path)
            else open_directory(path, named or tower, named is not None)
        )
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
        return open_name(reference, named or tower, not_ours)
    record = read_checkpoint(checkpoint)["lit_pretrain"]
    two_towers = record["encoder_class"] == TWO_TOWERS
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
    kind = TOWERS[tower] if tower is not None else encoder_class_named(record["encoder_class"])
    encoder, lineage = load_encoder(str(checkpoint), kind, tower)
    has_tokenizer = issubclass(kind, TextEncoder) and "tokenizer" in record
    start = StartingPoint(encoder, tokenizer_from_json(record["tokenizer"]) if has_tokenizer else None, lineage)
    if tower is None and "objectives" in record:
        start = replace(start, objective_heads=objective_heads_of(checkpoint))
    if "label_facts" in record:
        start = replace(start, head=head_of(checkpoint, LabelFacts.from_dict(record["label_facts"])))
    return start if tower is None else with_meeting_place(start, checkpoint, tower)


def head_of(checkpoint: Path, facts: LabelFacts) -> LinearHead:
    """The head of a fine-tuning of ours; a number's is in the labels' own unit."""
    names = ("head.weight", "head.bias")
    state = read_checkpoint(checkpoint)["state_dict"]
    # Copies, which do not keep the file mapped into memory.
    weight, bias = (state[name].float().clone() for name in names)
    if facts.task == "regression":
        weight, bias = weight * facts.std, bias * facts.std + facts.mean
    return LinearHead(weight, bias, tuple(facts.classes), facts.task, names)


def objective_heads_of(checkpoint: Path) -> tuple[ObjectiveHead, ...]:
    """The heads of a pretraining of ours, in the order of its objectives."""
    content = read_checkpoint(checkpoint)
    heads = []
    for place, settings in enumerate(content["lit_pretrain"]["objectives"]):
        prefix = f"objectives.{place}."
        state = content["state_dict"].items()
        tensors = {name.removeprefix(prefix): value for name, value in state if name.startswith(prefix)}
        heads.append(ObjectiveHead(settings, tensors))
    return tuple(heads)


def with_meeting_place(start: StartingPoint, checkpoint: Path, tower: TowerName) -> StartingPoint:
    """The same with the projection, temperature and bias of a contrastive pretraining of ours."""
    state = read_checkpoint(checkpoint)["state_dict"]
    bias = state.get("objective.logit_bias")
    return replace(
        start,
        # A copy, as in `head_of`.
        projection=state[f"{tower}_tower.projection.weight"].clone(),
        log_scale=float(state["objective.log_scale"]),
        logit_bias=None if bias is None else float(bias),
    )


def of_public(
    weights: PublicWeights, kind: type[TextEncoder] | type[VisionEncoder], tokenizer: TextTokenizer | None, source: str
) -> StartingPoint:
    """Where public weights are what is started from."""
    encoder = kind.from_public(weights)
    start = StartingPoint(
        encoder,
        tokenizer,
        {"init_from": source},
        left_out=weights.left_out,
        head=weights.head,
        format_heads=weights.pretraining_heads,
    )
    if not isinstance(weights, PublicTower):
        return start
    return replace(start, projection=weights.projection, log_scale=weights.log_scale, logit_bias=weights.logit_bias)


def open_directory(directory: Path, tower: TowerName | None = None, named: bool = False) -> StartingPoint:
    """Public weights in a directory with a config.json, of transformers or of timm.

    Args:
        directory: Where.
        tower: Which of the two that a CLIP has; null for that of pictures.
        named: Whether the person has said which, of what may have one encoder only.

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
    if config.get("model_type") in BERT_TYPES:
        named = any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        tokenizer = load_tokenizer(directory) if named else None
        return of_public(huggingface_text.load_weights(directory), TextEncoder, tokenizer, shown_path(directory))
    kind = config.get("model_type")
    if kind in huggingface_vit.PAIRS or kind == "clip_text_model" or (named and kind in huggingface_vit.KINDS):
        return open_tower_of_transformers(directory, tower or ("text" if kind == "clip_text_model" else "vision"))
    if kind in huggingface_vit.KINDS:
        return of_public(huggingface_vit.load_weights(directory), VisionEncoder, None, shown_path(directory))
    if "architecture" in config:
        return of_public(timm_vit.load_weights(directory), VisionEncoder, None, shown_path(directory))
    kind = config.get("model_type") or "no model_type and no architecture"
    raise UserError(
        f"{shown_path(directory)}/config.json tells of {kind}, which is neither BERT of transformers nor a ViT of "
        f"timm: give a directory of one of these, of transformers' {', '.join(PUBLIC_TYPES)}, or one of open_clip's "
        f"with {open_clip.CONFIG}."
    )


def open_tower_of_transformers(directory: Path, tower: TowerName) -> StartingPoint:
    """One tower of a CLIP or a SigLIP of transformers', with the tokenizer.json beside it for texts."""
    has_tokenizer = tower == "text" and (directory / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(directory) if has_tokenizer else None
    return of_public(huggingface_vit.load_tower(directory, tower), TOWERS[tower], tokenizer, shown_path(directory))


def open_tower(path: Path, tower: TowerName | None) -> StartingPoint:
    """One tower of an open_clip checkpoint, with its projection and what both towers share.

    Its tokenizer is the tokenizer.json beside the weights, or CLIP's as the `open_clip` package brings it, unless the
    config names another.

    Args:
        path: Directory or file.
        tower: Which; null for that of pictures.

    Raises:
        UserError: If it cannot be loaded.
    """
    tower = tower or "vision"
    weights = open_clip.load_tower(path, tower)
    if not weights.config:
        activation = weights.settings["transformer"]["activation"]
        print(
            f"{shown_path(path)} has no {open_clip.CONFIG} beside it, and its tensors do not tell all of the {tower} "
            f"tower: heads of {HEAD_WIDTH} features and {activation} are taken.",
            file=sys.stderr,
            flush=True,
        )
    tokenizer = None
    if tower == "text":
        file = (path if path.is_dir() else path.parent) / "tokenizer.json"
        settings = weights.config.get("model_cfg", weights.config).get("text_cfg", {})
        if file.is_file():
            tokenizer = load_tokenizer(file)
        elif not settings.get("hf_tokenizer_name") and not settings.get("tokenizer_kwargs"):
            tokenizer = BytePairTokenizer.of_open_clip()
    return of_public(weights, TOWERS[tower], tokenizer, shown_path(path))


def open_name(name: str, tower: TowerName | None, not_ours: UserError) -> StartingPoint:
    """Public weights by their name: timm's models, or a BERT or an open_clip checkpoint on the hub.

    Args:
        name: "vit_small_patch16_224", "owner/name", "hf-hub:owner/name" (as timm and open_clip write it), ...
        tower: Which of the two that an open_clip checkpoint has.
        not_ours: Why it is no run of ours, raised if it is nothing else either.
    """
    import timm

    on_hub = timm_vit.name_on_hub(name)
    if on_hub is not None and (directory := open_clip.find_on_hub(on_hub)) is not None:
        return replace(open_tower(directory, tower), lineage={"init_from": name})
    if timm.is_model(name) or on_hub is not None:
        return of_public(timm_vit.load_weights(name), VisionEncoder, None, name)
    if name.count("/") == 1:
        if (directory := open_clip.find_on_hub(name)) is not None:
            return replace(open_tower(directory, tower), lineage={"init_from": name})
        from lit_pretrain.weights.huggingface_bert import find_directory

        return replace(open_directory(find_directory(name), tower), lineage={"init_from": name})
    raise UserError(
        f"{str(not_ours).rstrip('.')}; nor is it a directory of public weights, a model of timm's, or owner/name of a "
        "BERT or an open_clip checkpoint on the hub."
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
    state, start_state = encoder.state_dict(), start.encoder.state_dict()
    for name in state.keys() & start_state.keys():
        if state[name].shape != start_state[name].shape:
            raise UserError(
                f"With {', '.join(changes)} changed, {name} has the shape {tuple(state[name].shape)}, the weights of "
                f"{start.lineage.get('init_from', 'the encoder')} have {tuple(start_state[name].shape)}: leave it as "
                "it was."
            )
    missing, unexpected = encoder.load_state_dict(start_state, strict=False)
    if settings["pooling"] != start.encoder.settings()["pooling"]:
        start = start.without_head(f"it reads the pooling {start.encoder.pooling}")
    left_out = [*start.left_out, *sorted(unexpected)]
    # An objective of pretraining may read BERT's pooler where the encoder does not any more.
    poolers = {name: start_state[name] for name in unexpected if name.startswith("pooler.dense.")}
    start = replace(start, format_heads=poolers | start.format_heads)
    fresh = sorted({*missing, *(name for name in start.fresh if name in state)})
    return replace(start, encoder=encoder, fresh=fresh, left_out=left_out)


def without_weights(start: StartingPoint) -> StartingPoint:
    """An encoder of the same settings with new random weights: what pretraining is compared with."""
    lineage = {"init_from": "scratch", "architecture_from": start.lineage["init_from"]}
    lineage |= {name: size for name, size in start.lineage.items() if name.startswith(GROWN)}
    encoder = type(start.encoder).from_settings(start.encoder.settings())
    if isinstance(encoder, TextEncoder) and encoder.lacks_ngrams:
        # Which n-grams there are is vocabulary, as the tokenizer is, and no weight.
        given = cast(TextEncoder, start.encoder).embeddings.ngrams
        required(encoder.embeddings.ngrams).set_keys(required(given).keys)
    return StartingPoint(encoder, start.tokenizer, lineage)


def check_start_given(owner: str, encoder: object, init_from: str | None, architecture: str | None) -> None:
    """An encoder to train from scratch, or a source whose encoder is trained on, and not both.

    Raises:
        UserError: In one sentence.
    """
    if (encoder is None) == (init_from is None):
        raise UserError(
            f"{owner} takes either model.encoder, to train from scratch, or model.init_from, a checkpoint whose "
            "encoder is trained on: give one of the two."
        )
    if architecture is not None and init_from is None:
        raise UserError("model.architecture tells what the file model.init_from holds: give that too, or leave it.")
