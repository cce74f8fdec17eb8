"""WordPiece tokenisation (Schuster and Nakajima 2012; BERT, arXiv:1810.04805), trained on a corpus or loaded.

Here are BERT's special tokens and the files that `transformers` reads.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

from lit_pretrain.data.text.base_tokenizer import WORD_LENGTH, TextTokenizer, ids_of, kind_of, pieces_of
from lit_pretrain.errors import UserError

# What ends a line in Rust, of which transformers' reader is made: U+001C to U+001F, which Python counts too, do not.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPieceTokenizer(TextTokenizer):
    """BERT's tokenizer: pieces of words, pieces inside a word marked by "##".

    Args:
        tokenizer: A WordPiece tokenizer of the `tokenizers` library with BERT's five special tokens.
        source: Where it comes from, for error messages.

    Raises:
        UserError: If it is of another kind or lacks a special token.
    """

    model = "WordPiece"

    def __init__(self, tokenizer: Tokenizer, source: str = "the tokenizer") -> None:
        kind = kind_of(tokenizer)
        if kind != self.model:
            raise UserError(f"{source} is a {kind} tokenizer, not WordPiece: BERT's objectives need [MASK] and pieces.")
        missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
        if missing:
            raise UserError(f"{source} has no {' and no '.join(missing)}: use a tokenizer made for BERT.")
        super().__init__(tokenizer, "[CLS]", "[SEP]", source)
        ids = ids_of(tokenizer, SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        self.special_ids = sorted(ids)

    # -- making one

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocabulary_size: int = 8192,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        word_length: int = WORD_LENGTH,
    ) -> "WordPieceTokenizer":
        """Learn the pieces of a corpus; the same corpus gives the same pieces in every process and on every machine.

        Args:
            texts: The corpus, read twice (so no generator).
            vocabulary_size: Number of pieces at most, special tokens and single letters included.
            lowercase: Whether case is dropped, as in BERT's uncased models.
            strip_accents: Whether accents are; null drops them with the case.
            word_length: Characters of the longest word that is taken apart; longer ones are unknown.

        Raises:
            UserError: If the corpus has no letter, or there is no room for one.
        """
        normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
        splitter = pre_tokenizers.BertPreTokenizer()
        alphabet = frequent_letters(texts, normalizer, vocabulary_size)
        if not alphabet:
            raise UserError("The corpus has no letter to train a tokenizer on: every document is empty or white space.")
        # Each with its piece within a word, if it can be in one: Chinese characters and marks are words by themselves.
        forms = {letter: [letter, f"##{letter}"] for letter in alphabet}
        for letter in alphabet:
            if len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{letter}"))) > 1:
                forms[letter].pop()
        # They take half of the vocabulary at most, however many a corpus has; the rest comes last, if there is room.
        letters: list[str] = []
        room = min(vocabulary_size // 2, vocabulary_size - len(SPECIAL_TOKENS))
        for letter in alphabet:
            room -= len(forms[letter])
            if room < 0 and letters:
                break
            letters.append(letter)
        inner = [form for letter in letters for form in forms[letter][1:]]
        if len(SPECIAL_TOKENS) + len(letters) + len(inner) > vocabulary_size:
            raise UserError(
                f"data.vocabulary_size of {vocabulary_size} has no room for a letter beside the {len(SPECIAL_TOKENS)} "
                "special tokens: give some hundred at least."
            )
        tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
        # The library numbers continued letters in the order of a hash table, which differs between processes and
        # decides between pairs of equal count. Given as special tokens, they are numbered in the order given.
        trainer = WordPieceTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[*SPECIAL_TOKENS, *inner],
            initial_alphabet=letters,
            limit_alphabet=len(letters),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        vocabulary = tokenizer.get_vocab()
        pieces = sorted(vocabulary, key=vocabulary.__getitem__)
        for letter in alphabet[len(letters) :]:
            if len(pieces) + len(forms[letter]) > vocabulary_size:
                break
            pieces += [form for form in forms[letter] if form not in vocabulary]
        return cls(from_pieces(pieces, lowercase, strip_accents, word_length=word_length))

    @classmethod
    def load(cls, path: str | Path) -> "WordPieceTokenizer":
        """Read a tokenizer from a directory (tokenizer.json, or vocab.txt with tokenizer_config.json) or from its file.

        Raises:
            UserError: If there is none, or it is not a WordPiece tokenizer.
        """
        return cls(*read_tokenizer(path))

    # -- what it is

    @cached_property
    def continuation_mask(self) -> numpy.ndarray:
        """(V,) booleans, True where a piece continues a word."""
        return numpy.array([piece.startswith("##") for piece in self.vocabulary])

    # -- keeping it

    def save(self, directory: str | Path) -> None:
        """As the base's, with a vocab.txt.

        Where the words are not found as in BERT there is none, which means BERT's way to everyone.
        """
        super().save(directory)
        if bert_settings(self.tokenizer) is not None:
            (Path(directory) / "vocab.txt").write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")

    def post_processor(self) -> Any:
        """[CLS] and [SEP]."""
        return processors.BertProcessing(("[SEP]", self.sep_id), ("[CLS]", self.cls_id))

    def transformers_config(self) -> dict[str, Any]:
        """BertTokenizer's where that does the same; it makes all but the pieces anew, whatever tokenizer.json says."""
        settings = bert_settings(self.tokenizer)
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        config: dict[str, Any] = (
            {"tokenizer_class": "BertTokenizer", **settings}
            if settings is not None
            else {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
        )
        tokens = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL_TOKENS}
        return config | {"model_max_length": 512} | tokens


def read_tokenizer(path: str | Path) -> tuple[Tokenizer, str]:
    """A tokenizer of whatever kind from a directory or its file, and the file's name.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"There is no tokenizer at {path}: give a directory with tokenizer.json or vocab.txt.")
    files = [path] if path.is_file() else [path / "tokenizer.json", path / "vocab.txt"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"{path} has neither tokenizer.json nor vocab.txt: give the directory of a tokenizer.")
    try:
        tokenizer = from_vocabulary_file(file) if file.suffix == ".txt" else Tokenizer.from_file(str(file))
    except UserError:
        raise
    except Exception as error:  # the library raises plain exceptions
        raise UserError(f"{file} cannot be read as a tokenizer ({error}): give an undamaged one.") from error
    return tokenizer, str(file)


def from_vocabulary_file(path: Path) -> Tokenizer:
    """A tokenizer from BERT's vocab.txt, as a tokenizer_config.json beside it says; without one, case is dropped."""
    pieces = vocabulary_lines(path)
    if "[UNK]" not in pieces:
        raise UserError(f"{path} is not a BERT vocabulary: it has no line [UNK].")
    config_path = path.parent / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    return from_pieces(
        pieces,
        config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        split_chinese=config.get("tokenize_chinese_chars", True),
    )


def vocabulary_lines(path: Path) -> list[str]:
    """The pieces of a vocab.txt by id, as transformers reads it: a line each, which only a line feed ends.

    White space at a line's end is dropped. A line of nothing else stays as it is: it stands for no text, but has an id.

    Raises:
        UserError: If a piece is there twice.
    """
    lines = path.read_bytes().decode("utf-8").split("\n")
    if lines[-1] == "":
        lines.pop()
    pieces = [line.rstrip(WHITE_SPACE) or line for line in lines]
    first: dict[str, int] = {}
    for number, piece in enumerate(pieces, 1):
        if first.setdefault(piece, number) != number:
            raise UserError(
                f"{path} has the piece {piece!r} in line {first[piece]} and again in line {number}: each must be there "
                "once, since its line is its id."
            )
    return pieces


def from_pieces(
    pieces: list[str],
    lowercase: bool,
    strip_accents: bool | None = None,
    split_chinese: bool = True,
    word_length: int = WORD_LENGTH,
) -> Tokenizer:
    """A tokenizer of BERT's kind.

    Args:
        pieces: In the order of their ids.
        lowercase: Whether case is dropped.
        strip_accents: Whether accents are; null drops them with the case.
        split_chinese: Whether every Chinese character is a word.
        word_length: Characters of the longest word that is taken apart; longer ones are unknown.
    """
    ids = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=word_length))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=split_chinese
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in pieces])
    if "[CLS]" in pieces and "[SEP]" in pieces:
        last, first = (("[SEP]", pieces.index("[SEP]")), ("[CLS]", pieces.index("[CLS]")))
        tokenizer.post_processor = processors.BertProcessing(last, first)
    return tokenizer


def bert_settings(tokenizer: Tokenizer) -> dict[str, bool | None] | None:
    """Settings by which transformers' BertTokenizer does the same as a tokenizer, or null if it cannot."""
    ours = json.loads(tokenizer.to_str())
    normalizer = ours["normalizer"] or {}
    if normalizer.get("type") != "BertNormalizer":
        return None
    pieces = pieces_of(tokenizer)
    flags = [normalizer[name] for name in ("lowercase", "strip_accents", "handle_chinese_chars")]
    bert = json.loads(from_pieces(pieces, *flags).to_str())
    if any(ours[part] != bert[part] for part in ("normalizer", "pre_tokenizer", "model", "added_tokens")):
        return None
    return dict(zip(("do_lower_case", "strip_accents", "tokenize_chinese_chars"), flags, strict=True))


def frequent_letters(texts: Iterable[str], normalizer: normalizers.Normalizer, limit: int) -> list[str]:
    """The letters that are left of a corpus after normalisation, the most frequent first, at most `limit` of them."""
    counts = numpy.zeros(sys.maxunicode + 1, dtype=numpy.int64)
    for part in joined(texts, 1_000_000):
        numpy.add(counts, numpy.bincount(numpy.frombuffer(part, numpy.uint32), minlength=len(counts)), out=counts)
    letters: Counter[str] = Counter()
    for code in numpy.flatnonzero(counts):
        for letter in normalizer.normalize_str(chr(code)):
            if not letter.isspace():
                letters[letter] += int(counts[code])
    return sorted(letters, key=lambda letter: (-letters[letter], letter))[:limit]


def joined(texts: Iterable[str], characters: int) -> Iterator[bytes]:
    """Texts in pieces of about so many characters, four bytes each."""
    words: list[str] = []
    size = 0
    for text in texts:
        words.append(text)
        size += len(text)
        if size >= characters:
            yield "".join(words).encode("utf-32-le", "surrogatepass")
            words, size = [], 0
    yield "".join(words).encode("utf-32-le", "surrogatepass")
