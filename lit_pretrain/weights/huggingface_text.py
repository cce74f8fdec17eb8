"""Which of transformers' formats of text encoders a directory is in, and in which one an encoder goes out."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_pretrain.weights import huggingface_bert, huggingface_modernbert
from lit_pretrain.weights.public import PublicWeights

# What `load_weights` reads, by transformers' model_type.
TYPES = (*huggingface_bert.FAMILIES, huggingface_modernbert.MODEL_TYPE)


def load_weights(path_or_hub_name: str | Path) -> PublicWeights:
    """Read a BERT, a RoBERTa, a DistilBERT or a ModernBERT of transformers'; see the readers.

    Raises:
        UserError: If it cannot be had or read, or is none of these.
    """
    directory = huggingface_bert.find_directory(path_or_hub_name)
    config = huggingface_bert.read_json(directory / "config.json")
    modern = config.get("model_type") == huggingface_modernbert.MODEL_TYPE
    return (huggingface_modernbert if modern else huggingface_bert).load_weights(path_or_hub_name)


def is_modern(settings: dict[str, Any]) -> bool:
    """Whether an encoder goes out as a ModernBERT: if its feed-forward has a gate, which BERT's never has."""
    return settings["transformer"]["activation"] in huggingface_modernbert.ACTIVATIONS.values()


def refuse_what_is_lacking(settings: dict[str, Any]) -> None:
    """Raise a `UserError` naming whatever of an encoder the format that it would go out in has no place for."""
    if is_modern(settings):
        huggingface_modernbert.refuse_what_modernbert_lacks(settings)
    else:
        huggingface_bert.refuse_what_bert_lacks(settings)


def save_weights(
    settings: dict[str, Any], tensors: dict[str, Tensor], directory: str | Path, heads: tuple[nn.Module, ...] = ()
) -> None:
    """Write an encoder (and pretraining heads) as a directory that `transformers` loads; see the writers.

    Raises:
        UserError: If the encoder has something that the format cannot hold; the sentence says what.
    """
    writer = huggingface_modernbert if is_modern(settings) else huggingface_bert
    writer.save_weights(settings, tensors, directory, heads)
