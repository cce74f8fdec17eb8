"""Decoded pictures on disk: their arrays by hand, damaged ones, memory, lock, a full disk."""

import multiprocessing
import os
import pickle
import time
import tracemalloc

import numpy
import pytest
import torch
from picture_files import pixels_of, png, spoil, write_folder

from lit_pretrain.data import disk_cache
from lit_pretrain.data.images import decoding, image_cache
from lit_pretrain.data.images.decoding import decode_blocks, find_square
from lit_pretrain.data.images.image_cache import ImageCache, image_fingerprint, open_or_build
from lit_pretrain.data.images.image_source import ImageSource, open_pictures
from lit_pretrain.data.images.pictures import EncodedPicture, Square
from lit_pretrain.errors import UserError


class Rows:
    """Pictures in memory, as `EncodedPictures` gives them."""

    source, fingerprint = "it", "0"

    def __init__(self, contents):
        self.contents = contents

    def __len__(self):
        return len(self.contents)

    def read(self, rows):
        return [EncodedPicture(row, f"row {row}", self.contents[row]) for row in rows]


def numbered(count, side=8, damaged=()):
    return Rows([b"damaged" if row in damaged else png(pixels_of(row, side)) for row in range(count)])


def test_arrays_by_hand(tmp_path):
    grey = png(numpy.full((8, 8), 255, numpy.uint8))
    pictures = Rows([png(pixels_of(0)), grey, b"nothing", png(pixels_of(3))])
    cache = open_or_build(pictures, Square(8), "skip", tmp_path / "cache")
    expected = [pixels_of(0), numpy.full((8, 8, 3), 255), pixels_of(3)]
    assert numpy.array_equal(cache.images, numpy.stack(expected).transpose(0, 3, 1, 2))
    assert cache.rows.tolist() == [0, 1, 3] and cache.rows.dtype == numpy.int64
    assert cache.facts["grey_share"] == pytest.approx(1 / 3) and cache.skipped == 1
    assert cache.facts["mean"] == pytest.approx((numpy.stack(expected) / 255).mean(axis=(0, 1, 2)))
    assert (tmp_path / "cache.unreadable.txt").read_text() == "row 2: it is no picture that Pillow knows\n"
    assert sorted(os.listdir(tmp_path)) == ["cache", "cache.lock", "cache.unreadable.txt"]
    again = pickle.loads(pickle.dumps(cache))
    assert isinstance(again.images, numpy.memmap) and again.facts == cache.facts
    images, places = again.gather(numpy.array([2, 0]), numpy.array([1, 0, 0]))
    assert places.tolist() == [0, 2, 2] and images.dtype == torch.uint8 and images.is_contiguous()
    assert numpy.array_equal(images, cache.images[[0, 2, 2]])


def test_damaged_pictures_are_an_error_that_names_them(tmp_path):
    with pytest.raises(
        UserError,
        match=r"^2 of the 40 pictures of it cannot be read \(row 3: .*; row 35: [^;]*\): repair .*corrupt to skip",
    ):
        open_or_build(numbered(40, damaged=(3, 35)), Square(8), "error", tmp_path / "cache")
    many = numbered(40, damaged=range(0, 40, 4))
    with pytest.raises(UserError, match=r"^10 of the 40 .*row 8: [^;]*; all are named in .*other\.unreadable\.txt\)"):
        open_or_build(many, Square(8), "error", tmp_path / "other")
    assert len((tmp_path / "other.unreadable.txt").read_text().splitlines()) == 10
    # Nothing else is left.
    names = {f"{name}{end}" for name in ("cache", "other") for end in (".lock", ".unreadable.txt")}
    assert set(os.listdir(tmp_path)) == names
    cache = open_or_build(many, Square(8), "skip", tmp_path / "third")
    assert cache.rows.tolist() == [row for row in range(40) if row % 4] and cache.skipped == 10
    for corrupt in ("error", "skip"):
        with pytest.raises(UserError, match=r"None of the 5 pictures of it can be read \(row 0: "):
            open_or_build(numbered(5, damaged=range(5)), Square(8), corrupt, tmp_path / "none")


def test_blocks_and_threads_do_not_show(tmp_path, monkeypatch):
    pictures = numbered(70, damaged=(0, 31, 69))
    whole = open_or_build(pictures, Square(8), "skip", tmp_path / "whole")
    monkeypatch.setattr(decoding, "BLOCK", 4)
    monkeypatch.setattr(decoding, "cores", lambda: 7)
    parts = open_or_build(pictures, Square(8), "skip", tmp_path / "parts")
    assert numpy.array_equal(whole.images, parts.images) and numpy.array_equal(whole.rows, parts.rows)
    assert whole.facts == parts.facts and len(whole.rows) == 67


def test_memory_does_not_grow_with_the_source(tmp_path):
    class Endless(Rows):
        """So many rows of the same picture, read when they are asked for."""

        content = png(pixels_of(0, 64))

        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

        def read(self, rows):
            return [EncodedPicture(row, f"row {row}", bytes(bytearray(self.content))) for row in rows]

    peaks = []
    for name, count in (("first", 150), ("small", 150), ("large", 1500)):
        tracemalloc.start()
        open_or_build(Endless(count), Square(64), "error", tmp_path / name)
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    # 1,350 pictures more are 17 MB encoded and 17 MB decoded.
    assert peaks[2] - peaks[1] < 1.5 and peaks[1] < 8


def test_blocks_are_decoded_a_few_ahead():
    rows = []

    class Watched(Rows):
        def read(self, wanted):
            rows.extend(wanted)
            return super().read(wanted)

    pictures = Watched(numbered(400).contents)
    blocks = decode_blocks(pictures, range(400), Square(8), threads=2)
    next(blocks)
    assert len(rows) == 3 * decoding.BLOCK
    blocks.close()


def test_the_pictures_own_size(tmp_path):
    assert find_square(numbered(3, side=9), None) == Square(9, like="row 0")
    assert find_square(numbered(3, damaged=(0,)), None) == Square(8, like="row 1")
    assert find_square(numbered(3), 5) == Square(5)
    for contents, sentence in (
        ([(8, 8), (8, 9)], r"differ in size \(row 0 is 8x8, row 1 is 9x8\): set data\.stored_size"),
        ([(6, 8), (6, 8)], r"are not square \(row 0 is 8x6\): set data\.stored_size"),
    ):
        pictures = Rows([png(numpy.zeros((*shape, 3), numpy.uint8)) for shape in contents])
        with pytest.raises(UserError, match=sentence):
            find_square(pictures, None)
    with pytest.raises(UserError, match="None of the 2 pictures of it can be read"):
        find_square(numbered(2, damaged=(0, 1)), None)
    # One that is met later.
    late = Rows([*numbered(90).contents, png(pixels_of(0, 10))])
    square = find_square(late, None)
    with pytest.raises(UserError, match=r"row 0 is 8x8, row 90 is 10x10"):
        open_or_build(late, square, "skip", tmp_path / "cache")
    assert os.listdir(tmp_path) == ["cache.lock"]


def test_the_fingerprint_follows_what_the_pixels_depend_on():
    one, other = numbered(1), numbered(1)
    other.fingerprint = "1"
    cases = [(one, Square(8), "error"), (other, Square(8), "error"), (one, Square(9), "error")]
    cases += [(one, Square(8), "skip"), (one, Square(8, like="row 0"), "error")]
    assert len({image_fingerprint(*case) for case in cases}) == len(cases)
    assert image_fingerprint(one, Square(8, like="a"), "skip") == image_fingerprint(one, Square(8, like="b"), "skip")


def build_slowly(directory, answers):
    inner = image_cache.build

    def slow(*arguments):
        answers.put("building")
        time.sleep(0.5)
        inner(*arguments)

    image_cache.build = slow
    answers.put(len(open_or_build(numbered(12), Square(8), "error", directory / "cache").images))


def test_two_processes_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=build_slowly, args=(tmp_path, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    # The second one waited, and built nothing.
    assert [answers.get(timeout=60) for _ in range(3)] == ["building", 12, 12]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(os.listdir(tmp_path)) == ["cache", "cache.lock"]


def test_files_are_named(tmp_path):
    folder = write_folder(tmp_path / "pictures")
    damaged = spoil(folder / "all" / "red" / "005.png")
    pictures = open_pictures(ImageSource(str(folder)), tmp_path)
    cache = open_or_build(pictures, Square(8), "skip", tmp_path / "cache")
    assert len(ImageCache.open(tmp_path / "cache").images) == 11 and cache.skipped == 1
    (line,) = (tmp_path / "cache.unreadable.txt").read_text().splitlines()
    assert line.startswith(f"{damaged}: ") and "truncated" in line


def test_parts_do_not_show(tmp_path, monkeypatch):
    """Built by parts, one of them without a readable picture, it is the same to the byte."""
    pictures = numbered(11, damaged=(3, 4, 5, 9))
    whole = open_or_build(pictures, Square(8), "skip", tmp_path / "whole")
    monkeypatch.setattr(disk_cache, "PART_BYTES", 3 * 3 * 8 * 8)

    def run(function, calls):
        assert len(calls) == 4
        for call in calls:
            function(*call)

    before = disk_cache.workers.set(disk_cache.Workers(run, threads=1))
    try:
        open_or_build(pictures, Square(8), "skip", tmp_path / "parts")
        with pytest.raises(UserError, match="4 of the 11 pictures"):
            open_or_build(pictures, Square(8), "error", tmp_path / "strict")
    finally:
        disk_cache.workers.reset(before)
    parts = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    assert parts == {path.name: path.read_bytes() for path in whole.directory.iterdir()}
