"""What all sources share: saved directories, splits by name."""

import datasets
import pytest

from lit_pretrain.data.document_source import DocumentSource
from lit_pretrain.data.image_source import ImageSource
from lit_pretrain.data.sources import has_splits, open_source
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
