"""Rows that a person asks for as JSON replace what was there whole; a pipe stays a pipe."""

import json
import os
import threading
from pathlib import Path

import pytest

from lit_pretrain.commands.output import check_writable, write_json
from lit_pretrain.errors import UserError


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_json(path, [{"a": 1}])
    with pytest.raises(TypeError):
        write_json(path, [{"a": object()}])
    assert json.loads(path.read_text()) == [{"a": 1}] and os.listdir(tmp_path) == ["rows.json"]
    link = tmp_path / "link.json"
    link.symlink_to(path)
    write_json(link, [])
    assert link.is_symlink() and json.loads(path.read_text()) == []


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json(pipe, [1])
    reader.join(10)
    assert json.loads(read[0]) == [1] and pipe.is_fifo()


def test_a_place_that_is_not_there_is_told_beforehand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        check_writable(tmp_path / "nowhere" / "rows.json")


def test_looking_leaves_no_file_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    check_writable(path)
    assert not path.exists()
    write_json(path, [{"mean": float("nan"), "values": (1.0, float("inf"))}])
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == [{"mean": None, "values": [1.0, None]}]
    check_writable(path)
    assert path.exists()
