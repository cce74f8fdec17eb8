"""What a search looks for: texts and pictures, embedded; mistakes in them are told before anything is searched."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_pretrain.data.images.pictures import EncodedPicture, Square, UnreadablePictureError, decode, opened, to_rgb
from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.pair_embedder import PairEmbedder
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        name: The text, or the picture's file.
        embedding: (E,) of length 1.
        picture: The picture, if it is one.
    """

    name: str
    embedding: Tensor
    picture: "Image | None" = None


def text_queries(embedder: PairEmbedder, texts: Sequence[str]) -> tuple[list[Query], list[str]]:
    """Embed texts to look for, and say what was cut or is unknown.

    Raises:
        UserError: If one is empty.
    """
    if not texts:
        return [], []
    encoded = embedder.encode(texts)
    unknown, notes = required(embedder.module.tokenizer).unk_id, []
    starts = [0, *encoded.ends.tolist()]
    for text, start, end in zip(texts, starts, starts[1:], strict=False):
        if start == end:
            raise UserError(f"The query '{text}' has no text: give --query some words.")
        if unknown is not None and all(piece == unknown for piece in encoded.tokens[start:end].tolist()):
            notes.append(f"The tokenizer knows nothing of the query '{text}': what is found is as good as drawn.")
    if encoded.truncated:
        notes.append(cut_note(encoded.truncated, len(texts), "queries", embedder.maximum_length))
    embedded = embedder.embed_texts(encoded)
    return [Query(text, embedding) for text, embedding in zip(texts, embedded, strict=True)], notes


def picture_queries(embedder: PairEmbedder, files: Sequence[str]) -> list[Query]:
    """Embed pictures to look for.

    Raises:
        UserError: If one cannot be read.
    """
    queries = []
    for file in files:
        encoded = EncodedPicture(0, file, str(Path(file).expanduser()))
        try:
            pixels = torch.tensor(decode(encoded, Square(embedder.stored_size)))
            picture = to_rgb(opened(encoded))
        except UnreadablePictureError as error:
            raise UserError(f"The query {error}: give --query-image a picture file.") from error
        queries.append(Query(file, embedder.embed_pictures([pixels[None]])[0], picture))
    return queries


def cut_note(cut: int, of: int, content: str, maximum_length: int) -> str:
    """What is said of texts that are too long."""
    return f"{cut} of {of} {content} are longer than {maximum_length} tokens: only their beginnings are read."
