"""The numeric check of an export: the same seeded inputs through both libraries, and how far apart the outputs were."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor

from lit_pretrain.commands.exports.subject import Subject
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.required import required

# Largest difference of fp32 outputs whose largest value is 1 or less; in proportion to that value where it is larger.
TOLERANCE = 1e-4
SEED = 0
TEXTS = 6
PICTURES = 4
# Tokens of the longest text, where the positions do not set a lower limit.
LONGEST = 512
# What case, accents, punctuation, white space, foreign letters, characters that are left out, special tokens and
# nothing at all must survive: a vocabulary's own words tell little of that.
TRICKY = ["The END", "Ça", "naïve!", "3,14", "東京", "(e.g.)", "Straße", "don’t", "İE\u0301", "ＡＢ", "a\u00a0 b\tc"]
TRICKY += ["co\u00adop", "x\u200dy", "a\x07b", "👍🏽", "a[MASK]b", "[sep] [SEP]", ""]


class ExportMismatchError(RuntimeError):
    """What was written does not compute what the checkpoint does; the sentence says how far apart they are."""

    @classmethod
    def unloadable(cls, library: str, error: Exception) -> "ExportMismatchError":
        """The sentence for what another library does not load, its tensors missing or of another shape."""
        return cls(f"{library} does not load the export ({' '.join(str(error).split())[:200]}).")


@dataclass(frozen=True)
class Difference:
    """How far apart one output of both libraries is.

    Attributes:
        output: Name of the output.
        difference: Largest absolute difference of any element.
        largest: Largest absolute value of ours.
        inputs: What went in.
    """

    output: str
    difference: float
    largest: float
    inputs: str

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding explains."""
        return TOLERANCE * max(1.0, self.largest)

    @property
    def holds(self) -> bool:
        """Whether the difference is within it; NaN is not."""
        return self.difference <= self.tolerance

    def as_dictionary(self) -> dict[str, str | float]:
        """A row of plain values."""
        return {
            "output": self.output,
            "difference": self.difference,
            "tolerance": self.tolerance,
            "largest_value": self.largest,
            "inputs": self.inputs,
        }


def compare(output: str, ours: Tensor, expected: Tensor, inputs: str) -> Difference:
    """Compare two outputs of equal meaning.

    Raises:
        ExportMismatchError: If their shapes differ.
    """
    if ours.shape != expected.shape:
        raise ExportMismatchError(
            f"The export's {output} has shape {tuple(expected.shape)} where the checkpoint's has {tuple(ours.shape)}."
        )
    ours, expected = ours.float(), expected.float()
    return Difference(output, float((ours - expected).abs().max()), float(ours.abs().max()), inputs)


def worst_of_each(differences: list[Difference]) -> list[Difference]:
    """One row for each output: the one that is farthest apart; NaN is farther than anything."""
    worst: dict[str, Difference] = {}
    for difference in differences:
        worst_so_far = worst.get(difference.output)
        if (
            worst_so_far is None
            or worst_so_far.difference == worst_so_far.difference
            and not difference.difference <= worst_so_far.difference
        ):
            worst[difference.output] = difference
    return list(worst.values())


def judge(differences: list[Difference], library: str) -> str:
    """Say in one sentence how far apart the outputs were.

    Raises:
        ExportMismatchError: If that is farther than rounding explains.
    """
    broken = [difference for difference in differences if not difference.holds]
    if broken:
        named = " and ".join(
            f"{difference.output} by {difference.difference:.2g} (up to {difference.tolerance:.1g})"
            for difference in broken
        )
        raise ExportMismatchError(
            f"What was written computes something else in {library} than the checkpoint does here: they differ in "
            f"{named}; nothing was exported."
        )
    worst = max(differences, key=lambda one: one.difference)
    return (
        f"The outputs of {library} and of the checkpoint "
        f"({', '.join(difference.output for difference in differences)}) differ by "
        f"{worst.difference:.1e} at most, over {worst.inputs}."
    )


# -- inputs


@dataclass(frozen=True)
class TextBatch:
    """Texts, and the word pieces that this suite makes of them.

    Attributes:
        first: Texts.
        second: As many texts that follow them; null for none.
        inputs: `input_ids`, `attention_mask`, `token_type_ids`, each (B, N) int64, padded.
    """

    first: list[str]
    second: list[str] | None
    inputs: dict[str, Tensor]


def seeded_texts(subject: Subject) -> list[TextBatch]:
    """Texts and pairs of texts of different lengths, up to as many tokens as there are positions, and tricky ones."""
    encoder, tokenizer = subject.encoder, required(subject.tokenizer)
    generator = torch.Generator().manual_seed(SEED)
    longest = min(LONGEST, encoder.max_positions) if encoder.positions == "learned" else LONGEST
    batches = []
    # A tower is given one text, and what has one segment has no place for a second.
    for pairs in (False, True) if encoder.segments != 1 and subject.tower is None else (False,):
        texts, special = [], 2 + int(pairs) * tokenizer.separators
        for index in range(TEXTS):
            room = max(1 + int(pairs), round((longest - special) * (index + 1) / TEXTS))
            first = write_text(subject, room - room // 2 if pairs else room, generator)
            texts.append((first, write_text(subject, room // 2, generator) if pairs else ""))
        for place, first in enumerate(TRICKY):
            second = TRICKY[place - 1] if pairs else ""
            if len(tokenizer.encode(first) + tokenizer.encode(second)) + special <= longest:
                texts.append((first, second))
        batches.append(text_batch(tokenizer, texts, pairs))
    return batches


def text_batch(tokenizer: TextTokenizer, texts: list[tuple[str, str]], pairs: bool) -> TextBatch:
    """One batch of texts, or of pairs."""
    rows, kinds = [], []
    for first, second in texts:
        pieces = [tokenizer.cls_id, *tokenizer.encode(first), tokenizer.sep_id]
        pieces += [tokenizer.sep_id] * (tokenizer.separators - 1) if pairs else []
        follow = [*tokenizer.encode(second), tokenizer.sep_id] if pairs else []
        rows.append(pieces + follow)
        kinds.append([0] * len(pieces) + [1] * len(follow))
    length = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([row + [tokenizer.pad_id] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "token_type_ids": torch.tensor([kind + [0] * (length - len(kind)) for kind in kinds]),
    }
    return TextBatch([first for first, _ in texts], [second for _, second in texts] if pairs else None, inputs)


def write_text(subject: Subject, pieces: int, generator: torch.Generator) -> str:
    """A text of so many word pieces at most: words of the vocabulary at random."""
    tokenizer = required(subject.tokenizer)
    words = [piece for piece in tokenizer.vocabulary if piece.isalpha()] or TRICKY[:1]
    chosen: list[str] = []
    room = pieces
    while room > 0:
        # Some tokenizers have a piece for the space before a word.
        word = " " * bool(chosen) + words[int(torch.randint(len(words), (1,), generator=generator))]
        room -= len(tokenizer.encode(word))
        if room >= 0:
            chosen.append(word)
    return "".join(chosen)


def seeded_pictures(subject: Subject, count: int = PICTURES) -> dict[str, Tensor]:
    """Random pictures in [0, 1], (B, C, S, S)."""
    encoder = subject.encoder
    shape = (count, encoder.channels, encoder.image_size, encoder.image_size)
    return {"images": torch.rand(shape, generator=torch.Generator().manual_seed(SEED))}


def real_tokens(tokens: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Features (real tokens, D) without those of the padding, which mean nothing."""
    return tokens[inputs["attention_mask"].bool()]


# -- the other library


def require(packages: tuple[str, ...], format_name: str) -> None:
    """Raise a `UserError` with what to install if a package that the check needs is missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"--format {format_name} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed: pip install 'lit_pretrain[export]'."
        )


def named_version(package: str) -> str:
    """A library and its version, as sentences name it."""
    return f"{package} {version(package)}"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Leave out the progress bars and the tables of unused tensors that transformers prints."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
