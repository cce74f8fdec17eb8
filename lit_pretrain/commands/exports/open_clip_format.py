"""Both towers of a contrastive pretraining in open_clip's format: a directory that `open_clip` loads as a CLIP."""

import json
from pathlib import Path

import torch
from torch import Tensor

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
from lit_pretrain.data.text.byte_pair_tokenizer import BytePairTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.weights.open_clip import save_towers
from lit_pretrain.weights.open_clip_settings import config_of_towers

PACKAGES = ("open_clip", "transformers")


def library() -> str:
    """What checks the export."""
    return f"open_clip {named_version('open_clip_torch').rpartition(' ')[2]}"


def write(subject: Subject, directory: Path) -> None:
    """Write weights, config and tokenizer.

    Raises:
        UserError: If open_clip has no place for something of a tower; the sentence says for what.
    """
    module, tokenizer = subject.module, subject.tokenizer
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
    projections = {tower: part.projection for tower, part in subject.parts.items()}
    save_towers(text, vision, projections, scale, bias, config, directory)
    tokenizer.save(directory)
    path = directory / "tokenizer_config.json"
    limit = {"model_max_length": text.max_positions}
    path.write_text(json.dumps(json.loads(path.read_text()) | limit, indent=2) + "\n")


def is_clips(tokenizer: object) -> bool:
    """Whether it is CLIP's own, which open_clip brings."""
    known = BytePairTokenizer.of_open_clip()
    return known is not None and known.hash == tokenizer.hash


def loading(subject: Subject) -> Loading:
    """How the export is used."""
    code = (
        "import open_clip\n"
        'model, transform = open_clip.create_model_from_pretrained("local-dir:DIRECTORY")\n'
        'tokenizer = open_clip.get_tokenizer("local-dir:DIRECTORY")\n'
        'text_embeds = model.encode_text(tokenizer(["one text", "and another"]), normalize=True)\n'
        "# image_embeds = model.encode_image(transform(picture)[None], normalize=True)"
    )
    told = [
        "open_clip repairs broken characters and resolves HTML's entities before it tokenises, and takes a text to end "
        "at the first token that means so; nothing here does."
    ]
    if subject.module.replays:
        told.append(f"Left out: the heads of what was replayed on {' and '.join(subject.module.replays)}.")
    return Loading("CLIP", code, tuple(told))


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
            reason = " ".join(str(error).split())[:200]
            raise ExportMismatchError(f"open_clip does not load the export ({reason}).") from error
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
    found = [compare(EMBEDDINGS[tower], ours[tower], theirs[tower], named) for tower in theirs]
    scale, bias = subject.scale_and_bias
    logits = scale * ours["vision"] @ ours["text"].T + (bias or 0.0)
    found.append(compare("logits", logits, logits_of(model, theirs), named))
    return found


def logits_of(model: torch.nn.Module, embeddings: dict[str, Tensor]) -> Tensor:
    """Scores (pictures, texts) as open_clip computes them."""
    bias = 0.0 if model.logit_bias is None else model.logit_bias
    return model.logit_scale.exp() * embeddings["vision"] @ embeddings["text"].T + bias


def clean_texts(subject: Subject) -> TextBatch:
    """The seeded texts that open_clip neither cleans up before it tokenises nor takes to end in their midst."""
    from open_clip.tokenizer import basic_clean

    (batch,), tokenizer = seeded_texts(subject), subject.tokenizer
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
