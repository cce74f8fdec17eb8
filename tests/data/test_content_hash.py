"""Hashes follow bytes, and what was read is not read again."""

import multiprocessing
import os
import shutil
import time

import pytest
import torch
from picture_files import pixels_of, png, write_folder

from lit_pretrain.data import ImageDataModule
from lit_pretrain.data import content_hash as module
from lit_pretrain.data.content_hash import MEMORY, content_hash, folder_hash


@pytest.fixture
def files(tmp_path):
    """Two files, one below the other's folder."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    paths = [tmp_path / "in" / "a", tmp_path / "in" / "deep" / "b"]
    for path in paths:
        path.write_text(path.name)
    # Long enough for another time of change.
    time.sleep(0.05)
    return [str(path) for path in paths]


@pytest.fixture
def read(monkeypatch):
    """The files that are read."""
    inner, found = module.part_hash, []
    monkeypatch.setattr(module, "part_hash", lambda part: found.append(part[0]) or inner(part))
    return found


@pytest.mark.parametrize("hashed", [content_hash, folder_hash])
def test_it_follows_the_bytes_and_is_remembered(hashed, files, tmp_path, read, monkeypatch):
    monkeypatch.setattr(module, "TICK", 0)
    first = hashed(files, tmp_path)
    assert set(read) == set(files)
    read.clear()
    assert hashed(files, tmp_path) == first and not read
    os.utime(files[0], (1, 1))
    assert hashed(files, tmp_path) == first and files[0] in read
    # Other bytes, the size and the time of writing being the same.
    state = os.stat(files[0])
    with open(files[0], "w") as file:
        file.write("z")
    os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    monkeypatch.setattr(module, "TICK", 10**15)
    second = hashed(files, tmp_path)
    assert second != first != hashed(files[:1], tmp_path)
    # What could change again without a trace is not remembered.
    read.clear()
    assert hashed(files, tmp_path) == second and files[0] in read
    monkeypatch.setattr(module, "TICK", 0)
    hashed(files, tmp_path)
    read.clear()
    assert hashed(files, tmp_path) == second and not read
    shutil.rmtree(tmp_path / MEMORY)
    (tmp_path / MEMORY).write_text("A memory that cannot be written.")
    read.clear()
    assert hashed(files, tmp_path) == second and set(read) == set(files)


def test_large_files_are_read_in_parts(tmp_path, read, monkeypatch):
    monkeypatch.setattr(module, "PART", 1000)
    path = tmp_path / "a"
    path.write_bytes(bytes(range(250)) * 10)
    first = content_hash([str(path)], tmp_path)
    assert read == [str(path)] * 3
    for place in (0, 999, 1000, 2499):
        content = bytearray(bytes(range(250)) * 10)
        content[place] += 1
        path.write_bytes(content)
        assert content_hash([str(path)], tmp_path) != first


def test_names_below_a_folder_count_and_the_folder_does_not(files, tmp_path):
    first = folder_hash(files, tmp_path)
    os.rename(tmp_path / "in", tmp_path / "moved")
    moved = [file.replace("/in/", "/moved/") for file in files]
    assert folder_hash(moved, tmp_path) == first
    os.rename(moved[1], f"{moved[1]}2")
    assert folder_hash([moved[0], f"{moved[1]}2"], tmp_path) != first


def prepare(rank, directory, answers):
    """One of two training processes, which counts the files that it asks for their state."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", f"file://{directory}/rendezvous", rank=rank, world_size=2)
    inner, looks = module.file_state, []
    module.file_state = lambda file: looks.append(file) or inner(file)
    prints = []
    for _ in range(2):
        data = ImageDataModule(str(directory / "pictures"), cache_directory=str(directory / "caches"), batch_size=2)
        if rank == 0:
            data.prepare_data()
        torch.distributed.barrier()
        data.setup("fit")
        prints.append(data.fingerprint)
        torch.distributed.barrier()
        if rank == 0 and len(prints) == 1:
            (directory / "pictures" / "all" / "red" / "002.png").write_bytes(png(pixels_of(99)))
        torch.distributed.barrier()
    answers.put((rank, len(looks), prints))


def test_a_machines_later_processes_do_not_look_again(tmp_path):
    write_folder(tmp_path / "pictures")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=prepare, args=(rank, tmp_path, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    (first, looks, prints), (later, none, same) = sorted(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert (first, later) == (0, 1) and looks == 2 * 12 and none == 0
    # Both know that a picture has changed.
    assert prints == same and prints[0] != prints[1]
