"""Streamed documents: the sequences of a pass, exact resume with and without workers, what a stream cannot do."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from lightning import seed_everything
from text_corpus import StopAt3, fit, make_encoder, write_corpus

from lit_pretrain.data import DocumentDataModule
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining
from lit_pretrain.objectives import (
    ContrastiveSpans,
    MaskedLanguageModeling,
    NextSentencePrediction,
    SentenceOrder,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of documents, and a tokenizer that knows their words."""
    directory = tmp_path_factory.mktemp("streamed")
    (directory / "corpus").mkdir()
    for number, documents in enumerate((25, 14, 21)):
        write_corpus(directory / "corpus" / f"{number}.jsonl", documents, seed=number)
    lines = [line for file in sorted((directory / "corpus").iterdir()) for line in file.read_text().splitlines()]
    tokenizer = WordPieceTokenizer.train([json.loads(line)["text"] for line in lines], 90)
    tokenizer.save(directory / "tokenizer")
    return directory


def streamed(shards: Path, **settings: object) -> DocumentDataModule:
    defaults = {"sequence_length": 32, "batch_size": 4, "validation_share": 0.2, "seed": 1, "shuffle_buffer": 12}
    defaults |= {"tokenizer": str(shards / "tokenizer"), "cache_directory": str(shards / "caches")}
    return DocumentDataModule(str(shards / "corpus"), streaming=True, **defaults | settings)


def loader_of(data: DocumentDataModule):
    data.setup("fit")
    return data.train_dataloader()


def same(first: list[dict], second: list[dict]) -> bool:
    return len(first) == len(second) and all(
        one.keys() == other.keys()
        and all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)
        for one, other in zip(first, second, strict=True)
    )


def test_a_pass_has_every_word_piece_once(shards: Path) -> None:
    """As the ordinary data module's segments have; batches are full across buffers and passes."""
    loader = loader_of(streamed(shards, layout="segments"))
    documents = [json.loads(line)["text"] for file in sorted((shards / "corpus").iterdir()) for line in file.open()]
    held_out = loader.batches.held_out
    sizes = (25, 14, 21)
    places = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    tokenizer = WordPieceTokenizer.load(shards / "tokenizer")
    expected = sum(
        len(tokenizer.encode(text)) for text, place in zip(documents, places, strict=True) if place not in held_out
    )
    found, epochs = [0, 0, 0], set()
    stream = loader.batches
    stream.batch_size = 1
    for batch, after in stream.batches(0, {"epoch": 0, "index": 0, "row": 0, "samples": 0}):
        if after["epoch"] == 2:
            break
        epochs.add(after["epoch"])
        found[after["epoch"]] += int(batch["attention_mask"].sum()) - 2
    assert found == [expected, expected, 0]


@pytest.mark.parametrize(
    ("workers", "settings"),
    [
        (0, {"layout": "segments"}),
        (0, {"layout": "sentence_pairs"}),
        (0, {"layout": "sentence_pairs", "random_next": "never"}),
        (0, {"layout": "segments", "packing": True}),
        (2, {"layout": "sentence_pairs", "random_next": "faithful"}),
    ],
)
def test_a_loader_goes_on_exactly(workers: int, settings: dict, shards: Path) -> None:
    """From any batch, within a buffer and across passes, and in the turn of its workers."""
    undisturbed = list(islice(loader_of(streamed(shards, workers=workers, **settings)), 60))
    assert all(len(batch["input_ids"]) == 4 for batch in undisturbed)
    assert not same(undisturbed[:5], undisturbed[5:10])
    for stop in (1, 26, 47) if not workers else (5,):
        killed = loader_of(streamed(shards, workers=workers, **settings))
        list(islice(killed, stop))
        state = json.loads(json.dumps(killed.state_dict()))
        resumed = loader_of(streamed(shards, workers=workers, **settings))
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert same(list(islice(resumed, 60 - stop)), undisturbed[stop:])


def test_two_iterations_follow_each_other(shards: Path) -> None:
    """As epochs of a limited length do."""
    undisturbed = list(islice(loader_of(streamed(shards)), 9))
    loader = loader_of(streamed(shards))
    assert same([*islice(loader, 5), *islice(loader, 4)], undisturbed)


@pytest.mark.parametrize(
    ("objectives", "settings"),
    [
        ([MaskedLanguageModeling, NextSentencePrediction], {}),
        ([MaskedLanguageModeling, SentenceOrder], {"random_next": "never"}),
        ([MaskedLanguageModeling, ContrastiveSpans], {"layout": "segments"}),
    ],
)
def test_a_training_goes_on_exactly(objectives: list, settings: dict, shards: Path, tmp_path: Path) -> None:
    """Ended after three steps and gone on with, it has the weights of one that was not; with a validation between."""

    def train(checkpoint: Path | None = None, **trainer: object):
        seed_everything(0)
        module = TextPretraining(make_encoder(), [objective() for objective in objectives])
        # The last parts of halves are short: contrastive spans need whole batches of texts that can be halved.
        data = streamed(shards, **{"validation_share": 0.3} | settings)
        limits = {"limit_val_batches": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None}
        return fit(module, data, checkpoint, **limits | trainer), module

    _, undisturbed = train()
    trainer, _ = train(callbacks=[StopAt3()])
    trainer.save_checkpoint(tmp_path / "third.ckpt")
    resumed_trainer, resumed = train(tmp_path / "third.ckpt")
    assert resumed_trainer.global_step == 6
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tokenizer": None}, "a tokenizer would be trained on all of them: set data.tokenizer"),
        ({"document_budget": 10}, "data.document_budget draws from all of them"),
        ({"new_pieces": 10}, "data.new_pieces are chosen by all of the corpus"),
        ({"max_documents": 10}, "data.max_documents takes rows from the source's start"),
        ({"text_column": "txet"}, "no column 'txet'"),
        ({"split": "train[:50%]"}, "give whole splits"),
    ],
)
def test_what_a_stream_cannot_do_is_a_sentence(settings: dict, sentence: str, shards: Path) -> None:
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
        streamed(shards, **settings).prepare_data()


def test_a_stream_needs_an_end(shards: Path) -> None:
    """Its length nobody knows; a number of batches serves, a share of them or epochs do not."""

    def train(**settings: object):
        return fit(TextPretraining(make_encoder(), [MaskedLanguageModeling()]), streamed(shards), **settings)

    with pytest.raises(UserError, match="trainer.max_epochs 2 does not say when it ends"):
        train(max_steps=-1, max_epochs=2)
    with pytest.raises(UserError, match="a share"):
        train(limit_train_batches=0.5)
    with pytest.raises(UserError, match="overfit_batches"):
        train(overfit_batches=2)
    assert train(max_steps=-1, max_epochs=2, limit_train_batches=2).global_step == 4


def test_another_stream_is_none_to_go_on_with(shards: Path) -> None:
    loader = loader_of(streamed(shards))
    next(iter(loader))
    state = loader.state_dict()
    for settings, name in (
        ({"shuffle_buffer": 11}, "shuffle_buffer 12, and it is 11"),
        ({"workers": 2}, "data.workers 1, and it is 2"),
        ({"sequence_length": 16}, "data.sequence_length 32"),
    ):
        other = loader_of(streamed(shards, **settings))
        other.load_state_dict(state)
        with pytest.raises(UserError, match=name):
            next(iter(other))
