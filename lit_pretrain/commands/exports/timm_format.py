"""Pictures in timm's format: a directory that `timm.create_model("local-dir:DIR", pretrained=True)` loads."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file

from lit_pretrain.commands.exports.card import Loading
from lit_pretrain.commands.exports.check import (
    Difference,
    ExportMismatchError,
    compare,
    named_version,
    seeded_pictures,
)
from lit_pretrain.commands.exports.subject import EMBEDDINGS, Subject
from lit_pretrain.errors import UserError
from lit_pretrain.required import required
from lit_pretrain.weights.files import write_checkpoint

PACKAGES = ("timm",)


def library() -> str:
    """What checks the export."""
    return named_version("timm")


def write(subject: Subject, directory: Path) -> None:
    """Write weights and config, with the classifier and its labels after fine-tuning.

    Raises:
        UserError: If timm has no place for something of the encoder; the sentence says for what.
    """
    try:
        subject.encoder.save_pretrained(directory)
    except UserError as error:
        raise UserError(f"{str(error).rpartition(':')[0]}; --format onnx holds any encoder.") from error
    if not subject.has_classifier and subject.projection is None:
        return
    if subject.projection is not None:
        weight, bias, facts = subject.projection, torch.zeros(len(subject.projection)), {}
    else:
        weight, bias = subject.classifier()
        facts = {"label_names": subject.labels, "task": required(subject.facts).task}
    tensors = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    count = len(weight)
    config |= {"num_classes": count} | facts
    config["model_args"]["num_classes"] = config["pretrained_cfg"]["num_classes"] = count
    tensors |= {"head.weight": weight, "head.bias": bias}
    write_checkpoint(directory, tensors, config)


def loading(subject: Subject) -> Loading:
    """How the export is used."""
    code = (
        "import timm\n"
        'model = timm.create_model("local-dir:DIRECTORY", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    )
    return Loading("VisionTransformer", code, tuple(notes(subject)))


def notes(subject: Subject) -> list[str]:
    """What does not show in the code."""
    if subject.projection is not None:
        sentences = [
            "The head is the projection to where texts and pictures meet: image_embeds = normalize(model(images)); "
            "vit.forward_head(tokens, pre_logits=True) pools without it."
        ]
    elif not subject.has_classifier:
        sentences = ["There is no classifier: model(images) gives the pooled embedding; num_classes=N adds a new one."]
    else:
        outputs = {
            "single_label": "logits, softmax makes probabilities of them; the names are",
            "multi_label": "logits, sigmoid makes probabilities of them; the names are",
            "regression": "the number itself; its name is",
        }
        sentences = [f"model(images) gives {outputs[required(subject.facts).task]} in config.json's label_names."]
    if subject.objectives:
        heads = " and of ".join(subject.objective_names)
        sentences.append(f"Left out, for timm has no place for it: the head of {heads}.")
    return sentences


@torch.no_grad()
def check(subject: Subject, directory: Path) -> list[Difference]:
    """Load the export in timm, prepare pictures as its config says, and compare what it computes.

    Raises:
        ExportMismatchError: If it does not load whole.
    """
    import timm

    try:
        model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    except RuntimeError as error:  # torch's, when tensors are missing or of another shape
        raise ExportMismatchError.unloadable("timm", error) from error
    data = timm.data.resolve_model_data_config(model)
    inputs = seeded_pictures(subject)
    mean, std = (torch.tensor(data[name]).view(-1, 1, 1) for name in ("mean", "std"))
    vit: Any = model
    tokens = vit.forward_features((inputs["images"] - mean) / std)
    theirs = {"token_features": tokens, "pooled_embedding": vit.forward_head(tokens, pre_logits=True)}
    if subject.projection is not None:
        theirs[EMBEDDINGS["vision"]] = functional.normalize(vit.forward_head(tokens), dim=-1)
    elif subject.has_classifier:
        theirs[subject.answer] = vit.forward_head(tokens)
    ours = subject.features(inputs)
    named = f"{len(inputs['images'])} random pictures of {subject.encoder.image_size} pixels"
    return [compare(name, ours[name], theirs[name], named) for name in theirs]
