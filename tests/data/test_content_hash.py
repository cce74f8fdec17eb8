"""Hashes follow bytes, and what was read is not read again."""

import os

import pytest

from lit_pretrain.data import content_hash as module
from lit_pretrain.data.content_hash import MEMORY, content_hash, folder_hash


@pytest.fixture
def files(tmp_path):
    """Two files, one below the other's folder."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    paths = [tmp_path / "in" / "a", tmp_path / "in" / "deep" / "b"]
    for path in paths:
        path.write_text(path.name)
    return [str(path) for path in paths]


@pytest.mark.parametrize("hashed", [content_hash, folder_hash])
def test_it_follows_the_bytes_and_is_remembered(hashed, files, tmp_path, monkeypatch):
    first = hashed(files, tmp_path)
    inner, read = module.file_hash, []
    monkeypatch.setattr(module, "file_hash", lambda file: read.append(file) or inner(file))
    assert hashed(files, tmp_path) == first and not read
    os.utime(files[0], (1, 1))
    assert hashed(files, tmp_path) == first and files[0] in read
    with open(files[0], "a") as file:
        file.write("more")
    assert hashed(files, tmp_path) != first != hashed(files[:1], tmp_path)
    # A damaged memory is begun anew.
    (tmp_path / MEMORY).write_text("{")
    read.clear()
    assert hashed(files, tmp_path) != first and set(read) == set(files)


def test_names_below_a_folder_count_and_the_folder_does_not(files, tmp_path):
    first = folder_hash(files, tmp_path)
    os.rename(tmp_path / "in", tmp_path / "moved")
    moved = [file.replace("/in/", "/moved/") for file in files]
    assert folder_hash(moved, tmp_path) == first
    os.rename(moved[1], f"{moved[1]}2")
    assert folder_hash([moved[0], f"{moved[1]}2"], tmp_path) != first
