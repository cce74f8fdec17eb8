"""Every kind of source a person has, and what they can get wrong."""

import csv
import json
import os

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from lit_pretrain.data.sources import open_source
from lit_pretrain.data.text.document_data_module import DocumentSource, open_documents
from lit_pretrain.errors import UserError

TEXTS = ["One speech. It ends.", "Another, with a comma. And more.", "The third."]


def texts_of(tmp_path, **settings):
    data, fingerprint = open_documents(DocumentSource(**settings), tmp_path / "cache")
    assert len(fingerprint) == 16
    column = settings.get("text_column", "text")
    assert data.column_names == [column]
    return [text.strip() for text in data[column]]


def test_tables_of_every_kind(tmp_path):
    rows = [{"number": number, "body": text} for number, text in enumerate(TEXTS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("a.parquet", "a.csv", "a.tsv", "a.jsonl", "a.json", "saved"):
        assert texts_of(tmp_path, path=str(tmp_path / name), text_column="body") == TEXTS, name
    assert texts_of(tmp_path, path="json", data_files=str(tmp_path / "*.jsonl"), text_column="body") == TEXTS
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "a.json")]
    assert sorted(texts_of(tmp_path, path="json", data_files=files, text_column="body")) == sorted(TEXTS * 2)
    assert texts_of(tmp_path, path=str(tmp_path / "a.csv"), text_column="body", max_documents=2) == TEXTS[:2]


def test_only_empty_cells_are_missing(tmp_path):
    words = ["None", "NA", "null", "nan", "N/A"]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{word},{word}\n" for word in words) + ",x\ny,\n")
    data = open_source(DocumentSource(str(tmp_path / "a.csv")), tmp_path / "cache").data
    assert data["text"][:] == [*words, None, "y"] and data["label"][:] == [*words, "x", None]
    (tmp_path / "b.csv").write_text("text,label\nx,1\ny,\n")
    assert open_source(DocumentSource(str(tmp_path / "b.csv")), tmp_path / "cache").data["label"][:] == [1.0, None]


def test_text_files(tmp_path):
    folder = tmp_path / "letters" / "inner"
    folder.mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    assert texts_of(tmp_path, path=str(tmp_path / "letters")) == TEXTS
    (tmp_path / "one.txt").write_text("\n\n".join(TEXTS) + "\n")
    assert texts_of(tmp_path, path=str(tmp_path / "one.txt")) == TEXTS
    whole = texts_of(tmp_path, path=str(tmp_path / "one.txt"), document_separator="file")
    assert len(whole) == 1 and all(text in whole[0] for text in TEXTS)


def test_fingerprint_follows_the_content(tmp_path):
    path = tmp_path / "one.txt"

    def fingerprint(**settings):
        return open_documents(DocumentSource(path=str(path), **settings), tmp_path / "cache")[1]

    path.write_text("\n\n".join(TEXTS))
    first = fingerprint()
    assert fingerprint() == first != fingerprint(max_documents=1)
    path.write_text("\n\n".join([*TEXTS, "A fourth."]))
    assert fingerprint() != first
    # The same bytes are other documents in another form.
    path.write_text("text\n\nOne.\n\nTwo.\n")
    path.with_suffix(".csv").write_bytes(path.read_bytes())
    prints = {open_documents(DocumentSource(path=str(one)), tmp_path / "cache")[1] for one in tmp_path.glob("one.*")}
    assert len(prints) == 2
    # Other bytes, the size and the time of writing being the same.
    state = os.stat(path)
    path.write_text("text\n\nOne.\n\nSix.\n")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    data, other = open_documents(DocumentSource(path=str(path)), tmp_path / "cache")
    assert data["text"][:] == ["text", "One.", "Six.\n"] and other not in prints
    path.write_text("\n\n".join([*TEXTS, "A fourth."]))
    moved = tmp_path / "moved.txt"
    moved.write_text("\n\n".join(TEXTS))
    assert open_documents(DocumentSource(path=str(moved)), tmp_path / "cache")[1] == first


def test_the_bundled_speeches(tmp_path):
    texts = texts_of(tmp_path)
    assert len(texts) == 249 and texts[0].startswith("Fellow-Citizens of the Senate and House of Representatives")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": "{tmp}/missing.parquet"}, "There is no file or directory .*missing.parquet"),
        ({"path": "json", "data_files": "{tmp}/*.nothing"}, "No file matches"),
        (
            {"path": "{tmp}/table.csv", "text_column": "bodi"},
            r"no column 'bodi' \(did you mean 'body'\?\): its columns",
        ),
        ({"path": "{tmp}/table.csv", "text_column": "number"}, "holds int64, not text"),
        ({"path": "{tmp}/empty.csv", "text_column": "body"}, "has no rows"),
        ({"path": "{tmp}/broken.parquet"}, "cannot be read as parquet"),
        ({"path": "{tmp}/pictures"}, "holds .png: give files of one kind"),
        ({"path": "{tmp}/saved", "split": "train"}, "has no column 'text'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, settings, sentence):
    (tmp_path / "table.csv").write_text("number,body\n1,One.\n2,Two.\n")
    (tmp_path / "empty.csv").write_text("number,body\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    datasets.Dataset.from_dict({"body": TEXTS}).save_to_disk(tmp_path / "saved")
    settings = {name: value.replace("{tmp}", str(tmp_path)) for name, value in settings.items()}
    with pytest.raises(UserError, match=sentence):
        open_documents(DocumentSource(**settings), tmp_path / "cache")
