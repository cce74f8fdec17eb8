"""How many pieces of texts are the one that stands for all that the vocabulary has not: such words are all alike.

A model that learns from little else reaches a loss of nearly zero and knows nothing.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy

from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.errors import UserError

# Share of unknown pieces above which texts are refused.
MOST = 0.5
# Texts that are looked through for an example.
LOOKED_AT = 1000
# Characters of a text's beginning, and the share of unknown pieces in such beginnings that is enough to refuse all.
LENGTH = 1000
NEARLY_ALL = 0.75


def unknown_pieces(tokens: numpy.ndarray, tokenizer: TextTokenizer) -> int:
    """How many of (T,) pieces are unknown; none where every text has pieces."""
    return 0 if tokenizer.unk_id is None else int(numpy.count_nonzero(numpy.asarray(tokens) == tokenizer.unk_id))


def share_told(unknown: int, total: int) -> str:
    """The share in a few words."""
    return f"{unknown / max(1, total):.1%} of them unknown"


def check_known(
    unknown: int,
    total: int,
    tokenizer: TextTokenizer,
    source: str,
    texts: Iterable[str],
    advice: str = "",
) -> None:
    """Refuse texts that a tokenizer has hardly any pieces for.

    Args:
        unknown: Unknown pieces.
        total: All pieces.
        tokenizer: What made them.
        source: What a person knows the texts by.
        texts: Of which some are looked through for an unknown word.
        advice: What to do where no other tokenizer will do, as that of weights; empty for giving another.

    Raises:
        UserError: If more than half of the pieces are unknown.
    """
    if unknown <= MOST * total:
        return
    words = (unknown_word(text, tokenizer) for text in islice(texts, LOOKED_AT))
    word = next((word for word in words if word is not None), "")
    limit = tokenizer.word_length
    if limit is not None and len(word) > limit:
        why = f"'{word[:30]}...' has {len(word):,} characters, and words of more than {limit} are not taken apart"
        advice = "set data.word_length for a tokenizer that is trained here, or put spaces between the parts of words"
    else:
        why = f"it has none for '{word[:30]}', say"
        advice = (
            advice or "give another data.tokenizer, or null to train one on these texts, or raise data.vocabulary_size"
        )
    raise UserError(
        f"The tokenizer has no pieces for {unknown / total:.0%} of what {source} holds ({why}), which would all be one "
        f"and the same: {advice}."
    )


def check_some(texts: Sequence[str], tokenizer: TextTokenizer, source: str, advice: str = "") -> None:
    """As `check_known`, of the beginnings of a few texts, before all of them are tokenised.

    Args:
        texts: From all over a corpus.
        tokenizer: What makes the pieces.
        source: As there.
        advice: As there.

    Raises:
        UserError: If nearly all pieces are unknown; where it is a matter of some per cent, all are counted.
    """
    beginnings = [text[:LENGTH] for text in texts]
    pieces = numpy.array([piece for ids in tokenizer.encode_batch(beginnings) for piece in ids], dtype=numpy.int64)
    unknown = unknown_pieces(pieces, tokenizer)
    if unknown > NEARLY_ALL * len(pieces):
        check_known(unknown, len(pieces), tokenizer, source, beginnings, advice)


def unknown_word(text: str, tokenizer: TextTokenizer) -> str | None:
    """The first word of a text that has no pieces, or null."""
    encoded = tokenizer.tokenizer.encode(text, add_special_tokens=False)
    places = [place for place, piece in enumerate(encoded.ids) if piece == tokenizer.unk_id]
    if not places:
        return None
    start, end = encoded.offsets[places[0]]
    return text[start:end]
