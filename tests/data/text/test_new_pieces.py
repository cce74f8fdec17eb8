"""Word pieces that a corpus adds to a tokenizer: the most useful ones, the same everywhere, all else as it was."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from lit_pretrain.data import DocumentDataModule, JointDataModule
from lit_pretrain.data.text import new_pieces
from lit_pretrain.data.text.byte_pair_tokenizer import BytePairTokenizer
from lit_pretrain.data.text.new_pieces import check_growing, grown_once, grown_tokenizer, is_larger, replaced_pieces
from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, from_pieces
from lit_pretrain.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
COMMON = ["the", "of", "and", "hyp", "##er", "##ten", "##sion", "##ly", "##mia", "patient", "##s", ",", "."]
OLD = WordPieceTokenizer(
    from_pieces([*SPECIAL_TOKENS, *COMMON, *LETTERS, *(f"##{letter}" for letter in LETTERS if letter != "s")], True)
)
# Words that have stems in common, words of a single piece, and a letter that is unknown.
TEXTS = [
    "The hypoglycemia of the patient, and hypoglycemic patients.",
    "Hypertension and hyperglycemia: hypertensive patients; Hypoglycemias.",
    "Naïve hypoglycemia; 血 and 血 of Ørsted, Ørsted.",
] * 6


def count_pieces(tokenizer):
    """Of all texts, a letter without a piece counting twice as in the choice."""
    lengths = [len(ids) for ids in tokenizer.encode_batch(TEXTS)]
    return sum(lengths) + sum(ids.count(tokenizer.unk_id) for ids in tokenizer.encode_batch(TEXTS))


def test_the_first_piece_is_the_best_there_is_and_more_save_more():
    larger, growth = grown_tokenizer(OLD, TEXTS, 1)
    words = new_pieces.word_counts(OLD.tokenizer, TEXTS)
    assert words["hypoglycemia"] == 12 and list(words.values()) == sorted(words.values(), reverse=True)
    # Every stretch of every word, tried.
    stretches = {
        ("##" if start else "") + word[start:end]
        for word in words
        for start in range(len(word))
        for end in range(start + 2, len(word) + 1)
    }
    lengths = {piece: count_pieces(new_pieces.with_pieces(OLD, [piece])) for piece in stretches - set(OLD.vocabulary)}
    assert count_pieces(larger) == min(lengths.values())
    assert growth.pieces_before - growth.pieces_after == sum(
        len(before) - len(after)
        for before, after in zip(OLD.encode_batch(TEXTS), larger.encode_batch(TEXTS), strict=True)
    )
    before = count_pieces(larger)
    for count in (2, 4, 8):
        tokenizer, growth = grown_tokenizer(OLD, TEXTS, count)
        assert growth.pieces == count and count_pieces(tokenizer) < before
        before = count_pieces(tokenizer)
        # None is there for nothing.
        used = {piece for ids in tokenizer.encode_batch(TEXTS) for piece in ids}
        assert used.issuperset(range(OLD.vocabulary_size, tokenizer.vocabulary_size))


def test_what_was_there_keeps_its_meaning(tmp_path, capsys):
    larger = grown_once(tmp_path / "kept", OLD, TEXTS, 1000)
    told = capsys.readouterr()
    assert "fewer than data.new_pieces (1,000)" in told.out + told.err and "pieces a word" in told.out + told.err
    assert larger.vocabulary[: OLD.vocabulary_size] == OLD.vocabulary
    assert larger.hash == grown_tokenizer(OLD, iter(TEXTS[::-1]), 1000)[0].hash != OLD.hash
    assert is_larger(larger, OLD) and not is_larger(OLD, larger) and not is_larger(OLD, OLD)
    cased = WordPieceTokenizer(from_pieces(larger.vocabulary, lowercase=False))
    assert not is_larger(cased, OLD)
    new = larger.vocabulary[OLD.vocabulary_size :]
    # Whole words are one piece, and a piece that is used nowhere is none.
    assert [len(larger.encode(word)) for word in ("hypoglycemia", "ørsted", "血")] == [1, 1, 1]
    for piece, replaced in zip(new, replaced_pieces(larger, OLD), strict=True):
        names = [OLD.vocabulary[index] for index in replaced]
        if piece.removeprefix("##").isascii() and piece.removeprefix("##").isalpha():
            assert "".join(name.removeprefix("##") for name in names) == piece.removeprefix("##")
            assert names[0].startswith("##") == piece.startswith("##")
    assert replaced_pieces(larger, OLD)[new.index("血")] == [OLD.unk_id]
    for theirs in (BertTokenizer.from_pretrained(tmp_path / "kept"), AutoTokenizer.from_pretrained(tmp_path / "kept")):
        assert len(theirs) == larger.vocabulary_size
        for text in (*TEXTS[:3], "the [MASK] of hypoglycemic Xylophones"):
            assert theirs(text, add_special_tokens=False)["input_ids"] == larger.encode(text)
    assert (tmp_path / "kept" / "vocab.txt").is_file()


def test_tokens_added_beside_the_vocabulary_keep_their_ids():
    parts = Tokenizer.from_str(OLD.to_json())
    parts.add_tokens([AddedToken("hypoglycemia", normalized=False)])
    parts.model.max_input_chars_per_word = 11
    old = WordPieceTokenizer(parts)
    assert json.loads(old.to_json())["model"]["vocab"].get("hypoglycemia") is None
    larger, _ = grown_tokenizer(old, TEXTS, 3)
    assert (
        larger.vocabulary[: old.vocabulary_size] == old.vocabulary and larger.vocabulary_size == old.vocabulary_size + 3
    )
    assert WordPieceTokenizer.from_json(larger.to_json()).vocabulary == larger.vocabulary
    # Words that are too long to be taken apart have no pieces.
    assert larger.word_length == 11 and "hypertension" not in larger.vocabulary


def test_what_cannot_grow_is_told(tmp_path):
    check_growing(OLD)
    with pytest.raises(UserError, match="raise data.vocabulary_size instead"):
        check_growing(None)
    with pytest.raises(UserError, match="this one is BPE"):
        check_growing(BytePairTokenizer.of_open_clip())
    with pytest.raises(UserError, match="data.new_pieces"):
        DocumentDataModule(new_pieces=-1)
    (tmp_path / "corpus.txt").write_text("\n\n".join(TEXTS))
    data = DocumentDataModule(str(tmp_path / "corpus.txt"), new_pieces=5, cache_directory=str(tmp_path))
    with pytest.raises(UserError, match="raise data.vocabulary_size instead"):
        data.prepare_data()
    with pytest.raises(UserError, match=r"data\.text\.new_pieces"):
        JointDataModule(None, data)
    OLD.save(tmp_path / "old")
    data = DocumentDataModule(
        str(tmp_path / "corpus.txt"), new_pieces=5, tokenizer=str(tmp_path / "old"), cache_directory=str(tmp_path)
    )
    data.prepare_data()
    assert data.tokenizer.vocabulary_size == OLD.vocabulary_size + 5
