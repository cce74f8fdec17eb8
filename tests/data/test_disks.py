"""Caches on disks that are full, or that can only be read: one sentence each, or no difference."""

import os

import datasets
import numpy
import pytest
from labelled_texts import TOKENIZER, make_texts, write_texts
from picture_files import write_folder
from small_disks import forbid_writing, small_disk
from text_corpus import make_data, write_corpus

from lit_pretrain.data import ImageDataModule
from lit_pretrain.data.text.document_data_module import DocumentSource, open_documents
from lit_pretrain.data.text.token_cache import open_or_build
from lit_pretrain.errors import UserError


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    texts = datasets.Dataset.from_dict({"text": [" ".join(["every citizen pays."] * 400)] * 110})
    texts.to_json(tmp_path / "corpus.jsonl")
    folder = write_folder(tmp_path / "pictures", side=200)
    sentence = r"is full, or your share of it is, so the {} could not be written.*data\.cache_directory"
    with small_disk(tmp_path / "disk", 200) as disk:
        with pytest.raises(UserError, match=sentence.format("tokenised corpus")):
            open_or_build(texts, "text", TOKENIZER, disk / "documents" / "tokens")
        with pytest.raises(UserError, match=sentence.format("decoded pictures")):
            ImageDataModule(str(folder), cache=True, cache_directory=str(disk)).prepare_data()
        with pytest.raises(UserError, match=sentence.format("converted copy of the source")):
            open_documents(DocumentSource(str(tmp_path / "corpus.jsonl")), disk / "huggingface")
        # Not even a lock can be made.
        (disk / "ballast").write_bytes(bytes(100 * 1024))
        with pytest.raises(OSError), (disk / "rest").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
        with pytest.raises(UserError, match=sentence.format("tokenised corpus")):
            open_or_build(texts, "text", TOKENIZER, disk / "new" / "tokens")
        large = [os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(disk) for name in names]
        assert sum(size for size in large if size > 20_000) == 100 * 1024 + (disk / "rest").stat().st_size


def test_a_complete_cache_may_be_read_only(tmp_path):
    corpus, texts = write_corpus(tmp_path / "corpus.jsonl"), write_texts(tmp_path / "texts.parquet")
    folder = write_folder(tmp_path / "pictures")
    TOKENIZER.save(tmp_path / "tokenizer")

    def made(disk):
        caches = str(disk / "caches")
        documents = make_data(corpus, disk)
        labelled = make_texts(texts, tmp_path / "tokenizer", cache_directory=caches)
        pictures = ImageDataModule(str(folder), cache_directory=caches, label_column="label", batch_size=2)
        for data in (documents, labelled, pictures):
            data.setup("fit")
        return [data.batch_at(0, 0) for data in (documents, labelled, pictures)]

    with small_disk(tmp_path / "disk", 4000) as disk:
        first = made(disk)
        forbid_writing(disk)
        for batch, again in zip(first, made(disk), strict=True):
            assert all(numpy.array_equal(batch[name], again[name]) for name in batch)
        sentence = r"cannot be written \(.*\), and the {} is not there yet: set data\.cache_directory"
        with pytest.raises(UserError, match=sentence.format("tokenizer")):
            make_data(corpus, disk, vocabulary_size=80).prepare_data()
        with pytest.raises(UserError, match=sentence.format("converted copy of the source")):
            make_data(write_corpus(tmp_path / "other.jsonl", 5), disk).prepare_data()
        with pytest.raises(UserError, match=sentence.format("decoded pictures")):
            ImageDataModule(str(folder), cache_directory=str(disk / "caches"), stored_size=4).prepare_data()
