"""WordPiece tokenizers: the same from the same corpus everywhere, readable by transformers, and refused when unfit."""

import json
import os
import random
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece

from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, frequent_letters, from_pieces
from lit_pretrain.errors import UserError

TEXTS = [
    "The Congress shall consider the treasury; the treasurer considers it.",
    "Café owners in Zürich pay 12½ cents, and considering the cost they reconsider.",
    "A naïve treaty entreats; treaties retreat. ΑΒΓ αβγ",
] * 20

# The module alone, without all that its packages import, which takes seconds.
TRAIN = """
import importlib.util, json, sys
for name in ("lit_pretrain.data", "lit_pretrain.data.text"):
    sys.modules[name] = importlib.util.module_from_spec(importlib.util.find_spec(name))
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
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


# Lines that end in, or consist of, what Python takes for line ends; only line feeds are.
BREAKS = ["x\u2028y", "\u2028", "\x85", "c\u2029", "d\x0b", "e\x0c", "\x1c"]
LINES = [*SPECIAL_TOKENS, "a", *BREAKS, "f", "##g", "h ", "\u3000", "é", "東"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_only_line_feeds_end_a_piece(ending, tmp_path):
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_bytes(ending.join([*LINES, ""]).encode())
    ours, theirs = WordPieceTokenizer.load(tmp_path), BertTokenizerFast.from_pretrained(tmp_path)
    assert ours.vocabulary_size == len(LINES)
    for piece in ("a", "x\u2028y", "c", "d", "e", "\x1c", "f", "##g", "h", "é", "東"):
        assert ours.tokenizer.token_to_id(piece) == theirs.convert_tokens_to_ids(piece) > 4, piece
    for text in ("a fg h", "c d\x0be", "x\u2028y f", "É 東a", "h\u3000f\x85a", "e\x1cf"):
        assert [ours.cls_id, *ours.encode(text), ours.sep_id] == theirs(text)["input_ids"]
    ours.save(tmp_path / "saved")
    assert WordPieceTokenizer.load(tmp_path / "saved" / "vocab.txt").vocabulary[5:7] == ["a", "x\u2028y"]


def test_ids_without_a_gap(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "a", "b", "a"]))
    with pytest.raises(UserError, match=r"vocab\.txt has the piece 'a' in line 6 and again in line 8"):
        WordPieceTokenizer.load(tmp_path)
    content = json.loads(from_pieces([*SPECIAL_TOKENS, "a", "b"], lowercase=True).to_str())
    content["model"]["vocab"]["b"] = 9
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json has 7 pieces and none with the id 6, the largest being 9"):
        WordPieceTokenizer.load(tmp_path)


def test_case_may_go_and_accents_stay(tmp_path):
    tokenizer = WordPieceTokenizer.train(["Été ÉTÉ été"] * 9, 40, strip_accents=False)
    assert tokenizer.decode(tokenizer.encode("ÉTÉ")) == "été"
    assert "é" not in "".join(WordPieceTokenizer.train(["Été ÉTÉ été"] * 9, 40).vocabulary)
    tokenizer.save(tmp_path)
    agree(tokenizer, tmp_path)


def test_long_words_are_taken_apart_if_asked_for(tmp_path):
    generator = random.Random(0)
    texts = ["".join(generator.choices("ACGT", k=300)) for _ in range(20)]
    short, long = WordPieceTokenizer.train(texts, 60), WordPieceTokenizer.train(texts, 60, word_length=400)
    assert short.encode(texts[0]) == [short.unk_id] and short.hash != long.hash
    assert len(long.encode(texts[0])) > 50 and long.unk_id not in long.encode(texts[0])
    long.save(tmp_path)
    assert WordPieceTokenizer.load(tmp_path).encode(texts[0]) == long.encode(texts[0])
    agree(long, tmp_path)


def test_an_alphabet_of_thousands():
    generator = random.Random(0)
    alphabet = [chr(0x4E00 + number) for number in range(3000)]
    texts = ["".join(generator.choices(alphabet, k=200)) for _ in range(300)]
    tokenizer = WordPieceTokenizer.train([*texts, *TEXTS], 4000)
    # A character is a word, so none needs a piece within one; and there is room for all of them.
    pieces = set(tokenizer.vocabulary)
    assert pieces.issuperset("".join(texts)) and not any(piece[2:] in alphabet for piece in pieces)
    assert tokenizer.unk_id not in tokenizer.encode(texts[0]) and "##ing" in pieces
    assert tokenizer.vocabulary_size <= 4000


def test_the_size_is_an_upper_bound():
    tokenizer = WordPieceTokenizer.train(TEXTS, 5000)
    assert 100 < tokenizer.vocabulary_size < 5000
    assert tokenizer.vocabulary == WordPieceTokenizer.train(TEXTS, tokenizer.vocabulary_size).vocabulary


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.vocabulary_size of 6 has no room for a letter beside the 5 special"):
        WordPieceTokenizer.train(TEXTS, 6)
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
