"""Texts as sequences, piece by piece."""

import datasets
import numpy
import pytest
import torch

from lit_pretrain.data.text import text_encoding, text_store
from lit_pretrain.data.text.text_encoding import TextSettings, choose_tokenizer, encode_texts, shorten, shorten_pair
from lit_pretrain.data.text.text_store import find_or_encode
from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, from_pieces
from lit_pretrain.errors import UserError

# a is 5, b is 6, ...
TOKENIZER = WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, *"abcdefghijklmnop"], lowercase=True))
PAD, UNK, CLS, SEP = 0, 1, 2, 3
A, B, C, D, E, F, G, H, II, J = range(5, 15)
ROWS = datasets.Dataset.from_dict(
    {
        "text": ["a B c", "?", None, "a b c d e f g h i j", "  "],
        "other": ["d", "e f", "g", "h i j", None],
    }
)


def batch_of(settings, rows, indices):
    encoded = encode_texts(ROWS, numpy.array(rows), TOKENIZER, settings)
    return encoded, encoded.batch(numpy.array(indices))


def test_single_texts():
    encoded, batch = batch_of(TextSettings(("text",), 10), [0, 1, 2, 3, 4], [0, 2, 1])
    assert batch["input_ids"].tolist() == [
        [CLS, A, B, C, SEP, PAD, PAD, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD, PAD, PAD],
        [CLS, UNK, SEP, PAD, PAD, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 2, 3]
    assert batch["attention_mask"][0].tolist() == [True] * 5 + [False] * 3
    assert batch["token_type_ids"].sum() == 0 and batch["sample_id"].tolist() == [0, 2, 1]
    assert encoded.lengths.tolist() == [5, 3, 2, 10, 2] and encoded.truncated == 1 and encoded.empty == 2
    long = encoded.batch(numpy.array([3]))
    assert long["input_ids"].tolist() == [[CLS, A, B, C, D, E, F, G, H, SEP]]
    assert batch["padded"] is True and long["padded"] is False


def test_pairs():
    encoded, batch = batch_of(TextSettings(("text", "other"), 9), [0, 3, 2, 4], [0, 1, 2, 3])
    assert batch["input_ids"].tolist() == [
        [CLS, A, B, C, SEP, D, SEP, PAD, PAD],
        [CLS, A, B, C, SEP, H, II, J, SEP],
        [CLS, SEP, G, SEP, PAD, PAD, PAD, PAD, PAD],
        [CLS, SEP, SEP, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
    assert batch["token_type_ids"].tolist() == [
        [0, 0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0, 0],
    ]
    assert batch["attention_mask"].sum(dim=1).tolist() == encoded.lengths.tolist() == [7, 9, 4, 3]
    assert batch["sample_id"].tolist() == [0, 3, 2, 4] and encoded.truncated == 1 and encoded.empty == 1


def test_what_is_kept_of_a_long_text():
    ids = list(range(20))
    assert shorten(ids, 9, "head") == ids[:9]
    assert shorten(ids, 9, "head_tail") == [0, 1, *range(13, 20)]
    _, batch = batch_of(TextSettings(("text",), 10, "head_tail"), [3], [0])
    assert batch["input_ids"].tolist() == [[CLS, A, B, E, F, G, H, II, J, SEP]]


@pytest.mark.parametrize(
    ("lengths", "room", "kept"),
    [
        ((10, 2), 8, (6, 2)),
        ((2, 10), 8, (2, 6)),
        ((10, 10), 8, (4, 4)),
        ((10, 10), 7, (4, 3)),
        ((3, 10), 8, (3, 5)),
        ((5, 3), 7, (4, 3)),
        ((0, 10), 5, (0, 5)),
    ],
)
def test_what_is_kept_of_a_long_pair(lengths, room, kept):
    first, second = (list(range(length)) for length in lengths)
    assert shorten_pair(first, second, room) == (first[: kept[0]], second[: kept[1]])


def test_many_texts_are_tokenised_a_few_at_a_time(monkeypatch):
    letters = numpy.random.default_rng(0).choice(list("abcdefgh"), (250, 6))
    data = datasets.Dataset.from_dict({"text": [" ".join(row) for row in letters]})
    rows = numpy.arange(0, 250, 2)
    settings = TextSettings(("text",), 16)
    once = encode_texts(data, rows, TOKENIZER, settings)
    monkeypatch.setattr(text_encoding, "CHUNK_CHARACTERS", 300)
    again = encode_texts(data, rows, TOKENIZER, settings)
    assert numpy.array_equal(once.tokens, again.tokens) and numpy.array_equal(once.ends, again.ends)
    expected = [[CLS, *(A + "abcdefgh".index(one) for one in letters[row]), SEP] for row in rows]
    assert again.batch(numpy.arange(125))["input_ids"].tolist() == expected


def test_many_texts_are_tokenised_once(tmp_path, monkeypatch):
    monkeypatch.setattr(text_store, "KEPT_FROM", 3)
    settings, rows = TextSettings(("text", "other"), 9), numpy.array([0, 2, 3])
    first = find_or_encode(ROWS, rows, TOKENIZER, settings, "it", tmp_path)
    monkeypatch.setattr(text_store, "encode_texts", lambda *_: pytest.fail("tokenised again"))
    again = find_or_encode(ROWS, rows, TOKENIZER, settings, "it", tmp_path)
    one, other = first.batch(numpy.arange(3)), again.batch(numpy.arange(3))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert (again.truncated, again.empty) == (1, 0) and len(again) == 3
    others = (
        {"rows": numpy.array([0, 2, 4])},
        {"settings": TextSettings(("text", "other"), 10)},
        {"tokenizer": WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, "a"], lowercase=True))},
        {"fingerprint": "other"},
    )
    given = {"rows": rows, "tokenizer": TOKENIZER, "settings": settings, "fingerprint": "it"}
    for changed in others:
        with pytest.raises(pytest.fail.Exception, match="tokenised again"):
            find_or_encode(ROWS, directory=tmp_path, **given | changed)


def test_whose_tokenizer_is_taken(tmp_path):
    other = WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, *"xyz"], lowercase=True))
    TOKENIZER.save(tmp_path)
    assert choose_tokenizer(None, None, other) is other and choose_tokenizer(None, TOKENIZER, other) is other
    assert choose_tokenizer(None, TOKENIZER, None) is TOKENIZER
    assert choose_tokenizer(str(tmp_path), None, None).hash == TOKENIZER.hash
    assert choose_tokenizer(str(tmp_path), None, TOKENIZER).hash == TOKENIZER.hash
    with pytest.raises(UserError, match=rf"model's tokenizer \({other.hash}\) is not the one at .*{TOKENIZER.hash}"):
        choose_tokenizer(str(tmp_path), None, other)
    with pytest.raises(UserError, match=r"no tokenizer for the texts.*set data\.tokenizer"):
        choose_tokenizer(None, None, None)
