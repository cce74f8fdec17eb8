"""A corpus as large as one asks for, of the bundled speeches' sentences with variation, to try what large corpora need.

Documents of a few dozen sentences in an order of their own; in every sentence one word is exchanged for another of the
speeches. It is written in row groups, so that no more than one is held.
"""

import argparse
import random
from functools import cache
from pathlib import Path

from lit_pretrain.errors import UserError

SUMMARY = "a corpus of any size from the speeches' sentences with variation"
# Documents of a row group, and the least and most sentences of a document.
GROUP = 2000
SHORTEST, LONGEST = 10, 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its size."""
    parser.add_argument("--bytes", type=float, default=2e9, metavar="N", help="bytes of text (2e9)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="source of every draw (0)")


def write(arguments: argparse.Namespace, target: Path) -> str:
    """Write the corpus as parquet with a column `text`.

    Returns:
        What was written, for the message.

    Raises:
        UserError: If the size is none.
    """
    import pyarrow
    import pyarrow.parquet

    if not arguments.bytes >= 1:
        raise UserError(f"--bytes is {arguments.bytes:g}: give at least 1.")
    draw = random.Random(arguments.seed)
    sentences = [sentence.split() for sentence in speeches()]
    words = sorted({word for sentence in sentences for word in sentence})
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    schema = pyarrow.schema([("text", pyarrow.string())])
    written = documents = 0
    with pyarrow.parquet.ParquetWriter(partial, schema, compression="zstd") as file:
        while written < arguments.bytes:
            texts: list[str] = []
            while len(texts) < GROUP and written < arguments.bytes:
                texts.append(document(draw, sentences, words))
                written += len(texts[-1].encode())
            file.write_table(pyarrow.table({"text": texts}, schema))
            documents += len(texts)
    partial.replace(target)
    return f"{documents:,} documents of {written:,} bytes of text"


def document(draw: random.Random, sentences: list[list[str]], words: list[str]) -> str:
    """A document: sentences from all over, each with one word exchanged."""
    chosen = []
    for sentence in draw.choices(sentences, k=draw.randint(SHORTEST, LONGEST)):
        varied = list(sentence)
        varied[int(draw.random() * len(varied))] = words[int(draw.random() * len(words))]
        chosen.append(" ".join(varied))
    return " ".join(chosen)


@cache
def speeches() -> list[str]:
    """The sentences of the bundled speeches."""
    import pyarrow.parquet

    from lit_pretrain.data.sources import sample_path
    from lit_pretrain.data.text.token_cache import split_sentences

    texts = pyarrow.parquet.read_table(sample_path("sotu"), columns=["text"]).column("text").to_pylist()
    return [sentence for text in texts for sentence in split_sentences(text or "") if sentence.split()]
