"""Byte-pair encodings of public weights: CLIP's (Radford et al. 2021, arXiv:2103.00020), RoBERTa's and ModernBERT's.

CLIP's is read from a tokenizer.json, as the hub's CLIP repositories have, or made of the vocabulary that `open_clip`
brings in its package. Both put texts in lower case and make white space single. open_clip passes texts through `ftfy`
first, which straightens quotes, as is done here too, and repairs broken characters, and it resolves HTML's entities:
clean captions come out alike, such others need to be cleaned before.
"""

import gzip
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from lit_pretrain.data.text.base_tokenizer import TextTokenizer, ids_of, kind_of
from lit_pretrain.errors import UserError

# How the tokens that begin and end a text are called: by OpenAI and on the hub, and by open_clip.
ENDS = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))
# RoBERTa's, in the order of their ids.
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# ModernBERT's, by what they are for in the same order.
MODERNBERT_TOKENS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
END_OF_WORD = "</w>"
# Merges that CLIP uses, of more in the file: with 256 bytes, each inside and at the end of a word, 49,406 pieces.
MERGES = 49_152 - 256 - 2
# Letters that stand for a space, a line feed and a tab in pieces of bytes.
WHITE_SPACE = "\u0120\u010a\u0109"
# Curly quotes, and the straight one for each.
QUOTES = {"[\u02bc\u2018-\u201b]": "'", "[\u201c-\u201f]": '"'}
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class BytePairTokenizer(TextTokenizer):
    """CLIP's tokenizer: pieces of bytes, the last one of a word marked by "</w>".

    Args:
        tokenizer: A BPE tokenizer of the `tokenizers` library with CLIP's two special tokens.
        source: Where it comes from, for error messages.

    Raises:
        UserError: If it is of another kind or lacks a special token.
    """

    model = "BPE"

    def __init__(self, tokenizer: Tokenizer, source: str = "the tokenizer") -> None:
        kind = kind_of(tokenizer)
        if kind != self.model:
            raise UserError(f"{source} is a {kind} tokenizer, not the byte-pair encoding of CLIP.")
        ends = next((ends for ends in ENDS if all(tokenizer.token_to_id(end) is not None for end in ends)), None)
        if ends is None:
            raise UserError(
                f"{source} has neither {' nor '.join(ENDS[0])}, nor RoBERTa's {ROBERTA_TOKENS[0]}, nor ModernBERT's "
                f"{MODERNBERT_TOKENS[0]}: use the tokenizer of one of these."
            )
        super().__init__(tokenizer, *ends, source)
        # As open_clip fills sequences up; nothing reads what comes after the end.
        self.pad_id = 0

    def post_processor(self) -> Any:
        """The tokens that begin and end a text."""
        begin, end = self.id_to_token(self.cls_id), self.id_to_token(self.sep_id)
        return processors.TemplateProcessing(
            single=[begin, "$A", end],
            pair=[begin, "$A", end, "$B", end],
            special_tokens=[(begin, self.cls_id), (end, self.sep_id)],
        )

    def transformers_config(self) -> dict[str, Any]:
        """Sequences are filled up with the token that ends them, as by the hub's CLIPs; nothing reads what follows."""
        begin, end = self.id_to_token(self.cls_id), self.id_to_token(self.sep_id)
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 77,
            "bos_token": begin,
            "eos_token": end,
            "pad_token": end,
        }

    @classmethod
    def of_open_clip(cls) -> "BytePairTokenizer | None":
        """The tokenizer of the vocabulary in the `open_clip` package, or null if that is not installed."""
        package = find_spec("open_clip")
        folders = package.submodule_search_locations if package is not None else None
        paths = [Path(folder) / VOCABULARY for folder in folders or ()]
        return next((cls(from_merges(path)) for path in paths if path.is_file()), None)


class BytePieceTokenizer(TextTokenizer):
    """Pieces of bytes, those that begin a word with a space, and special tokens by which pieces can be hidden.

    Args:
        tokenizer: A BPE tokenizer of the `tokenizers` library with the five special tokens.
        source: Where it comes from, for error messages.

    Raises:
        UserError: If it is of another kind or lacks a special token.
    """

    model = "BPE"
    # What begins a text, fills it up, ends it, stands for what has no piece, and hides a piece.
    tokens: ClassVar[tuple[str, str, str, str, str]]
    # Whose they are.
    family: ClassVar[str]

    def __init__(self, tokenizer: Tokenizer, source: str = "the tokenizer") -> None:
        kind = kind_of(tokenizer)
        missing = [token for token in self.tokens if tokenizer.token_to_id(token) is None]
        if kind != self.model or missing:
            lacking = f"without {' and '.join(missing)}" if missing else ""
            raise UserError(
                f"{source} is a {kind} tokenizer {lacking}, not {self.family}'s: use the one of its weights."
            )
        super().__init__(tokenizer, self.tokens[0], self.tokens[2], source)
        ids = ids_of(tokenizer, self.tokens)
        self.cls_id, self.pad_id, self.sep_id, self.unk_id, self.mask_id = ids
        self.special_ids = sorted(ids)

    @cached_property
    def continuation_mask(self) -> numpy.ndarray:
        """(V,) booleans, True where a piece continues a word: no white space begins it, as RoBERTa's authors do."""
        special = set(self.tokens)
        # Some have pieces of several spaces as they are.
        begins = [piece[:1] in WHITE_SPACE or piece[:1].isspace() for piece in self.vocabulary]
        return numpy.array(
            [not one and piece not in special for one, piece in zip(begins, self.vocabulary, strict=True)]
        )

    def transformers_config(self) -> dict[str, Any]:
        """Special tokens by what each is for."""
        begin, pad, end, unknown, mask = self.tokens
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 512,
            **{f"{name}_token": begin for name in ("bos", "cls")},
            **{f"{name}_token": end for name in ("eos", "sep")},
            "pad_token": pad,
            "unk_token": unknown,
            "mask_token": mask,
        }


class RobertaTokenizer(BytePieceTokenizer):
    """RoBERTa's tokenizer (Liu et al. 2019, arXiv:1907.11692), with two tokens between a pair's texts."""

    separators = 2
    tokens = ROBERTA_TOKENS
    family = "RoBERTa"

    def post_processor(self) -> Any:
        """The tokens that begin, part and end texts."""
        return processors.RobertaProcessing(("</s>", self.sep_id), ("<s>", self.cls_id))


class ModernBertTokenizer(BytePieceTokenizer):
    """ModernBERT's tokenizer (Warner et al. 2024, arXiv:2412.13663): OLMo's pieces of bytes, BERT's special tokens."""

    tokens = MODERNBERT_TOKENS
    family = "ModernBERT"

    def post_processor(self) -> Any:
        """The tokens that begin and end texts."""
        begin, _, end, _, _ = self.tokens
        return processors.TemplateProcessing(
            single=[begin, "$A", end],
            pair=[begin, "$A", end, "$B", end],
            special_tokens=[(begin, self.cls_id), (end, self.sep_id)],
        )


def from_merges(path: Path) -> Tokenizer:
    """A tokenizer from CLIP's list of merges, a line each after one of version, in the order of their ids."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in map(str.split, lines[1 : 1 + MERGES])]
    letters = byte_letters()
    pieces = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges), *ENDS[0]]
    model = BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        unk_token=ENDS[0][1],
        continuing_subword_prefix="",
        end_of_word_suffix=END_OF_WORD,
    )
    tokenizer = Tokenizer(model)
    quotes = [normalizers.Replace(Regex(curly), straight) for curly, straight in QUOTES.items()]
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([*quotes, normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    letters_of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters_of_bytes])
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(END_OF_WORD, " ")])
    tokenizer.add_special_tokens(list(ENDS[0]))
    return tokenizer


def byte_letters() -> list[str]:
    """A visible letter for each of the 256 bytes, in CLIP's order: first those that are visible as they are."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + index) for index in range(len(hidden))]
