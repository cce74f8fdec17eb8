"""Both towers of a contrastive pretraining in open_clip's format: a directory that `open_clip` loads as a CLIP."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder
from lit_pretrain.commands.exports.card import Loading
from lit_pretrain.commands.exports.check import (
    Difference,
    ExportMismatchError,
    TextBatch,
    compare,
    named_version,
    quiet_transformers,
    seeded_pictures,
    seeded_texts,
    text_batch,
)
from lit_pretrain.commands.exports.subject import EMBEDDINGS, Subject
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.byte_pair_tokenizer import BytePairTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.modules.contrastive.open_clip_towers import refuse_what_clip_lacks
from lit_pretrain.required import required
from lit_pretrain.weights.files import write_checkpoint
from lit_pretrain.weights.open_clip import CONFIG, LOG_SCALE, LOGIT_BIAS, PROJECTIONS, WEIGHTS, open_clip_name
from lit_pretrain.weights.open_clip_settings import NORM_EPSILON, POOLINGS, TowerName

PACKAGES = ("open_clip", "transformers")
# Matrices of a block, each of which has a bias there.
LINEAR = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def library() -> str:
    """What checks the export."""
    return f"open_clip {named_version('open_clip_torch').rpartition(' ')[2]}"


def write(subject: Subject, directory: Path) -> None:
    """Write weights, config and tokenizer.

    Raises:
        UserError: If open_clip has no place for something of a tower; the sentence says for what.
    """
    module, tokenizer = subject.module, required(subject.tokenizer)
    text, vision = module.text_encoder, module.vision_encoder
    try:
        model = config_of_towers(text, vision, module.embedding_width, tokenizer.sep_id, tokenizer.vocabulary_size - 1)
    except UserError as error:
        raise UserError(f"{str(error).rpartition(':')[0]}; --format onnx holds any towers.") from error
    model["text_cfg"] |= {"pad_id": tokenizer.pad_id}
    if not is_clips(tokenizer):
        # The name is not read where the directory has the files; the hub's own name replaces it there.
        model["text_cfg"] |= {"hf_tokenizer_name": "tokenizer"}
    scale, bias = float(module.objective.log_scale), subject.scale_and_bias[1]
    if bias is not None:
        model["init_logit_bias"] = bias
    picture = {"mean": list(vision.channel_means), "std": list(vision.channel_stds), "interpolation": "bicubic"}
    config = {"model_cfg": model, "preprocess_cfg": picture}
    parts = subject.parts
    names: tuple[TowerName, ...] = ("text", "vision")
    projections = {tower: required(parts[tower].projection) for tower in names}
    save_towers(text, vision, projections, scale, bias, config, directory)
    tokenizer.save(directory)
    path = directory / "tokenizer_config.json"
    limit = {"model_max_length": text.max_positions}
    path.write_text(json.dumps(json.loads(path.read_text()) | limit, indent=2) + "\n")


def config_of_towers(
    text: TextEncoder, vision: VisionEncoder, embedding_width: int, end: int, highest: int
) -> dict[str, Any]:
    """`model_cfg` of two towers.

    Args:
        text: The encoder of texts.
        vision: The encoder of pictures.
        embedding_width: E.
        end: Id of the token that ends a text, whose features are pooled.
        highest: Highest id that the tokenizer gives.

    Raises:
        UserError: If open_clip's CLIP has no place for something; the sentence says for what.
    """
    refuse_what_clip_lacks(text, vision)
    ours = {"text": text.config, "vision": vision.config}
    towers = {name: transformer_of(config) for name, config in ours.items()}
    towers["text"] |= {
        "context_length": text.max_positions,
        "vocab_size": text.vocabulary_size,
        "heads": text.config.resolved_heads,
        # open_clip finds the end by the highest id, or by the end's own.
        **({} if end == highest else {"pool_type": "eos", "eos_id": end}),
    }
    towers["vision"] |= {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "head_width": vision.width // vision.config.resolved_heads,
        "no_ln_pre": not vision.embedding_norm,
        "final_ln_after_pool": vision.norm_after_pooling,
        "pool_type": {ours: theirs for theirs, ours in POOLINGS.items()}[vision.pooling],
    }
    quick = vision.config.activation == "quick_gelu"
    return {
        "embed_dim": embedding_width,
        "quick_gelu": quick,
        "vision_cfg": towers["vision"],
        "text_cfg": towers["text"],
    }


def transformer_of(config: TransformerConfig) -> dict[str, Any]:
    """What a tower's config says of its Transformer."""
    ratio = config.resolved_feed_forward_width / config.width
    if int(config.width * ratio) != config.resolved_feed_forward_width:
        # open_clip rounds down: half a feature more makes that exact.
        ratio = (config.resolved_feed_forward_width + 0.5) / config.width
    settings: dict[str, Any] = {"layers": config.depth, "width": config.width, "mlp_ratio": ratio}
    if config.layer_scale is not None:
        # Only whether it is there matters: the gains are among the tensors.
        settings["ls_init_value"] = config.layer_scale or 1e-5
    if config.activation == "gelu_tanh":
        settings["act_kwargs"] = {"approximate": "tanh"}
    if config.norm_epsilon != NORM_EPSILON:
        settings["norm_kwargs"] = {"eps": config.norm_epsilon}
    return settings


@torch.no_grad()
def tensors_of_towers(
    text: TextEncoder, vision: VisionEncoder, projections: dict[TowerName, Tensor], log_scale: float, bias: float | None
) -> dict[str, Tensor]:
    """Two towers' tensors by open_clip's names of `CLIP`; those that it has and we need not are zeros.

    Args:
        text: The encoder of texts; its one segment, if it has any, goes into the positions.
        vision: The encoder of pictures; so does the bias of its patches.
        projections: (E, D) each.
        log_scale: Logarithm of what cosines are multiplied by.
        bias: What is added to them then; null for nothing.
    """
    tensors = {name: value.detach() for name, value in named_for_clip(text, "text").items()}
    if text.segments:
        tensors["positional_embedding"] = tensors["positional_embedding"] + tensors.pop("embeddings.segment.weight")[0]
    pictures = {name: value.detach() for name, value in named_for_clip(vision, "vision").items()}
    kernel = pictures["visual.conv1.weight"]
    pictures["visual.conv1.weight"] = kernel.unflatten(1, (vision.channels, vision.patch_size, vision.patch_size))
    pictures["visual.class_embedding"] = pictures["visual.class_embedding"].flatten()
    prefix, patches = vision.embeddings.positions_for(vision.embeddings.grid)
    if "visual.conv1.bias" in pictures:
        patches = patches + pictures.pop("visual.conv1.bias")
    if not vision.embeddings.positioned_prefix:
        prefix = torch.zeros_like(patches[:, :1])
    pictures["visual.positional_embedding"] = torch.cat([prefix, patches], dim=1)[0]
    tensors |= pictures
    for name in [name for name in tensors if name.endswith(LINEAR)]:
        tensors.setdefault(name.removesuffix("weight") + "bias", tensors[name].new_zeros(len(tensors[name])))
    tensors |= {PROJECTIONS[tower]: projection.T for tower, projection in projections.items()}
    tensors[LOG_SCALE] = torch.tensor(log_scale)
    return tensors if bias is None else tensors | {LOGIT_BIAS: torch.tensor(bias)}


def named_for_clip(encoder: nn.Module, tower: TowerName) -> dict[str, Tensor]:
    """An encoder's tensors by open_clip's names."""
    return {open_clip_name(name, tower): value for name, value in encoder.state_dict().items()}


def save_towers(
    text: TextEncoder,
    vision: VisionEncoder,
    projections: dict[TowerName, Tensor],
    log_scale: float,
    bias: float | None,
    config: dict[str, Any],
    directory: str | Path,
) -> None:
    """Write both towers as a directory that `open_clip.create_model("local-dir:DIRECTORY")` loads.

    Args:
        text: As for `tensors_of_towers`.
        vision: As for `tensors_of_towers`.
        projections: As for `tensors_of_towers`.
        log_scale: As for `tensors_of_towers`.
        bias: As for `tensors_of_towers`.
        config: `model_cfg` and `preprocess_cfg`.
        directory: Made if it does not exist.
    """
    tensors = tensors_of_towers(text, vision, projections, log_scale, bias)
    write_checkpoint(directory, tensors, config, (WEIGHTS[0], CONFIG))


def is_clips(tokenizer: TextTokenizer) -> bool:
    """Whether it is CLIP's own, which open_clip brings."""
    clips = BytePairTokenizer.of_open_clip()
    return clips is not None and clips.hash == tokenizer.hash


def loading(subject: Subject) -> Loading:
    """How the export is used."""
    code = (
        "import open_clip\n"
        'model, transform = open_clip.create_model_from_pretrained("local-dir:DIRECTORY")\n'
        'tokenizer = open_clip.get_tokenizer("local-dir:DIRECTORY")\n'
        'text_embeds = model.encode_text(tokenizer(["one text", "and another"]), normalize=True)\n'
        "# image_embeds = model.encode_image(transform(picture)[None], normalize=True)"
    )
    notes = [
        "open_clip repairs broken characters and resolves HTML's entities before it tokenises, and takes a text to end "
        "at the first token that means so; nothing here does."
    ]
    if subject.module.replays:
        notes.append(f"Left out: the heads of what was replayed on {' and '.join(subject.module.replays)}.")
    return Loading("CLIP", code, tuple(notes))


@torch.no_grad()
def check(subject: Subject, directory: Path) -> list[Difference]:
    """Load the export in open_clip, with its tokenizer and transform, and compare what it computes.

    Raises:
        ExportMismatchError: If it does not load whole, or its tokenizer gives other pieces.
    """
    import open_clip

    with quiet_transformers():
        try:
            model, transform = open_clip.create_model_from_pretrained(f"local-dir:{directory}")
        except RuntimeError as error:  # torch's, when tensors are missing or of another shape
            raise ExportMismatchError.unloadable("open_clip", error) from error
        tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    text, vision = subject.parts["text"], subject.parts["vision"]
    batch = clean_texts(text)
    ids = tokenizer(batch.first, text.encoder.max_positions)
    compare_pieces(batch, ids)
    pictures = seeded_pictures(vision)["images"]
    normalize = transform.transforms[-1]
    theirs = {
        "text": model.eval().encode_text(ids, normalize=True),
        "vision": model.encode_image(normalize(pictures), normalize=True),
    }
    ours = {
        "text": text.features(batch.inputs)[EMBEDDINGS["text"]],
        "vision": vision.features({"images": pictures})[EMBEDDINGS["vision"]],
    }
    named = f"{len(batch.first)} seeded texts and {len(pictures)} random pictures of {vision.encoder.image_size} pixels"
    differences = [compare(EMBEDDINGS[tower], ours[tower], theirs[tower], named) for tower in theirs]
    scale, bias = subject.scale_and_bias
    logits = scale * ours["vision"] @ ours["text"].T + (bias or 0.0)
    differences.append(compare("logits", logits, logits_of(model, theirs), named))
    return differences


def logits_of(model: Any, embeddings: dict[str, Tensor]) -> Tensor:
    """Scores (pictures, texts) as open_clip computes them."""
    bias = 0.0 if model.logit_bias is None else model.logit_bias
    return model.logit_scale.exp() * embeddings["vision"] @ embeddings["text"].T + bias


def clean_texts(subject: Subject) -> TextBatch:
    """The seeded texts that open_clip neither cleans up before it tokenises nor takes to end in their midst."""
    from open_clip.tokenizer import basic_clean

    (batch,), tokenizer = seeded_texts(subject), required(subject.tokenizer)
    texts = [text for text in batch.first if basic_clean(text) == text.strip()]
    texts = [text for text in texts if tokenizer.sep_id not in tokenizer.encode(text)]
    return text_batch(tokenizer, [(text, "") for text in texts], pairs=False)


def compare_pieces(batch: TextBatch, ids: Tensor) -> None:
    """See that open_clip makes the same pieces of texts.

    Raises:
        ExportMismatchError: If it does not.
    """
    real = batch.inputs["attention_mask"].bool()
    ours, theirs = batch.inputs["input_ids"], ids[:, : real.shape[1]]
    if ours.shape != theirs.shape or not torch.equal(ours[real], theirs[real]):
        raise ExportMismatchError(
            "The tokenizer that open_clip loads gives other input_ids than the checkpoint's: nothing was exported."
        )
