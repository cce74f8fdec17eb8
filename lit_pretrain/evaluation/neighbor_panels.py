"""Queries and their neighbours for a person to look at: a panel of pictures, or a table of texts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lit_pretrain.evaluation.labelled_data import Part
from lit_pretrain.evaluation.neighbors import Found, Query, alike, label_name
from lit_pretrain.evaluation.preparation import EvaluationData
from lit_pretrain.objectives.picture_panels import Caption, grid

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_CHARACTERS = 160


def picture_panel(queries: Sequence[Query], neighbors: Found, data: EvaluationData) -> "Image":
    """A row for each query: itself, then its neighbours with their cosines, green where the label is the query's.

    Args:
        queries: With pictures.
        neighbors: Of the same queries.
        data: The data.
    """
    train = data.train
    pictures = pictures_at(train, neighbors.places)
    rows, captions = [], []
    for row, query in enumerate(queries):
        name = label_name(query.label, data)
        rows.append([query.batch["images"][0] / 255, *pictures[row]])
        captions.append([Caption(query.name if name is None else f"{query.name}\n{name}")])
        for cosine, place in zip(neighbors.cosines[row].tolist(), neighbors.places[row].tolist(), strict=True):
            label = None if train.labels is None else label_name(train.labels[place], data)
            text = f"{cosine:.4f}" if label is None else f"{cosine:.4f}\n{label}"
            captions[-1].append(Caption(text, alike(name, label)))
    return grid(rows, captions, ["query", *(str(rank + 1) for rank in range(neighbors.places.shape[1]))])


def pictures_at(train: Part, places: Tensor) -> list[list[Tensor]]:
    """Pictures (3, S, S) in [0, 1] at places (Q, K), each read once."""
    needed, inverse = numpy.unique(places.numpy(), return_inverse=True)
    images = [image / 255 for batch in train.at(needed).batches() for image in batch["images"]]
    return [[images[cell] for cell in row] for row in inverse.reshape(places.shape)]


def text_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of one layer as a table, texts cut to what can be read at a glance."""
    first = rows[0]
    table = Table(
        title=f"Nearest training texts by {first['checkpoint']}, block {first['layer']}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    headings: dict[str, JustifyMethod] = {"query": "left", "rank": "right", "cosine": "right", "label": "left"}
    for heading, justify in headings.items():
        table.add_column(heading, justify=justify, overflow="fold")
    table.add_column("text", overflow="fold")
    for row in rows:
        named = row["query"] if row["query_label"] is None else f"{row['query']} ({row['query_label']})"
        style = {None: "", True: "green", False: "red"}[alike(row["query_label"], row["label"])]
        label = "" if row["label"] is None else str(row["label"])
        table.add_row(
            Text(shortened(named)) if row["rank"] == 1 else "",
            str(row["rank"]),
            f"{row['cosine']:.4f}",
            Text(label, style=style),
            Text(shortened(row["text"])),
        )
    return table


def shortened(text: str) -> str:
    """A text on one line, cut."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
