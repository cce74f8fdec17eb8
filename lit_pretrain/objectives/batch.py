"""What a batch holds, by layout, and what is known of it before it is read.

Batches are clean: objectives corrupt them. Other data modules may add fields of their own.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

# Tensors by name, and `padded`, a plain bool.
Batch = dict[str, Any]


class TextBatch(TypedDict, total=False):
    """B sequences of L tokens: [CLS] A [SEP], or [CLS] A [SEP] B [SEP] of sentence pairs, then padding.

    Attributes:
        input_ids: (B, L) integers, clean word pieces.
        attention_mask: (B, L) booleans, false at padding.
        token_type_ids: (B, L) integers: 1 at B and its [SEP], 0 elsewhere; all 0 of segments.
        sample_id: (B,) integers, the sample's number in its epoch.
        padded: Whether there is any padding, a plain bool that is known without waiting for the device; a batch that
            does not say may have some.
        documents: (B, L) integers, the number of the text in its row that a token belongs to, -1 of padding; only if
            `data.packing` puts several into a row.
        next_sentence_label: (B,) integers, 1 where B is random; of the layout `sentence_pairs` alone, and not if
            `random_next` is `never`, by which B follows A always.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    sample_id: Tensor
    padded: bool
    documents: Tensor
    next_sentence_label: Tensor


class PictureBatch(TypedDict, total=False):
    """B pictures.

    Attributes:
        images: (B, 3, S, S) floats in [0, 1], S being the encoder's image size, cropped, flipped and recoloured; uint8
            of their stored size as the loader gives them.
        stored_images: The latter, kept beside the former for objectives that draw views of their own.
        sample_id: (B,) integers, the picture's number in its data.
        label: (B,) integers, the class; only if `data.label_column` is set. Pretraining is not to learn from it.
    """

    images: Tensor
    stored_images: Tensor
    sample_id: Tensor
    label: Tensor


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data before any training, for `Objective.check_data`.

    Attributes:
        fields: Names of what a batch holds.
        layout: `sentence_pairs`, `segments` or `pictures`; empty where a data module does not say.
        sequence_length: Tokens of a text's sequence, special tokens included; null of pictures.
        stored_size: Pixels of a side of the pictures as they are stored; null of texts.
        grey_share: Share of the pictures without any colour.
    """

    fields: tuple[str, ...] = ()
    layout: str = ""
    sequence_length: int | None = None
    stored_size: int | None = None
    grey_share: float = 0.0
