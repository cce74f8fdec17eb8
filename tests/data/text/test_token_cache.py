"""The tokenised corpus: its arrays by hand, its memory, its lock, and builds that are killed."""

import ctypes
import gc
import os
import queue
import threading
import time

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from child_processes import children
from datasets import Dataset
from process_memory import forget_peak, peak, status_of

from lit_pretrain.data import disk_cache
from lit_pretrain.data.file_reader import read_files
from lit_pretrain.data.text import token_cache
from lit_pretrain.data.text.token_cache import TokenCache, open_or_build
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer, from_pieces
from lit_pretrain.errors import UserError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "we", "pay", "##ing", "they", "build"]


@pytest.fixture
def tokenizer():
    return WordPieceTokenizer(from_pieces(PIECES, lowercase=True))


def rows(*texts):
    return Dataset.from_dict({"text": list(texts)})


def test_arrays_by_hand(tokenizer, tmp_path):
    data = rows("We paying. They build.", "", None, "  \n ", "They pay. Unheard.")
    cache = open_or_build(data, "text", tokenizer, tmp_path / "cache")
    #                          we pay ##ing . | they build . || they pay . | [UNK] .
    assert cache.tokens.tolist() == [6, 7, 8, 5, 9, 10, 5, 9, 7, 5, 1, 5]
    assert cache.sentence_ends.tolist() == [4, 7, 10, 12]
    assert cache.document_ends.tolist() == [2, 4]
    assert cache.document_rows.tolist() == [0, 4]
    assert cache.sentence_offsets(0).tolist() == [0, 4, 7]
    assert cache.sentence_offsets(1).tolist() == [7, 10, 12]
    assert cache.document_offsets().tolist() == [0, 7, 12]
    assert cache.facts == {
        "documents": 2,
        "sentences": 4,
        "tokens": 12,
        "unknown_pieces": 1,
        "documents_without_sentences": 3,
    }
    again = TokenCache.open(tmp_path / "cache")
    assert isinstance(again.tokens, numpy.memmap) and again.tokens.dtype == numpy.uint16
    assert sorted(os.listdir(tmp_path)) == ["cache", "cache.lock"]


def test_chunks_do_not_show(tokenizer, tmp_path, monkeypatch):
    texts = [f"We pay. They build {'paying. We ' * (k % 7)}build." for k in range(530)]
    whole = open_or_build(rows(*texts), "text", tokenizer, tmp_path / "whole")
    monkeypatch.setattr(token_cache, "CHUNK_CHARACTERS", 300)
    parts = open_or_build(rows(*texts), "text", tokenizer, tmp_path / "parts")
    for name in ("tokens", "sentence_ends", "document_ends", "document_rows"):
        assert numpy.array_equal(getattr(whole, name), getattr(parts, name)), name


def test_no_sentence_at_all(tokenizer, tmp_path):
    with pytest.raises(UserError, match="None of the 2 documents has a sentence in 'text'"):
        open_or_build(rows("", " "), "text", tokenizer, tmp_path / "cache")
    assert os.listdir(tmp_path) == ["cache.lock"]


class Endless:
    """So many rows of the same text, made when they are asked for."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, part):
        return {"text": ["We paying. They build. " * 400 for _ in range(*part.indices(self.count))]}


def build_and_tell_memory(directory, answers):
    # An arena a thread would make the peak a matter of luck; M_ARENA_MAX of malloc.h.
    ctypes.CDLL(None).mallopt(-8, 1)
    tokenizer = WordPieceTokenizer(from_pieces(PIECES, lowercase=True))
    token_cache.CHUNK_CHARACTERS = 500_000
    # The first build warms up what is made once: threads, imports, the heap.
    for name, count in (("first", 150), ("small", 150), ("large", 850)):
        open_or_build(Endless(count), "text", tokenizer, directory / name)
        answers.put(peak() / 2**20)


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    answers = children().Queue()
    process = children().Process(target=build_and_tell_memory, args=(tmp_path, answers))
    process.start()
    _, small, large = (answers.get(timeout=120) for _ in range(3))
    process.join()
    # 6 MB of text more, whose pieces as objects would be over 80 MB; the heap's gaps are some 30 MB.
    assert large - small < 60


def most_anonymous(work):
    """What a function returns, and the most bytes of memory that were no file's pages, looked at all the time."""
    most, ended = 0, threading.Event()

    def look():
        nonlocal most
        while not ended.wait(0.002):
            most = max(most, status_of("RssAnon"))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        return work(), most
    finally:
        ended.set()
        looking.join()


def read_and_tell_memory(directory, answers):
    ctypes.CDLL(None).mallopt(-8, 1)
    token_cache.CHUNK_CHARACTERS, token_cache.REOPENED_AFTER = 1_000_000, 8_000_000
    schema = pyarrow.schema([("text", pyarrow.string())])
    for name, groups in (("first", 2), ("large", 60)):
        with pyarrow.parquet.ParquetWriter(directory / f"{name}.parquet", schema, compression="none") as file:
            for _ in range(groups):
                file.write_table(pyarrow.table({"text": [os.urandom(20_000).hex() for _ in range(40)]}, schema))

        def read(name=name):
            files = {"train": [str(directory / f"{name}.parquet")]}
            return read_files("parquet", files, "train", {}, name, directory / "caches")

        data, most = most_anonymous(read)
        answers.put(most / 2**20)
        # What has just been written may be mapped in large pieces: it is read anew from the disk.
        copies = [one["filename"] for one in data.cache_files]
        del data
        gc.collect()
        for copy in copies:
            with open(copy, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        forget_peak()
        before = peak()
        assert sum(len(rows) for rows, _ in token_cache.chunks(read(), "text")) == groups * 40
        answers.put((peak() - before) / 2**20)


def test_a_source_is_neither_held_nor_resident(tmp_path):
    """Of a parquet file of 90 MB, converted and read to its end, a small part is in memory at a time."""
    answers = children().Queue()
    process = children().Process(target=read_and_tell_memory, args=(tmp_path, answers))
    process.start()
    small, _, converted, read = (answers.get(timeout=120) for _ in range(4))
    process.join()
    # 120 MB where the reader keeps all. While other programs take the cores Arrow reads ahead: 93 MB were seen.
    assert converted - small < 110
    assert read < 50


def build_slowly(directory, seconds, answers):
    """Build, and tell when it has begun and how many tokens there are."""
    inner = token_cache.chunks

    def slow(data, column):
        for one in inner(data, column):
            answers.put("building")
            time.sleep(seconds)
            yield one

    token_cache.chunks = slow
    tokenizer = WordPieceTokenizer(from_pieces(PIECES, lowercase=True))
    cache = open_or_build(rows(*["We pay. They build."] * 50), "text", tokenizer, directory)
    answers.put(len(cache.tokens))


def start_build(directory, seconds):
    answers = children().Queue()
    process = children().Process(target=build_slowly, args=(directory, seconds, answers))
    process.start()
    return process, answers


def test_a_killed_build_is_made_anew_by_who_waits_for_it(tmp_path):
    process, answers = start_build(tmp_path / "cache", 60)
    assert answers.get(timeout=200) == "building"
    waiting, others = start_build(tmp_path / "cache", 0)
    with pytest.raises(queue.Empty):
        others.get(timeout=1)
    process.kill()
    process.join()
    assert any("partial" in name for name in os.listdir(tmp_path)) and not (tmp_path / "cache").exists()
    assert [others.get(timeout=200), others.get(timeout=200)] == ["building", 300]
    waiting.join()
    assert sorted(os.listdir(tmp_path)) == ["cache", "cache.lock"]


def test_two_processes_at_once_build_once(tmp_path):
    first, answers = start_build(tmp_path / "cache", 1)
    assert answers.get(timeout=100) == "building"
    second, others = start_build(tmp_path / "cache", 1)
    # The second one waited, and built nothing.
    assert [answers.get(timeout=100), others.get(timeout=100)] == [300, 300]
    for process in (first, second):
        process.join()


def test_parts_do_not_show_and_are_kept(tokenizer, tmp_path, monkeypatch):
    """Built by parts, some of them without any sentence and one after an interruption, it is the same to the byte."""
    texts = ["We pay. They build.", "", " ", "Roads.", "They pay for roads. We build.", ""]
    whole = open_or_build(rows(*texts), "text", tokenizer, tmp_path / "whole")
    monkeypatch.setattr(disk_cache, "PART_BYTES", 1)
    seen = []

    def run(function, calls):
        for call in calls:
            if len(seen) == 3:
                seen.append("interrupted")
                raise KeyboardInterrupt
            seen.append(call[0].name)
            function(*call)

    before = disk_cache.workers.set(disk_cache.Workers(run, threads=1))
    try:
        with pytest.raises(KeyboardInterrupt):
            open_or_build(rows(*texts), "text", tokenizer, tmp_path / "parts")
        open_or_build(rows(*texts), "text", tokenizer, tmp_path / "parts")
        with pytest.raises(UserError, match="None of the 2 documents has a sentence in 'text'"):
            open_or_build(rows("", " "), "text", tokenizer, tmp_path / "empty")
    finally:
        disk_cache.workers.reset(before)
    assert seen[:7] == ["0-1", "1-2", "2-3", "interrupted", "3-4", "4-5", "5-6"]
    parts = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    assert parts == {path.name: path.read_bytes() for path in whole.directory.iterdir()}
    assert not (tmp_path / "parts.parts").exists()
