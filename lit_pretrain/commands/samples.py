"""Make the bundled samples again from the packages that they come from, or a large corpus of the speeches."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pretrain.commands.sample_makers import emoji, large_corpus, sotu

if TYPE_CHECKING:
    import pyarrow

MAKERS = {"sotu": sotu, "emoji": emoji}
WRITERS = {"large-corpus": large_corpus}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    samples = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, maker in (MAKERS | WRITERS).items():
        again = " again" if name in MAKERS else ""
        sample = samples.add_parser(name, help=maker.SUMMARY, description=f"Make {maker.SUMMARY}{again}.")
        maker.add_arguments(sample)
        sample.add_argument("--to", dest="target", required=True, metavar="FILE", help="the parquet file to write")


def run(arguments: argparse.Namespace) -> int:
    """Write the sample."""
    if arguments.name in WRITERS:
        content = WRITERS[arguments.name].write(arguments, Path(arguments.target))
        print(f"Wrote {content} to {arguments.target}.")
        return 0
    maker = MAKERS[arguments.name]
    table = maker.make(arguments)
    write_parquet(table, Path(arguments.target), maker.ROW_GROUP_SIZE)
    print(f"Wrote {table.num_rows} {maker.ROWS} to {arguments.target}.")
    return 0


def write_parquet(table: "pyarrow.Table", target: Path, row_group_size: int) -> None:
    """Write a table, compressed as far as zstd goes; `row_group_size` rows can be read without the others."""
    import pyarrow.parquet

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    pyarrow.parquet.write_table(table, partial, compression="zstd", compression_level=19, row_group_size=row_group_size)
    partial.replace(target)
