"""Byte-pair tokenizers: CLIP's piece for piece as open_clip's own, RoBERTa's as transformers'."""

import json

import open_clip
import pyarrow.parquet
import pytest
from labelled_texts import TOKENIZER
from small_roberta import small_roberta_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer

from lit_pretrain.data.sources import sample_path
from lit_pretrain.data.text.byte_pair_tokenizer import ROBERTA_TOKENS, BytePairTokenizer, RobertaTokenizer
from lit_pretrain.data.text.text_encoding import TextSettings, batch_of
from lit_pretrain.data.text.tokenizers_by_kind import load_tokenizer, tokenizer_from_json
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    """Of the vocabulary in the package."""
    return BytePairTokenizer.of_open_clip()


def test_pieces_are_open_clips(tokenizer):
    names = pyarrow.parquet.read_table(sample_path("emoji"))["name"].to_pylist()
    odd = [
        "Ünïcode façade 日本語 😀!!!",
        "‘quote’ “x”",
        "  tab\tnew\nline  ",
        "don't I'LL d'accord 12345 a_b-c",
        "",
        " ",
        "e\u0301",
    ]
    theirs = open_clip.tokenizer.SimpleTokenizer()
    for text, pieces in zip(names + odd, tokenizer.encode_batch(names + odd), strict=True):
        assert pieces == theirs.encode(text) == tokenizer.encode(text), text
    assert tokenizer.vocabulary_size == theirs.vocab_size == 49_408
    assert (tokenizer.cls_id, tokenizer.sep_id) == (theirs.sot_token_id, theirs.eot_token_id)
    assert tokenizer.decode(tokenizer.encode("A small Dog!")).split() == ["a", "small", "dog", "!"]


def test_it_is_kept_and_told_from_berts(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    for one in (load_tokenizer(tmp_path), tokenizer_from_json(tokenizer.to_json())):
        assert isinstance(one, BytePairTokenizer) and one.hash == tokenizer.hash
        assert one.encode("a photo of a dog") == tokenizer.encode("a photo of a dog")
    assert isinstance(tokenizer_from_json(TOKENIZER.to_json()), WordPieceTokenizer)
    # The merges are part of what a tokenizer is.
    parts = json.loads(tokenizer.to_json())
    parts["model"]["merges"] = parts["model"]["merges"][::-1]
    assert tokenizer_from_json(json.dumps(parts)).hash != tokenizer.hash
    with pytest.raises(UserError, match="is a BPE tokenizer, not WordPiece"):
        WordPieceTokenizer.load(tmp_path)


def test_what_is_no_clip_is_refused():
    with pytest.raises(UserError, match="is a WordPiece tokenizer, not the byte-pair encoding of CLIP"):
        BytePairTokenizer(TOKENIZER.tokenizer)
    with pytest.raises(UserError, match=r"has neither <\|startoftext\|> nor <\|endoftext\|>"):
        BytePairTokenizer(Tokenizer(BPE({"a": 0}, [])))


def test_robertas_pieces_and_pairs_are_those_of_transformers(tmp_path):
    ours = small_roberta_tokenizer()
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for one in (load_tokenizer(tmp_path), tokenizer_from_json(ours.to_json())):
        assert isinstance(one, RobertaTokenizer) and one.hash == ours.hash
    texts, others = ["The lowest", "", "naïve 東京 <mask> a"], ["newer", " low", "er"]
    for length in (40, 7):
        settings = TextSettings(("text", "other"), length)
        found = batch_of({"text": texts, "other": others}, ours, settings)
        rows = [
            theirs(*pair, truncation="longest_first", max_length=length)["input_ids"]
            for pair in zip(texts, others, strict=True)
        ]
        for row, ids, real in zip(rows, found["input_ids"], found["attention_mask"], strict=True):
            assert len(row) == real.sum() and (length == 7 or row == ids[real].tolist())
        alone = batch_of({"text": texts}, ours, TextSettings(("text",), length))
        rows = theirs(texts, truncation=True, max_length=length)["input_ids"]
        assert rows == [
            ids[real].tolist() for ids, real in zip(alone["input_ids"], alone["attention_mask"], strict=True)
        ]
    with pytest.raises(UserError, match="is a BPE tokenizer without <mask>, not RoBERTa's"):
        RobertaTokenizer(Tokenizer(BPE({token: place for place, token in enumerate(ROBERTA_TOKENS[:4])}, [])))
