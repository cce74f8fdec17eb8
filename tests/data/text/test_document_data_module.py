"""Documents into batches: what stands in them, which documents they come from, and what cannot work."""

import json
import re

import numpy
import pytest
import torch
from text_corpus import make_data, write_corpus

from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.batch import TextBatch


def rows_of(loader, epoch=0):
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def test_a_batch_of_pairs(data):
    data.setup("fit")
    tokenizer = data.tokenizer
    for batch in rows_of(data.train_dataloader()):
        assert set(batch) == set(data.batch_fields)
        ids, mask, segments = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        assert ids.shape == mask.shape == segments.shape == (8, 32)
        assert batch["padded"] is not bool(mask.all())
        assert ids.dtype == segments.dtype == batch["next_sentence_label"].dtype == torch.int64
        for row in range(8):
            length = int(mask[row].sum())
            real = ids[row, :length].tolist()
            assert mask[row, :length].all() and (ids[row, length:] == tokenizer.pad_id).all()
            assert real[0] == tokenizer.cls_id and real[-1] == tokenizer.sep_id
            middle = real.index(tokenizer.sep_id)
            assert real.count(tokenizer.sep_id) == 2 and 1 < middle < length - 2
            assert segments[row].tolist() == [0] * (middle + 1) + [1] * (length - middle - 1) + [0] * (32 - length)
            assert not {tokenizer.pad_id, tokenizer.mask_id, tokenizer.cls_id} & set(real[1:])


@pytest.mark.parametrize(
    "settings", [{}, {"random_next": "never"}, {"layout": "segments"}, {"layout": "segments", "packing": True}], ids=str
)
def test_fields_are_those_that_are_documented(corpus, tmp_path, settings):
    data = make_data(corpus, tmp_path, **settings)
    data.setup("fit")
    batch = data.batch_at(0, 0)
    assert (
        set(batch)
        == set(data.batch_fields)
        == set(TextBatch.__annotations__)
        - ({"next_sentence_label"} if settings else set())
        - ({"documents"} if "packing" not in settings else set())
    )
    for name, value in batch.items():
        # As the docstring has them: its shapes, and whether they are integers.
        line = next(one for one in TextBatch.__doc__.splitlines() if one.strip().startswith(f"{name}:"))
        if name != "padded":
            assert {1: "(B,)", 2: "(B, L)"}[value.ndim] in line and value.is_floating_point() is False
            assert ("booleans" if value.dtype == torch.bool else "integers") in line


def test_any_batch_can_be_made_again(data):
    data.setup("fit")
    for epoch in (0, 3):
        for index, batch in enumerate(rows_of(data.train_dataloader(), epoch)):
            again = data.batch_at(epoch, index)
            torch.testing.assert_close(batch, again, rtol=0, atol=0)


def test_validation_has_documents_of_its_own_and_is_the_same_for_every_seed(corpus, tmp_path):
    ones = [make_data(corpus, tmp_path, seed=seed) for seed in (1, 2)]
    for one in ones:
        one.setup("fit")
        assert not set(one.train_dataset.documents) & set(one.validation_dataset.documents)
        assert len(one.validation_dataset.documents) == 12 and len(one.train_dataset.documents) == 48
    first, second = (rows_of(one.val_dataloader()) for one in ones)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))
    again = rows_of(ones[0].val_dataloader(), epoch=5)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    trained = [rows_of(one.train_dataloader())[0]["input_ids"] for one in ones]
    assert not torch.equal(*trained)


def test_fewer_documents_leave_the_tokenizer_and_the_validation_alone(corpus, tmp_path):
    whole, half, few = (make_data(corpus, tmp_path, document_budget=budget) for budget in (None, 0.5, 6))
    for one in (whole, half, few):
        one.setup("fit")
        assert numpy.array_equal(one.validation_dataset.documents, whole.validation_dataset.documents)
        assert one.tokenizer.hash == whole.tokenizer.hash
    assert len(half.train_dataset.documents) == 24 and len(few.train_dataset.documents) == 6
    assert set(few.train_dataset.documents) < set(half.train_dataset.documents) < set(whole.train_dataset.documents)


def test_segments_and_the_beginnings_of_documents(corpus, tmp_path):
    data = make_data(corpus, tmp_path, layout="segments", sequence_length=16)
    data.setup("predict")
    assert "next_sentence_label" not in data.batch_fields
    batches = rows_of(data.predict_dataloader())
    rows = torch.cat([batch["sample_id"] for batch in batches])
    assert rows.tolist() == list(range(60))
    starts = data.cache.document_offsets()[:-1]
    tokens = torch.cat([batch["input_ids"] for batch in batches])[:, 1:15]
    for row, start in enumerate(starts):
        assert tokens[row].tolist() == data.cache.tokens[start : start + 14].tolist()


def test_the_record_tells_what_the_data_was(data):
    data.setup("fit")
    facts = data.describe()
    assert facts["documents"] == 60 and facts["tokens"] == len(data.cache.tokens)
    assert facts["tokenizer_hash"] == data.tokenizer.hash and len(facts["data_fingerprint"]) == 16
    assert facts["random_share"] == pytest.approx(0.5, abs=0.02)
    assert facts["training_sequences"] == len(data.train_dataset)


def test_a_second_module_builds_nothing(data, corpus, tmp_path, monkeypatch):
    data.setup("fit")
    from lit_pretrain.data.text import token_cache

    monkeypatch.setattr(token_cache, "build", None)
    monkeypatch.setattr(WordPieceTokenizer, "train", None)
    other = make_data(corpus, tmp_path)
    other.setup("fit")
    assert other.fingerprint == data.fingerprint
    assert numpy.array_equal(other.cache.tokens, data.cache.tokens)


def test_more_workers_give_the_same_batches(corpus, tmp_path):
    batches = []
    for workers in (0, 2):
        data = make_data(corpus, tmp_path, workers=workers)
        data.setup("fit")
        batches.append(rows_of(data.train_dataloader(), epoch=2))
    assert len(batches[0]) == len(batches[1]) > 3
    for one, other in zip(*batches, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sequence_length": 4}, r"data\.sequence_length is 4: give at least 8"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"validation_share": 1.0}, r"data\.validation_share is 1\.0"),
        ({"max_documents": 1}, r"one document.*data\.layout to segments"),
        ({"document_budget": 1}, r"data\.document_budget of 1 is 1 of the 48 training documents: give from 2 to all"),
        ({"document_budget": 2.5}, r"data\.document_budget is 2\.5: give a whole number"),
        ({"batch_size": 100_000}, r"do not fill one batch.*data\.batch_size"),
        ({"vocabulary_size": 8}, r"no pieces for \d+% of what .*corpus\.jsonl holds \(it has none for '\w+', say\)"),
        ({"tokenizer": "nowhere"}, "There is no tokenizer at nowhere"),
    ],
)
def test_what_cannot_work_is_said_before_training(corpus, tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        data = make_data(corpus, tmp_path, **settings)
        data.setup("fit")
        data.train_dataloader()


def test_unknown_pieces_are_told_and_refused(tmp_path, capsys):
    path = tmp_path / "dna.jsonl"
    generator = numpy.random.default_rng(0)
    texts = ["".join(generator.choice(list("ACGT"), 150)) + ". It is long." for _ in range(12)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "Short. It is."]))
    settings = {"vocabulary_size": 60, "layout": "segments"}
    data = make_data(path, tmp_path, **settings)
    data.setup("fit")
    told = capsys.readouterr().err
    assert re.search(r"13 documents of 'text' with \d+ word pieces, 1\d\.\d% of them unknown; ", told)
    path.write_text("".join(json.dumps({"text": text[:150]}) + "\n" for text in texts))
    sentence = r"for 100% of .*dna\.jsonl holds \('[ACGT]{30}\.\.\.' has 150 characters, and words of more than 100 are"
    with pytest.raises(UserError, match=sentence):
        make_data(path, tmp_path, **settings).setup("fit")
    make_data(path, tmp_path, word_length=200, **settings).setup("fit")
    told = capsys.readouterr().err
    assert " 0.0% of them unknown" in told
    make_data(path, tmp_path, word_length=200, layout="segments", vocabulary_size=10**6).setup("fit")
    told = capsys.readouterr().err
    assert re.search(r"The texts have [\d,]+ word pieces, fewer than data\.vocabulary_size allows", told)


def test_documents_without_sentences(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text('{"text": ""}\n{"text": "  "}\n{"text": null}\n')
    with pytest.raises(UserError, match="The corpus has no letter .* every document is empty or white space"):
        make_data(path, tmp_path).setup("fit")
    write_corpus(tmp_path / "corpus.jsonl")
    data = make_data(tmp_path / "corpus.jsonl", tmp_path)
    data.setup("fit")
    data.tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="None of the 3 documents has a sentence in 'text'"):
        make_data(path, tmp_path, tokenizer=str(tmp_path / "tokenizer")).setup("fit")
