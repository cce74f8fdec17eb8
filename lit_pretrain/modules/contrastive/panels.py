"""A search for a person to look at: pictures found for captions, and captions found for pictures."""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_pretrain.measures.retrieval import distinct
from lit_pretrain.modules.contrastive.validation import Gallery
from lit_pretrain.objectives.picture_panels import Caption, grid

if TYPE_CHECKING:
    from PIL.Image import Image

FOUND = 5
LINE = 18


def search_panels(
    gallery: Gallery,
    pixels_of: Callable[[list[int]], Tensor],
    words_of: Callable[[list[int]], list[str]],
    count: int = 8,
) -> "dict[str, Image]":
    """Two panels, a query a row: itself, and what is nearest, green where it belongs to it.

    Args:
        gallery: Embedded pictures and captions.
        pixels_of: Pictures (N, 3, S, S) uint8 of their `picture_ids`.
        words_of: Texts of captions of their `text_ids`.
        count: Queries of a panel, at even distances in the data.
    """
    places = gallery.places
    firsts, _ = distinct(places)
    wordings, words = distinct(gallery.text_keys)
    query_places = torch.arange(min(count, len(gallery.pictures))) * len(gallery.pictures) // max(1, count)
    if len(gallery.pictures) < count:
        query_places = torch.arange(len(gallery.pictures))
    borne = set(zip(words.tolist(), places.tolist(), strict=True))

    queries = firsts[query_places]
    scores, nearest = (gallery.texts[queries] @ gallery.pictures.T).topk(min(FOUND, len(gallery.pictures)))
    pictures = pixels_of(gallery.picture_ids[torch.cat([nearest.flatten(), query_places])].tolist()) / 255
    found_pictures, asked_pictures = (
        pictures[: nearest.numel()].unflatten(0, nearest.shape),
        pictures[nearest.numel() :],
    )
    names = words_of(gallery.text_ids[queries].tolist())
    text_panel = grid(
        [[None, *row] for row in found_pictures],
        [
            [
                Caption(wrapped(name)),
                *(
                    Caption(f"{score:.3f}", (int(words[query]), place) in borne)
                    for score, place in zip(row_scores, row, strict=True)
                ),
            ]
            for name, query, row_scores, row in zip(names, queries, scores.tolist(), nearest.tolist(), strict=True)
        ],
        ["query", *(str(rank + 1) for rank in range(nearest.shape[1]))],
    )

    scores, nearest = (gallery.pictures[query_places] @ gallery.texts[wordings].T).topk(min(FOUND, len(wordings)))
    names = words_of(gallery.text_ids[wordings[nearest.flatten()]].tolist())
    captions = iter(names)
    picture_panel = grid(
        [[picture, *([None] * nearest.shape[1])] for picture in asked_pictures],
        [
            [
                None,
                *(
                    Caption(f"{wrapped(next(captions))}\n{score:.3f}", (word, place) in borne)
                    for score, word in zip(row_scores, row, strict=True)
                ),
            ]
            for place, row_scores, row in zip(query_places.tolist(), scores.tolist(), nearest.tolist(), strict=True)
        ],
        ["query", *(str(rank + 1) for rank in range(nearest.shape[1]))],
    )
    return {"text_to_picture": text_panel, "picture_to_text": picture_panel}


def wrapped(text: str) -> str:
    """A text on at most four short lines."""
    return "\n".join(textwrap.wrap(text, LINE, max_lines=4, placeholder=" …"))
