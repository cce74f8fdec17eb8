"""A checkpoint is whole or not there."""

import os
import pathlib
import resource
import signal
import time

import pytest
import torch
from child_processes import children

from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import read_checkpoint
from lit_pretrain.tracking.checkpoint_io import AtomicCheckpointIO
from lit_pretrain.tracking.paths import remove_unfinished


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


def save_much(path):
    """Save 150 megabytes, file by file of a megabyte."""
    AtomicCheckpointIO().save_checkpoint({index: torch.full((250_000,), float(index)) for index in range(150)}, path)


def test_killed_while_saving_leaves_the_former_file(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    process = children().Process(target=save_much, args=(path,))
    process.start()
    deadline = time.monotonic() + 200
    while not any(part.stat().st_size > 1_000_000 for part in path.parent.glob(".last.ckpt.*")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 1}
    # Whoever goes on with the run takes what is left of the other away.
    assert len(os.listdir(path.parent)) == 2
    remove_unfinished(tmp_path)
    assert os.listdir(path.parent) == ["last.ckpt"]


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


class Restored:
    """An object that is not plain: counts how often one is made again."""

    times = 0

    def __setstate__(self, state):
        Restored.times += 1


@pytest.mark.parametrize("read", [AtomicCheckpointIO().load_checkpoint, read_checkpoint])
def test_a_bit_turned_over_and_an_object_that_is_not_plain(tmp_path, read):
    path = tmp_path / "last.ckpt"
    weights = torch.arange(5000.0)
    AtomicCheckpointIO().save_checkpoint({"lit_pretrain": {}, "state_dict": {"weights": weights}}, path)
    assert torch.equal(read(path)["state_dict"]["weights"], weights)
    content = bytearray(path.read_bytes())
    content[content.find(weights.numpy().tobytes()) + 10_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged, \S*data/0 is not what was written"):
        read(path)
    # Where whoever saves wants no checksums there is nothing to compare with.
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"lit_pretrain": {}}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(path) == {"lit_pretrain": {}}
    for foreign, name in ((pathlib.PurePosixPath("a"), "PurePosixPath"), (Restored(), "Restored")):
        torch.save({"lit_pretrain": {}, "callbacks": {"own": foreign}}, path)
        with pytest.raises(UserError, match=rf"it holds \S*{name} beside tensors and plain values"):
            read(path)
    assert Restored.times == 0
