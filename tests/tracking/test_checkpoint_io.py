"""A checkpoint is whole or not there."""

import os
import resource

import pytest
import torch
from child_processes import children

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.checkpoint_io import AtomicCheckpointIO


def test_round_trip_leaves_only_the_file(tmp_path):
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(5.0), "step": 3}, path)
    assert os.listdir(path.parent) == ["last.ckpt"]
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["weights"], torch.arange(5.0)) and loaded["step"] == 3


def save_with_little_room(path, answers):
    """Save a megabyte in a process that may write files of 100 kB only: for the writer, a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(250_000)}, path)
    except UserError as error:
        answers.put(str(error))
    except BaseException as error:
        answers.put(f"{type(error).__name__}: {error}")


def test_no_room_is_one_sentence_and_the_former_file_stays(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    context = children()
    answers = context.Queue()
    process = context.Process(target=save_with_little_room, args=(path, answers))
    process.start()
    answer = answers.get(timeout=60)
    process.join()
    assert answer.startswith(f"There is no room left to save {path}")
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 1}


def test_interrupted_save_leaves_the_former_file(tmp_path):
    class Stop(BaseException):
        pass

    class Unwilling:
        def __reduce__(self):
            raise Stop

    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(Stop):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "bad": Unwilling()}, path)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 1}


def test_link_is_replaced_and_not_written_through(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "best.ckpt")
    (tmp_path / "last.ckpt").symlink_to("best.ckpt")
    AtomicCheckpointIO().save_checkpoint({"step": 2}, tmp_path / "last.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "best.ckpt") == {"step": 1}
    assert not (tmp_path / "last.ckpt").is_symlink()


def test_missing_damaged_and_unwritable(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(UserError, match="does not exist"):
        AtomicCheckpointIO().load_checkpoint(path)
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint(path)
    path.write_text("not a checkpoint at all")
    with pytest.raises(UserError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint(path)
    with pytest.raises(UserError, match="cannot be written"):
        AtomicCheckpointIO().save_checkpoint({}, path / "beneath a file" / "last.ckpt")
