"""Pictures and texts that a query is looked for among: embedded now, or read from what `predict` has embedded."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import torch
from torch import Tensor

from lit_pretrain.data.disk_cache import default_cache_directory
from lit_pretrain.data.file_reader import ending
from lit_pretrain.data.images.decoding import BLOCK, decode_blocks
from lit_pretrain.data.images.image_source import FOLDER, EncodedPictures, ImageSource, located, open_pictures
from lit_pretrain.data.images.pictures import EncodedPicture, Square, UnreadablePictureError, opened, to_rgb
from lit_pretrain.data.labelled.labelled_source import LabelledTextSource
from lit_pretrain.data.pairs.pair_source import CAPTION, open_captions
from lit_pretrain.data.sources import check_column, everything_in, expand, open_source
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.evaluation.pair_embedder import PairEmbedder
from lit_pretrain.evaluation.progress_bar import with_bar
from lit_pretrain.evaluation.search.queries import Query, cut_note
from lit_pretrain.measures.finite import check_finite
from lit_pretrain.modules.contrastive.weights_hash import METADATA, weights_hash

if TYPE_CHECKING:
    from PIL.Image import Image

# Unreadable pictures that are named.
NAMED = 3


@dataclass(frozen=True)
class Collection:
    """What is searched.

    Attributes:
        source: What a person knows it by.
        names: Of each picture, or the texts themselves.
        embeddings: (N, E) of length 1.
        are_pictures: Whether it holds pictures.
        show: A picture by its place, or null if there is none to show.
        notes: What a person should know of it, such as pictures that were left out.
    """

    source: str
    names: list[str]
    embeddings: Tensor
    are_pictures: bool
    show: "Callable[[int], Image | None]" = lambda place: None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of pictures or texts."""
        return len(self.names)

    @property
    def told(self) -> str:
        """It in a few words."""
        return f"{len(self):,} {'pictures' if self.are_pictures else 'texts'} of {self.source}"


@dataclass(frozen=True)
class Match:
    """What was found.

    Attributes:
        place: In the collection.
        score: Cosine of the angle to the query.
    """

    place: int
    score: float


def find_matches(query: Query, collection: Collection, count: int) -> list[Match]:
    """The nearest of a collection, the nearest first."""
    scores, places = (collection.embeddings @ query.embedding).topk(min(count, len(collection)))
    return [Match(place, score) for place, score in zip(places.tolist(), scores.tolist(), strict=True)]


# -- pictures


def picture_files(place: str) -> list[str]:
    """Files of a folder and the folders below it, of a pattern, or one file.

    Raises:
        UserError: If there is no picture.
    """
    path = Path(place).expanduser()
    present = everything_in([str(path)]) if path.is_dir() else expand(place)
    if not present and not path.is_dir():
        siblings = [str(sibling) for sibling in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(f"There are no pictures at {place}{nearest(place, siblings)}: give --images a folder of them.")
    kinds = ImageSource.builders
    files = sorted(file for file in present if kinds.get(ending(file)) == FOLDER)
    if not files:
        endings = ", ".join(sorted({Path(file).suffix or "files without an ending" for file in present})) or "nothing"
        raise UserError(
            f"There is no picture in {place}, which holds {endings}: give --images a folder of files such as .jpg and "
            ".png, or embed a table by predict and give --embeddings."
        )
    return files


def collect_folder(embedder: PairEmbedder, place: str) -> Collection:
    """Embed the pictures of a folder.

    Raises:
        UserError: If there is no picture, or none can be read.
    """
    files = picture_files(place)
    pictures = EncodedPictures(datasets.Dataset.from_dict({"image": files}), "image", None, place, "")
    return collect_pictures(embedder, pictures, files)


def collect_source(embedder: PairEmbedder, source: ImageSource, caption_columns: list[str] | None) -> Collection:
    """Embed the pictures of a training's source, named by their first captions.

    Raises:
        UserError: If it cannot be read.
    """
    directory = default_cache_directory() / "huggingface"
    pictures, captions = open_pictures(source, directory), open_captions(source, caption_columns, directory)
    names = [f"row {row}" for row in range(len(pictures))]
    for row, text in zip(reversed(captions.rows), reversed(captions.data[CAPTION]), strict=True):
        names[row] = f"row {row}: {text or ''}"
    return collect_pictures(embedder, pictures, names)


def collect_pictures(embedder: PairEmbedder, pictures: EncodedPictures, names: Sequence[str]) -> Collection:
    """Embed pictures; those that cannot be read are named, counted and left out.

    Args:
        embedder: Both towers.
        pictures: Where they come from.
        names: Of its rows.

    Raises:
        UserError: If none can be read.
    """
    rows: list[int] = []
    unreadable: list[str] = []

    def images() -> Iterator[Tensor]:
        blocks = decode_blocks(pictures, range(len(pictures)), Square(embedder.stored_size))
        for block in with_bar(blocks, math.ceil(len(pictures) / BLOCK), "pictures"):
            rows.extend(block.rows)
            unreadable.extend(block.unreadable)
            yield torch.from_numpy(block.images)

    embeddings = embedder.embed_pictures(images())
    if not rows:
        raise UserError(f"None of the {len(pictures)} pictures of {pictures.source} can be read ({unreadable[0]}).")

    def show(place: int) -> "Image":
        return to_rgb(opened(pictures.read([rows[place]])[0]))

    more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
    note = f"{len(unreadable)} of {len(pictures)} pictures cannot be read and are left out: "
    notes = (note + "; ".join(unreadable[:NAMED]) + more + ".",) if unreadable else ()
    return Collection(pictures.source, [names[row] for row in rows], embeddings, True, show, notes)


# -- texts


class CaptionSource(LabelledTextSource):
    """A file of texts, as `search` names it."""

    def setting(self, name: str) -> str:
        """The one option that names it."""
        return "--captions"


def collect_captions(embedder: PairEmbedder, file: str, column: str | None) -> Collection:
    """Embed the lines of a text file, or the texts of a table's column; empty ones are left out and counted.

    Raises:
        UserError: If the file cannot be read, it is not clear which column holds the texts, or there is no text.
    """
    if not Path(file).expanduser().exists():
        siblings = [str(sibling) for sibling in Path(file).parent.glob("*")] if Path(file).parent.is_dir() else []
        raise UserError(f"There is no file {file}{nearest(file, siblings)}: give --captions a file of texts.")
    data = open_source(CaptionSource(file), default_cache_directory() / "huggingface").data
    columns = [
        name for name, feature in data.features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    if column is not None:
        check_column(data, column, file, "--column")
        if column not in columns:
            raise UserError(f"The column '{column}' of {file} holds no texts: give --column one of {listed(columns)}.")
    elif len(columns) != 1:
        raise UserError(f"Which column of {file} holds the captions is not clear: give --column {listed(columns)}.")
    captions = [text or "" for text in data[column or columns[0]]]
    texts = [text for text in captions if text.strip()]
    if not texts:
        raise UserError(f"All {len(captions)} texts of {file} are empty: give --captions a file of texts.")
    encoded = embedder.encode(texts)
    notes: tuple[str, ...] = (
        (f"{len(captions) - len(texts)} of {len(captions)} texts are empty and left out.",)
        if len(texts) < len(captions)
        else ()
    )
    if encoded.truncated:
        notes += (cut_note(encoded.truncated, len(texts), "texts", embedder.maximum_length),)
    return Collection(file, texts, embedder.embed_texts(encoded), False, notes=notes)


def listed(columns: Sequence[str]) -> str:
    """Columns to choose from."""
    return " or ".join(columns) if columns else "the name of a column of texts, of which it has none"


# -- embedded before


def collect_embedded(embedder: PairEmbedder, file: str) -> Collection:
    """What `predict` has embedded with the same weights.

    Raises:
        UserError: If it is no such file, or was embedded by another checkpoint.
    """
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(Path(file).expanduser())
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{file} cannot be read as parquet ({str(error).splitlines()[0][:200]}): give --embeddings a file that "
            "predict has written."
        ) from error
    metadata = (table.schema.metadata or {}).get(METADATA.encode())
    if metadata is None or "embedding" not in table.column_names:
        raise UserError(
            f"{file} holds no embeddings of ContrastivePretraining: give --embeddings what predict has written."
        )
    facts, ours = json.loads(metadata), weights_hash(embedder.module.towers)
    if facts["weights"] != ours:
        raise UserError(
            f"{file} was embedded by {facts['checkpoint'] or 'another model'}, whose weights ({facts['weights']}) are "
            f"not this checkpoint's ({ours}): embed it again by predict, or search with that one."
        )
    rows = table.column("embedding").combine_chunks()
    embeddings = torch.tensor(rows.flatten().to_numpy(zero_copy_only=False)).view(len(rows), -1).float()
    are_pictures = "text" not in table.column_names
    ids = table.column("sample_id").to_pylist()
    column = "image" if are_pictures else "text"
    contents = table.column(column).to_pylist() if column in table.column_names else [""] * len(ids)
    names = [name or f"row {row}" for name, row in zip(contents, ids, strict=True)]
    root = Path(facts["directory"])

    def show(place: int) -> "Image | None":
        path = located(contents[place], root) if contents[place] else None
        try:
            return to_rgb(opened(EncodedPicture(place, names[place], path)))
        except UnreadablePictureError:
            return None

    return Collection(file, names, check_finite(embeddings, f"embeddings in {file}"), are_pictures, show)
