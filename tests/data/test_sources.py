"""What all sources share: saved directories, splits by name, names of all kinds, and why a file cannot be read."""

import gzip
import re

import datasets
import fsspec
import pytest

from lit_pretrain.data.disk_cache import chosen_cache_directory
from lit_pretrain.data.images.image_source import ImageSource
from lit_pretrain.data.sources import has_splits, open_source
from lit_pretrain.data.text.document_data_module import DocumentSource
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError


@pytest.fixture
def saved(tmp_path):
    """Directories of `save_to_disk`, with splits and without."""
    parts = {name: datasets.Dataset.from_dict({"text": [name] * 3}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    return tmp_path


def test_a_split_of_a_saved_directory(saved):
    fingerprints = set()
    for split in ("train", "test"):
        opened = open_source(DocumentSource(str(saved / "both"), split=split), saved / "cache")
        assert opened.data["text"][:] == [split] * 3 and opened.files == ()
        fingerprints.add(opened.fingerprint)
    assert len(fingerprints) == 2
    assert open_source(DocumentSource(str(saved / "one")), saved / "cache").data["text"][:] == ["train"] * 3
    sentence = r"no split 'tets' \(did you mean 'test'\?\): its splits are train, test; set data\.test_split"
    with pytest.raises(UserError, match=sentence):
        open_source(ImageSource(str(saved / "both"), split="tets", prefix="test_"), saved / "cache")


def test_what_has_splits(saved):
    (saved / "a.csv").write_text("text\nOne.\n")
    assert has_splits(DocumentSource(str(saved / "both"))) and has_splits(DocumentSource("somebody/something"))
    for path in (str(saved / "one"), str(saved / "a.csv"), None):
        assert not has_splits(DocumentSource(path))


def test_settings_are_called_as_they_were_given(saved):
    for source, setting in (
        (ImageSource(str(saved / "a.parquet")), r"data\.path"),
        (ImageSource(str(saved / "a.parquet"), prefix="test_"), r"data\.test_path"),
    ):
        with pytest.raises(UserError, match=f"check {setting}"):
            open_source(source, saved / "cache")


def texts_of(path, cache, **settings):
    return open_source(DocumentSource(str(path), **settings), cache).data["text"][:]


def test_names_with_brackets_and_of_the_home_directory(tmp_path, monkeypatch):
    folder = tmp_path / "a [1]" / "{x}*"
    folder.mkdir(parents=True)
    (tmp_path / "a 1").mkdir()
    for path in (folder / "b [2].csv", folder / "c.csv", tmp_path / "a 1" / "c.csv"):
        path.write_text(f"text\n{path.stem}\n")
    datasets.Dataset.from_dict({"text": ["saved"]}).save_to_disk(folder / "[saved]")
    cache = tmp_path / "[cache]"
    assert texts_of(folder / "b [2].csv", cache) == ["b [2]"]
    assert texts_of("csv", cache, data_files=str(folder / "*.csv")) == ["b [2]", "c"]
    assert texts_of("csv", cache, data_files=str(tmp_path / "a [0-9]" / "*.csv")) == ["c"]
    assert texts_of(folder, cache, data_files="b [2].csv") == ["b [2]"]
    assert texts_of(folder / "[saved]", cache) == ["saved"]
    monkeypatch.setenv("HOME", str(folder))
    for path, files in (("~/c.csv", None), ("csv", "~/c.csv"), ("csv", "~/[c].csv")):
        assert texts_of(path, cache, data_files=files) == ["c"]
    assert texts_of("~/[saved]", cache) == ["saved"]
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", "~/runs")
    assert [str(chosen_cache_directory(one)) for one in (None, "~/caches")] == [
        f"{folder}/runs/caches",
        f"{folder}/caches",
    ]
    with pytest.raises(UserError, match=f"There is no tokenizer at {re.escape(str(folder))}/t"):
        WordPieceTokenizer.load("~/t")


def test_compressed_files(tmp_path):
    for name, content in (
        ("a.jsonl.gz", b'{"text": "One."}\n{"text": "Two."}\n'),
        ("b.csv.gz", b"text\nOne.\nTwo.\n"),
        ("c [1].tsv.gz", b"text\tlabel\nOne.\t1\nTwo.\t2\n"),
        ("d.txt.gz", b"One.\n\nTwo."),
    ):
        (tmp_path / name).write_bytes(gzip.compress(content))
        assert texts_of(tmp_path / name, tmp_path / "cache") == ["One.", "Two."]
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "train.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes())
    (tmp_path / "many" / "test.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Three."}\n'))
    assert texts_of(tmp_path / "many", tmp_path / "cache", split="test") == ["Three."]


def test_files_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "theirs"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads"))
    for name in ("one.csv", "two.csv"):
        with fsspec.open(f"memory://elsewhere/{name}", "w") as file:
            file.write(f"text\n{name}\n")
    assert texts_of("memory://elsewhere/one.csv", tmp_path) == ["one.csv"]
    assert texts_of("csv", tmp_path, data_files="memory://elsewhere/one.csv") == ["one.csv"]
    assert texts_of("memory://elsewhere", tmp_path, data_files=["one.csv", "two.csv"], split="test") == [
        "one.csv",
        "two.csv",
    ]
    assert not has_splits(DocumentSource("memory://elsewhere/one.csv"))
    for path, sentence in (
        ("memory://elsewhere/three.csv", r"memory://elsewhere/three\.csv cannot be read \(.*\): check data\.path"),
        ("memory://elsewhere/page?id=1", r"does not say by its ending what it holds: set data\.path to parquet, csv"),
        ("s3://bucket/a.parquet", r"since a package for s3:// is missing \(Install s3fs.*\): install it, or copy"),
    ):
        with pytest.raises(UserError, match=sentence):
            texts_of(path, tmp_path)


CAUSES = [
    (
        {"a.csv": "text,label\nx,1\n", "b.csv": "text,kind\nx,1\n"},
        r"/b\.csv cannot be read as csv \(it has the columns text, kind, and .*a\.csv has text, label\): give files of",
    ),
    (
        {"a.csv": "text\nx\ny\n", "b.csv": "text,kind\nx,1\ny,2\n"},
        r"/b\.csv cannot be read as csv \(it has the columns text, kind, and .*a\.csv has text\): give files of",
    ),
    (
        {"a.jsonl": '{"text": "x"}\n', "b.jsonl": '{"text": "x", "more": 1}\n'},
        r"/b\.jsonl cannot be read as json \(it has the columns text, more, and .*a\.jsonl has text\)",
    ),
    (
        {"a.csv": "text,label\nx,1\n", "b.csv": "text,label\nx,y\n"},
        r"\(the column 'label' holds int64 in some files and large_string in others\): write it alike",
    ),
    (
        {"a.csv": "text\nx\n", "b.csv": "text\nx,1,2\ny,3\nz,1,2,3\n"},
        r"/b\.csv cannot be read as csv \(.*line 4, saw 4",
    ),
    (
        {"a.csv": "text\nM\udcfcller\n"},
        r"a\.csv cannot be read as csv \(it is not utf-8: byte 0xfc\): set data\.encoding",
    ),
    ({"a.csv": ""}, r"a\.csv cannot be read as csv \(No columns to parse from file\)"),
    ({"a.json.gz": "\x1f\udc8b\x08"}, r"a\.json\.gz cannot be read as json \(Compressed file ended before"),
]


@pytest.mark.parametrize(("files", "sentence"), CAUSES, ids=range(len(CAUSES)))
def test_the_cause_is_what_is_said(tmp_path, files, sentence, capfd):
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        (tmp_path / "in" / name).write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=sentence):
        texts_of(tmp_path / "in", tmp_path / "cache")
    # Nothing but that sentence.
    assert capfd.readouterr().err == ""
