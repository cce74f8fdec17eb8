"""Embeddings of short runs of word pieces, added to those of the pieces: fastText's hashed n-grams (Joulin et al. 2017,
arXiv:1607.01759) at the input of a Transformer, as the Byte Latent Transformer has them (Pagnoni et al. 2024,
arXiv:2412.09871, section 3.2.1).

"not good" is worth more than "not" and "good", and a Transformer has to find that out by attention, which takes long
training. A look-up in a large table says it at hardly any cost of computing: what it takes is memory, and text enough
to have seen most n-grams that matter.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_pretrain.errors import UserError

# A polynomial hash modulo a prime. Every intermediate result stays below 2 ** 62, so that it is the same everywhere.
PRIME = 2**31 - 1
MULTIPLIER = 1_103_515_245

LONGEST = 8


class NgramEmbeddings(nn.Module):
    """The sum of the embeddings of the n-grams that end at a token, 2 <= n <= `longest`.

    N-grams share the rows of a table by a hash. The table starts at zero, so that an n-gram which training never meets
    says nothing.

    Args:
        longest: Pieces of the longest n-grams, from 2.
        rows: Rows for the n-grams of each length.
        width: Features of a token.
    """

    def __init__(self, longest: int, rows: int, width: int) -> None:
        super().__init__()
        if not 2 <= longest <= LONGEST:
            raise UserError(f"encoder.ngrams is {longest}: give 1 for none, or the longest n-gram, up to {LONGEST}.")
        if not 1 <= rows < PRIME:
            raise UserError(f"encoder.ngram_rows is {rows}: give a number from 1 (such as 131072).")
        self.longest = longest
        self.rows = rows
        self.table = nn.Parameter(torch.zeros((longest - 1) * rows, width))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed what ends at each token of (B, N) word pieces; (B, N, D)."""
        return sum(functional.embedding(rows, self.table) for rows in ngram_rows(input_ids, self.longest, self.rows))


def ngram_rows(input_ids: Tensor, longest: int, rows: int) -> list[Tensor]:
    """Where the n-grams that end at each token stand in the table.

    Args:
        input_ids: (B, N) word pieces; before the first one stand pieces 0 ([PAD]).
        longest: Pieces of the longest n-grams.
        rows: Rows for each length.

    Returns:
        (B, N) for n = 2, then 3, and so on to `longest`.
    """
    ids = input_ids.long()
    found, hashed = [], ids
    for order in range(2, longest + 1):
        hashed = (functional.pad(hashed, (1, 0))[:, :-1] * MULTIPLIER + ids) % PRIME
        found.append(hashed % rows + (order - 2) * rows)
    return found
