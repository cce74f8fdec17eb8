"""Find pictures for a text, texts for a picture, or pictures like a picture, by a contrastive pretraining."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from lit_pretrain.evaluation.pair_embedder import PairEmbedder
    from lit_pretrain.evaluation.search.candidates import Collection, Match
    from lit_pretrain.evaluation.search.queries import Query

CHECKPOINT_HELP = (
    "last, a run's name or id, RUN:best, or a checkpoint's path; or a CLIP of open_clip's: a directory, a file, or "
    "owner/name of the hub"
)
EPILOG = """Scores are cosines of the angle between embeddings; they compare within one checkpoint only. For many
searches, and for tables and data sets of the hub, embed once and search that:

  python -m lit_pretrain predict --ckpt_path RUN --data.path FOLDER
  python -m lit_pretrain search --ckpt RUN --embeddings FILE.parquet --query "a red heart" """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--ckpt", required=True, metavar="CKPT", help=CHECKPOINT_HELP)
    add("--images", metavar="DIR", help="search the pictures of a folder (default: those that the run trained on)")
    add("--captions", metavar="FILE", help="search the lines of a text file, or a column of a csv or parquet file")
    add("--column", metavar="NAME", help="the column of --captions, if there are several of texts")
    add("--embeddings", metavar="FILE", help="search what predict has embedded, without embedding it again")
    add("--query", action="append", default=[], metavar="TEXT", help="what to look for; may be given several times")
    add("--query-image", action="append", default=[], metavar="FILE", help="a picture to look for; likewise")
    add("--top", type=int, default=10, metavar="N", help="how many are shown (10)")
    add("--sheet", metavar="FILE", help="draw what is found as a picture, such as sheet.png")
    add("--json", metavar="FILE", help="write the rows as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Print what is nearest to each query."""
    check(arguments)
    import torch

    from lit_pretrain.commands.output import write_json
    from lit_pretrain.evaluation.pair_embedder import PairEmbedder, open_pair
    from lit_pretrain.evaluation.preparation import say
    from lit_pretrain.evaluation.search.candidates import find_matches
    from lit_pretrain.evaluation.search.queries import picture_queries, text_queries
    from lit_pretrain.evaluation.search.sheet import search_sheet
    from lit_pretrain.precision import hardware_bf16
    from lit_pretrain.quiet import quieten
    from lit_pretrain.tracking.paths import shown_path

    quieten()
    module, checkpoint = open_pair(arguments.ckpt)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = PairEmbedder(module.to(device), hardware_bf16())
    # What is asked for first: a mistake in it is told before a long embedding.
    queries, notes = text_queries(embedder, arguments.query)
    queries += picture_queries(embedder, arguments.query_image)
    collection = collect(arguments, embedder, checkpoint)
    for note in (*notes, *collection.notes):
        say(note)
    matches = [find_matches(query, collection, arguments.top) for query in queries]
    show(queries, matches, collection)
    if arguments.sheet:
        save_picture(search_sheet(queries, matches, collection), Path(arguments.sheet))
        print(f"The sheet is {shown_path(arguments.sheet)}")
    if arguments.json:
        rows = rows_of(queries, matches, collection, str(checkpoint))
        write_json(arguments.json, rows)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything slow.

    Raises:
        UserError: In one sentence.
    """
    from lit_pretrain.commands.output import check_writable

    options = [name for name in ("images", "captions", "embeddings") if getattr(arguments, name)]
    if len(options) > 1:
        raise UserError(f"--{options[0]} and --{options[1]} are both given: search one of them at a time.")
    if arguments.column and not arguments.captions:
        raise UserError("--column is a column of --captions: give that file too.")
    if not arguments.query and not arguments.query_image:
        raise UserError("Nothing says what to look for: give --query TEXT, or --query-image FILE.")
    for text in arguments.query:
        if not text.strip():
            raise UserError("A --query is empty: give it some words.")
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}: give at least 1.")
    if arguments.sheet:
        from PIL import Image

        sheet = Path(arguments.sheet)
        if Image.registered_extensions().get(sheet.suffix.lower()) not in Image.SAVE:
            raise UserError(f"--sheet is {sheet}, which is no name of a picture: give one such as sheet.png.")
        if not sheet.absolute().parent.is_dir():
            raise UserError(f"There is no directory {sheet.parent} for --sheet: make it, or give another.")
    if arguments.json:
        check_writable(Path(arguments.json))


def collect(arguments: argparse.Namespace, embedder: PairEmbedder, checkpoint: Path) -> Collection:
    """What is searched, embedded.

    Raises:
        UserError: If it cannot be had.
    """
    from lit_pretrain.evaluation.preparation import say
    from lit_pretrain.evaluation.search.candidates import (
        collect_captions,
        collect_embedded,
        collect_folder,
        collect_source,
    )

    if arguments.embeddings:
        return collect_embedded(embedder, arguments.embeddings)
    if arguments.captions:
        say(f"Embedding the texts of {arguments.captions} ...")
        return collect_captions(embedder, arguments.captions, arguments.column)
    if arguments.images:
        say(f"Embedding the pictures of {arguments.images} ...")
        return collect_folder(embedder, arguments.images)
    data = own_data(checkpoint)
    say("Embedding the pictures that the run was trained on (--images DIR searches others) ...")
    return collect_source(embedder, data.source, data.caption_columns)


def own_data(checkpoint: Path) -> Any:
    """The pairs that a checkpoint's run was trained on.

    Raises:
        UserError: If they are not known.
    """
    from lit_pretrain.cli.evaluation_data import make_data
    from lit_pretrain.tracking.find import run_directory_of_checkpoint

    directory = run_directory_of_checkpoint(checkpoint)
    config = directory / "config.yaml" if directory is not None else None
    if config is None or not config.is_file():
        raise UserError(
            f"{checkpoint} has no config.yaml of its run beside it, which would say what was trained on: give --images "
            "DIR, --captions FILE or --embeddings FILE."
        )
    return make_data(str(config), [], "PairDataModule")


def show(queries: list[Query], matches_by_query: list[list[Match]], collection: Collection) -> None:
    """Print rank, score and name of what was found, a line each that can be copied."""
    for query, matches in zip(queries, matches_by_query, strict=True):
        title = query.name if query.picture is not None else f'"{query.name}"'
        print(f"\n{title} among {collection.told}:")
        for rank, match in enumerate(matches, start=1):
            print(f"{rank:>4}  {match.score:.3f}  {collection.names[match.place]}")
    print(flush=True)


def rows_of(
    queries: list[Query], matches_by_query: list[list[Match]], collection: Collection, checkpoint: str
) -> list[dict[str, Any]]:
    """A row for every match."""
    return [
        {
            "checkpoint": checkpoint,
            "query": query.name,
            "query_kind": "text" if query.picture is None else "picture",
            "rank": rank,
            "score": match.score,
            "picture" if collection.are_pictures else "text": collection.names[match.place],
        }
        for query, matches in zip(queries, matches_by_query, strict=True)
        for rank, match in enumerate(matches, start=1)
    ]


def save_picture(picture: Any, path: Path) -> None:
    """Write a picture whole or not at all.

    Raises:
        UserError: If it cannot be written.
    """
    partial = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        picture.save(partial)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror or error}): give another --sheet.") from error
