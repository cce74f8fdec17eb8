"""Embeddings of short runs of word pieces, added to those of the pieces: fastText's n-grams (Joulin et al. 2017,
arXiv:1607.01759) at the input of a Transformer, as the Byte Latent Transformer has them (Pagnoni et al. 2024,
arXiv:2412.09871, section 3.2.1).

"not good" is worth more than "not" and "good", and a Transformer has to find that out by attention, which takes long
training. A look-up in a large table says it at hardly any cost of computing: what it takes is memory, and text enough
to have seen most n-grams that matter. Both papers let n-grams share rows by a hash. Here the most frequent ones have a
row each, and the others, most of which were seen once or twice, none: a table of less than half the size then does as
well. Which n-grams it knows belongs to the vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_pretrain.backbone.row_look_up import look_up
from lit_pretrain.errors import UserError

LONGEST = 3
# An n-gram is a number of n digits, each a piece and 1, such that those of all lengths differ and 3 digits fit int64.
BASE = 2**20
# Larger than any n-gram, for rows that the corpus has no n-gram for.
NONE = 2**62


class NgramEmbeddings(nn.Module):
    """The sum of the embeddings of the n-grams that end at a token, 2 <= n <= `longest`.

    The table starts at zero, so that what training never meets says nothing; row 0 stays zero, for n-grams without a
    row of their own.

    Args:
        longest: Pieces of the longest n-grams, from 2.
        rows: N-grams that can have a row, of all lengths together.
        width: Features of a token.
    """

    keys: Tensor

    def __init__(self, longest: int, rows: int, width: int) -> None:
        super().__init__()
        if not 2 <= longest <= LONGEST:
            raise UserError(f"encoder.ngrams is {longest}: give 1 for none, or the longest n-gram, up to {LONGEST}.")
        if rows < 1:
            raise UserError(f"encoder.ngram_rows is {rows}: give a number from 1 (such as 100000).")
        self.longest = longest
        self.rows = rows
        self.table = nn.Parameter(torch.zeros(rows + 1, width))
        self.register_buffer("keys", torch.full((rows,), -1, dtype=torch.int64))

    @property
    def known(self) -> bool:
        """Whether it has been said which n-grams there are."""
        return bool(self.keys[0] >= 0)

    def set_keys(self, keys: Tensor) -> None:
        """Say which n-grams have rows.

        Args:
            keys: (at most `rows`,) their numbers, ascending; see `ngram_keys`.
        """
        self.keys.fill_(NONE)
        self.keys[: len(keys)] = keys

    def forward(self, input_ids: Tensor, places: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Embed what ends at each token.

        Args:
            input_ids: (B, N) word pieces.
            places: (B, N) positions, from 0 at the beginning of each document; null where a row is one. No n-gram
                reaches from one document into the next.
            positions: (B, M) integers: of these tokens only; null means of all.

        Returns:
            (B, N, D), or (B, M, D).
        """
        rows_by_order = self.rows_of(input_ids)
        if places is not None:
            rows_by_order = [torch.where(places >= n, rows, 0) for n, rows in enumerate(rows_by_order, start=1)]
        if positions is not None:
            rows_by_order = [rows.gather(1, positions) for rows in rows_by_order]
        first, *others = (look_up(rows, self.table, padding_idx=0) for rows in rows_by_order)
        return sum(others, start=first)

    def sparse_tables(self, whole_pieces: bool) -> set[str]:
        """Tables of which a step reads some rows; see `lit_pretrain.modules.sparse_embeddings.sparse_tables`."""
        return {"table"}

    def rows_of(self, input_ids: Tensor) -> list[Tensor]:
        """(B, N) rows from 1 of the n-grams that end at each token, for n = 2, then 3; 0 for those without a row."""
        return [find_rows(self.keys, keys) for keys in ngram_keys(input_ids, self.longest)]


def check_vocabulary(vocabulary_size: int) -> None:
    """Refuse a vocabulary whose n-grams would be taken for each other.

    Args:
        vocabulary_size: Number of word pieces, each of which needs a digit of its own.

    Raises:
        UserError: If there are too many.
    """
    if vocabulary_size >= BASE:
        raise UserError(
            f"A vocabulary of {vocabulary_size} pieces is too large for encoder.ngrams, which can tell fewer than "
            f"{BASE} apart: set encoder.ngrams to 1."
        )


def ngram_keys(input_ids: Tensor, longest: int) -> list[Tensor]:
    """The n-grams that end at each token, as numbers.

    Args:
        input_ids: (..., N) word pieces, fewer than 2 ** 20 kinds.
        longest: Pieces of the longest n-grams.

    Returns:
        (..., N) for n = 2, then 3; 0, which is no n-gram's number, at the first n - 1 tokens, where none ends. What
        there is would be a shorter n-gram, whose row would be added a second time.
    """
    digits = input_ids.long() + 1
    keys_by_order, keys = [], digits
    for _ in range(2, longest + 1):
        before = functional.pad(keys, (1, 0))[..., :-1]
        keys = torch.where(before > 0, before * BASE + digits, 0)
        keys_by_order.append(keys)
    return keys_by_order


def ngram_pieces(key: int) -> list[int]:
    """The word pieces of an n-gram's number."""
    pieces: list[int] = []
    while key:
        key, digit = divmod(key, BASE)
        pieces.insert(0, digit - 1)
    return pieces


def find_rows(keys: Tensor, keys_to_find: Tensor) -> Tensor:
    """Rows from 1 of the numbers `keys_to_find` in ascending `keys`, 0 for those that are not among them."""
    last = len(keys) - 1
    if torch.compiler.is_exporting():
        place = search_by_steps(keys, keys_to_find)
    else:
        place = torch.searchsorted(keys, keys_to_find).clamp(max=last)
    return torch.where(keys[place] == keys_to_find, place + 1, 0)


def search_by_steps(keys: Tensor, keys_to_find: Tensor) -> Tensor:
    """Where the numbers `keys_to_find` stand in ascending `keys` of different numbers, if they do; elsewhere any place.

    A binary search in elementary steps, many kernels in the place of one: ONNX has no `searchsorted`.
    """
    last = len(keys) - 1
    place = torch.zeros_like(keys_to_find)
    step = 1 << last.bit_length()
    while step := step >> 1:
        ahead = (place + step).clamp(max=last)
        place = torch.where(keys[ahead] <= keys_to_find, ahead, place)
    return place
