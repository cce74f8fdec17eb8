"""Encoders of every origin, with what a table must say of them."""

import pytest
import torch
from small_pictures import make_encoder

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, from_pieces
from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.subjects import fresh_subject, load_subject, of_each_shape


def save_bert(directory):
    encoder = TextEncoder(6, transformer=TransformerConfig(depth=2, width=16, heads=2), max_positions=16)
    encoder.save_pretrained(directory)
    return encoder


def test_public_directories_come_with_what_they_need(tmp_path):
    encoder = save_bert(tmp_path / "bert")
    with pytest.raises(UserError, match="brings no tokenizer"):
        load_subject(str(tmp_path / "bert"))
    WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, "a"], lowercase=True)).save(tmp_path / "bert")
    text = load_subject(str(tmp_path / "bert"))
    assert (text.name, text.step, text.is_text, text.tokenizer.vocabulary_size) == ("bert", None, True, 6)
    assert text.tags == {"source.checkpoint": str(tmp_path / "bert")} and not text.causal
    ids = torch.tensor([[2, 5, 5, 3]])
    torch.testing.assert_close(text.encoder.forward_features(ids), encoder.eval().forward_features(ids))

    make_encoder(class_token=True).save_pretrained(tmp_path / "vit")
    assert not load_subject(str(tmp_path / "vit")).is_text


def test_fresh_weights_are_of_the_seed_and_of_the_same_shape(tmp_path):
    make_encoder(mean=(0.1, 0.2, 0.3)).save_pretrained(tmp_path / "vit")
    subject = load_subject(str(tmp_path / "vit"))
    state = torch.random.get_rng_state()
    one, again, other = (fresh_subject(subject, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.encoder.settings() == subject.encoder.settings() and one.fresh and one.step is None
    weights = [each.encoder.transformer.blocks[0].feed_forward.expand.weight for each in (one, again, other, subject)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
    assert of_each_shape([one, subject]) == [(0, one)]


def test_what_is_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    with pytest.raises(UserError, match="no runs in"):
        load_subject("vit_enormous")
    (tmp_path / "one.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_subject(str(tmp_path / "one.ckpt"))
