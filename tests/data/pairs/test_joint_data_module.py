"""Pairs with texts and pictures beside them: epochs of their own, states, one tokenizer."""

import itertools

import pytest
import torch
from small_joint import make_joint, make_texts, write_joint
from small_modernbert import modern_tokenizer
from small_pairs import make_pairs, write_tokenizer

from lit_pretrain.data import JointDataModule
from lit_pretrain.data.pairs.joint_data_module import ContinuedLoader, part_of
from lit_pretrain.data.text.byte_pair_tokenizer import BytePairTokenizer
from lit_pretrain.errors import UserError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_joint(tmp_path_factory.mktemp("joint"))


@pytest.fixture
def joint(directory):
    data = make_joint(directory)
    data.setup("fit")
    return data


def test_epochs_follow_one_another_and_go_on_from_any_batch(joint):
    pictures = joint.parts["vision"]
    batches = pictures.train_batches_per_epoch

    def ids(loader, count):
        return [batch["sample_id"].tolist() for batch in itertools.islice(loader, count)]

    # By hand: the batches of one epoch after the other.
    count = 2 * batches + 3
    expected = [pictures.batch_at(*divmod(place, batches))["sample_id"].tolist() for place in range(count)]
    assert ids(ContinuedLoader(pictures.train_dataloader(), 5), count) == expected
    assert expected[:batches] != expected[batches : 2 * batches]
    for done in (0, 2, batches, batches + 1):
        first = ContinuedLoader(pictures.train_dataloader(), 5)
        # The trainer starts an iteration at every epoch of the pairs.
        assert ids(first, done) == expected[:done]
        second = ContinuedLoader(pictures.train_dataloader(), 5)
        second.load_state_dict(first.state_dict())
        assert ids(first, 3) == ids(second, 3) == expected[done : done + 3]


def test_an_epoch_is_the_pairs(joint):
    loader = joint.train_dataloader()
    batches = [batch for batch, *_ in loader]
    assert len(batches) == len(loader) == joint.train_batches_per_epoch == 4
    assert all(set(batch) == {"pairs", "text", "vision"} for batch in batches)
    assert "caption_key" in batches[0]["pairs"] and len(batches[0]["text"]["input_ids"]) == 4
    kinds = [part_of(batch) for batch, *_ in iter(joint.val_dataloader())]
    assert [name for name, _ in itertools.groupby(kinds)] == ["pairs", "text", "vision"]


def test_any_batch_is_made_again(joint):
    loader = joint.train_dataloader()
    for epoch in range(3):
        loader.iterables["pairs"].batch_sampler.set_epoch(epoch)
        for index, (batch, *_) in enumerate(loader):
            again = joint.batch_at(epoch, index)
            for name, part in batch.items():
                assert torch.equal(torch.as_tensor(again[name]["sample_id"]), torch.as_tensor(part["sample_id"]))
    assert index + 1 == joint.batches_per_epoch(1)


def test_captions_have_the_texts_tokenizer(joint, directory, tmp_path):
    texts, pairs = joint.parts["text"], joint.parts["pairs"]
    assert pairs.tokenizer is texts.tokenizer and "farmer" in texts.tokenizer.to_json()
    facts = joint.describe()
    assert facts["tokenizer_hash"] == facts["text_tokenizer_hash"] and facts["vision_pictures"] == 30
    assert facts["data_fingerprint"] == joint.fingerprint != pairs.fingerprint

    # What either part names is both parts'.
    named = write_tokenizer(tmp_path / "named")
    pair_settings = (directory / "pairs.parquet", tmp_path)
    modern_tokenizer().save(tmp_path / "modern")
    for text, pair in (({"tokenizer": named}, {}), ({}, {"tokenizer": str(tmp_path / "modern")})):
        data = JointDataModule(make_pairs(*pair_settings, **pair), make_texts(directory, **text))
        data.prepare_data()
        assert data.parts["text"].tokenizer.hash == data.tokenizer.hash != texts.tokenizer.hash

    other = make_texts(directory, tokenizer=str(directory / "tokenizer"))
    with pytest.raises(UserError, match="data.pairs.tokenizer is tokenizer .* and data.text.tokenizer .* one tower"):
        JointDataModule(make_pairs(*pair_settings, tokenizer=named), other).prepare_data()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "tokenizer.json").write_text(BytePairTokenizer.of_open_clip().to_json())
    with pytest.raises(UserError, match="Captions have CLIP's tokenizer, and tasks on texts hide words by"):
        pairs = make_pairs(*pair_settings, tokenizer=str(tmp_path / "clip"))
        JointDataModule(pairs, make_texts(directory)).prepare_data()
    with pytest.raises(UserError, match="neither data.text nor data.vision"):
        JointDataModule(make_pairs(*pair_settings))
