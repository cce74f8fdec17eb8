"""WordPiece tokenizers: the same from the same corpus everywhere, readable by transformers, and refused when unfit."""

import json
import os
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece

from lit_pretrain.data.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, frequent_letters, from_pieces
from lit_pretrain.errors import UserError

TEXTS = [
    "The Congress shall consider the treasury; the treasurer considers it.",
    "Café owners in Zürich pay 12½ cents, and considering the cost they reconsider.",
    "A naïve treaty entreats; treaties retreat. ΑΒΓ αβγ",
] * 20

TRAIN = """
import json, sys
from lit_pretrain.data.tokenizer import WordPieceTokenizer
tokenizer = WordPieceTokenizer.train(json.load(open(sys.argv[1])), 120)
print(json.dumps(tokenizer.vocabulary))
"""


def test_every_process_learns_the_same_pieces(tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    # Another order of sets and dictionaries than this process has.
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    learned = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "texts.json")],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    pieces = WordPieceTokenizer.train(TEXTS, 120).vocabulary
    assert json.loads(learned) == list(pieces)
    assert len(pieces) == len(set(pieces)) == 120
    assert tuple(pieces[:5]) == SPECIAL_TOKENS
    # Every letter stands alone and continued, so that no word of these letters is unknown.
    assert {"c", "##c", "z", "##z", "α", "##α"}.issubset(pieces)
    assert "é" not in pieces  # accents are dropped with the case


def test_letters_are_counted_as_they_are_left_by_normalisation():
    lower = normalizers.BertNormalizer(lowercase=True)
    cased = normalizers.BertNormalizer(lowercase=False)
    assert frequent_letters(["ÉeE b\tB", "aB"], lower, 10) == ["b", "e", "a"]
    assert frequent_letters(["ÉeE b\tB", "aB"], cased, 2) == ["B", "E"]


def test_a_rich_alphabet_leaves_room_for_pieces():
    rare = "".join(chr(0x0531 + k) for k in range(30))
    tokenizer = WordPieceTokenizer.train([*TEXTS, rare], 100)
    letters = [piece for piece in tokenizer.vocabulary[5:] if len(piece.removeprefix("##")) == 1]
    assert len(letters) <= 50 and tokenizer.encode(rare) == [tokenizer.unk_id]


def test_files_are_read_back_and_by_transformers(tmp_path):
    from transformers import AutoTokenizer

    for lowercase in (True, False):
        tokenizer = WordPieceTokenizer.train(TEXTS, 130, lowercase)
        directory = tmp_path / str(lowercase)
        tokenizer.save(directory)
        loaded = [
            WordPieceTokenizer.load(directory),
            WordPieceTokenizer.load(directory / "vocab.txt"),
            WordPieceTokenizer.from_json(tokenizer.to_json()),
        ]
        assert {one.hash for one in loaded} == {tokenizer.hash}
        theirs = AutoTokenizer.from_pretrained(directory)
        for text in TEXTS[:3]:
            ids = tokenizer.encode(text)
            assert theirs(text)["input_ids"] == [tokenizer.cls_id, *ids, tokenizer.sep_id]
            assert all(one.encode(text) == ids for one in loaded)
        assert tokenizer.decode(tokenizer.encode("the treasury considers")) == "the treasury considers"
    assert WordPieceTokenizer.load(tmp_path / "True").hash != WordPieceTokenizer.load(tmp_path / "False").hash


PIECES = [*SPECIAL_TOKENS, "cafe", "café", "東", "京", "東京", "the", "##s", "a", ",", "##é", "Caf", "##e", "b"]
HARD = ["Café 東京 the,cafés b", "é [MASK] A \x01a", "zig zag the"]


def agree(tokenizer, directory):
    """See that transformers' AutoTokenizer makes the same of texts and of pairs."""
    from transformers import AutoTokenizer

    (directory / "config.json").write_text(json.dumps({"model_type": "bert"}))
    theirs = AutoTokenizer.from_pretrained(directory)
    for text in HARD:
        first, second = tokenizer.encode(text), tokenizer.encode("the b")
        found = theirs(text, "the b")
        ends = ([tokenizer.cls_id], [tokenizer.sep_id])
        assert found["input_ids"] == [*ends[0], *first, *ends[1], *second, *ends[1]]
        assert found["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strip_accents": False},
        {"strip_accents": True, "do_lower_case": False},
        {"tokenize_chinese_chars": False},
    ],
    ids=str,
)
def test_a_vocabulary_is_read_as_its_config_says(settings, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = WordPieceTokenizer.load(tmp_path)
    agree(tokenizer, tmp_path)
    tokenizer.save(tmp_path / "saved")
    agree(tokenizer, tmp_path / "saved")


def words_of_white_space(tokenizer):
    steps = [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Sequence(steps), pre_tokenizers.WhitespaceSplit()


def short_words(tokenizer):
    tokenizer.model = WordPiece(tokenizer.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=3)


def unclean(tokenizer):
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=False)


def another_word(tokenizer):
    tokenizer.add_tokens(["zig zag"])


@pytest.mark.parametrize("change", [words_of_white_space, short_words, unclean, another_word])
def test_words_that_are_not_berts_survive_transformers(change, tmp_path):
    tokenizer = from_pieces(PIECES, lowercase=True)
    change(tokenizer)
    tokenizer = WordPieceTokenizer(tokenizer)
    tokenizer.save(tmp_path)
    agree(tokenizer, tmp_path)
    assert WordPieceTokenizer.load(tmp_path).hash == tokenizer.hash


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(UserError, match=r"supports a vocabulary of \d+ word pieces, not the 5000"):
        WordPieceTokenizer.train(TEXTS, 5000)
    with pytest.raises(UserError, match="There is no tokenizer at"):
        WordPieceTokenizer.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has neither tokenizer.json nor vocab.txt"):
        WordPieceTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        WordPieceTokenizer.load(tmp_path)
    other = Tokenizer(BPE())
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="is a BPE tokenizer, not WordPiece"):
        WordPieceTokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    with pytest.raises(UserError, match=r"has no \[CLS\] and no \[SEP\] and no \[MASK\]"):
        WordPieceTokenizer.load(tmp_path / "vocab.txt")
