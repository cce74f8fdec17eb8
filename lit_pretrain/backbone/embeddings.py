"""From word pieces to tokens: BERT's sum of token, position and segment embeddings (arXiv:1810.04805, section 3)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.dropout import Dropout
from lit_pretrain.backbone.ngram_embeddings import NgramEmbeddings, check_vocabulary
from lit_pretrain.backbone.norms import NormKind, make_norm
from lit_pretrain.backbone.row_look_up import look_up
from lit_pretrain.errors import UserError


class TextEmbeddings(nn.Module):
    """Token + position + segment embeddings, then layer norm and dropout.

    Args:
        vocabulary_size: Number of word pieces; null leaves the token table to `set_vocabulary`.
        width: Features of a token.
        max_positions: Rows of the learned position table.
        positions: `learned` (BERT) or `rotary`, which leaves positions to the attention.
        segments: Number of segments (sentence A and B); 0 for none.
        norm: Whether the sum is normalised (BERT).
        norm_epsilon: Epsilon of that norm.
        dropout: Dropout after it.
        ngrams: Pieces of the longest n-grams that have embeddings too; 1 for none.
        ngram_rows: How many n-grams have one.
        norm_kind: `layer` or `rms`.
        norm_bias: Whether a layer norm has a bias.
    """

    def __init__(
        self,
        vocabulary_size: int | None,
        width: int,
        max_positions: int = 512,
        positions: Literal["learned", "rotary"] = "learned",
        segments: int = 2,
        norm: bool = True,
        norm_epsilon: float = 1e-12,
        dropout: float = 0.0,
        ngrams: int = 1,
        ngram_rows: int = 100_000,
        norm_kind: NormKind = "layer",
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.max_positions = max_positions
        self.token: nn.Embedding | None = None
        self.position = nn.Embedding(max_positions, width) if positions == "learned" else None
        self.segment = nn.Embedding(segments, width) if segments else None
        self.ngrams = NgramEmbeddings(ngrams, ngram_rows, width) if ngrams != 1 else None
        self.norm = make_norm(width, norm_epsilon, norm_kind, norm_bias) if norm else nn.Identity()
        self.dropout = Dropout(dropout) if dropout else nn.Identity()
        if vocabulary_size is not None:
            self.set_vocabulary(vocabulary_size)

    def set_vocabulary(self, vocabulary_size: int) -> None:
        """Make the token table, once the tokenizer is known.

        A table may have more rows than there are pieces, as many public ones have, filled up to a round number.

        Raises:
            UserError: If there is a smaller table already, or there are more pieces than n-grams can number.
        """
        if self.ngrams is not None:
            check_vocabulary(vocabulary_size)
        if self.token is None:
            self.token = nn.Embedding(vocabulary_size, self.width)
            nn.init.normal_(self.token.weight, std=0.02)
        elif self.token.num_embeddings < vocabulary_size:
            raise UserError(
                f"The encoder has {self.token.num_embeddings} word pieces and the tokenizer {vocabulary_size}: give "
                "encoder.vocabulary_size the tokenizer's value, or null to take it from the tokenizer; weights need "
                "the tokenizer that they were trained with."
            )

    def check_growing(self) -> None:
        """Refuse new pieces where n-grams of the old ones have embeddings, which new ones would take apart.

        Raises:
            UserError: In one sentence.
        """
        if self.ngrams is not None and self.ngrams.known:
            raise UserError(
                f"The encoder has embeddings for up to {self.ngrams.longest} word pieces together (ngrams), which new "
                "pieces would take apart: leave data.new_pieces out, or start from an encoder with ngrams: 1."
            )

    def grow_vocabulary(self, first: int, replaced: Sequence[Sequence[int]]) -> None:
        """Give new pieces rows, each of which is the mean of the rows that it takes the place of; see `grown_rows`.

        Raises:
            UserError: If n-grams of the old pieces have embeddings, which new ones would take apart.
        """
        self.check_growing()
        if self.ngrams is not None:
            check_vocabulary(first + len(replaced))
        if self.token is None:
            raise UserError("The encoder has no vocabulary yet: give vocabulary_size, or call set_vocabulary first.")
        with torch.no_grad():
            rows = grown_rows(self.token.weight, first, replaced)
        self.token = nn.Embedding.from_pretrained(rows, freeze=not self.token.weight.requires_grad)

    def sparse_tables(self, whole_pieces: bool) -> set[str]:
        """Tables of which a step reads some rows; see `lit_pretrain.modules.sparse_embeddings.sparse_tables`.

        Args:
            whole_pieces: Whether the table of word pieces is updated as a whole, as it must be where it predicts them.
        """
        return set() if whole_pieces or self.token is None else {"token.weight"}

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        places: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Embed word pieces.

        Args:
            input_ids: (B, N) word pieces.
            token_type_ids: (B, N) segments; null means all in the first.
            places: (B, N) positions, from 0 at the beginning of each document; null where a row is one.
            positions: (B, M) integers: of these tokens only, in this order; null means of all. The others take part as
                neighbours in n-grams alone.

        Returns:
            (B, N, D) tokens, or (B, M, D).

        Raises:
            UserError: If the sequence is longer than the position table, or the token table is not made yet.
        """
        if self.token is None:
            raise UserError("The encoder has no vocabulary yet: give vocabulary_size, or call set_vocabulary first.")
        length = input_ids.shape[1]
        ngrams = None if self.ngrams is None else self.ngrams(input_ids, places, positions)
        if positions is not None:
            input_ids = input_ids.gather(1, positions)
            token_type_ids = None if token_type_ids is None else token_type_ids.gather(1, positions)
            places = positions if places is None else places.gather(1, positions)
        tokens = look_up(input_ids, self.token.weight)
        if ngrams is not None:
            # Both are this call's own; without blocks a third tensor of this size is much of a step's memory.
            tokens = tokens.add_(ngrams)
            del ngrams
        if self.position is not None:
            check_length(length, self.max_positions)
            rows = self.position.weight[:length]
            tokens = tokens + (rows if places is None else look_up(places, rows))
        if self.segment is not None:
            if token_type_ids is None:
                tokens = tokens + self.segment.weight[0]
            elif self.segment.num_embeddings == 2:
                # Interpolating between two rows is exact for 0 and 1, and far cheaper in the backward pass than a
                # table look-up, which adds every token's gradient into one of two rows one after the other.
                first, second = self.segment.weight
                tokens = torch.addcmul(tokens + first, token_type_ids[..., None].to(tokens.dtype), second - first)
            else:
                tokens = tokens + self.segment(token_type_ids)
        return self.dropout(self.norm(tokens))


def grown_rows(table: Tensor, first: int, replaced: Sequence[Sequence[int]]) -> Tensor:
    """A table of word pieces, or what else has a row or a number for each, with rows for new pieces.

    Args:
        table: (V, ...); it may have more rows than there were pieces.
        first: Id of the first new piece.
        replaced: Of each new piece the ids of those that it takes the place of.

    Returns:
        (max(V, first + new pieces), ...); a new row is the mean of the old ones.
    """
    if not replaced:
        return table.clone()
    grown = table.new_zeros((max(len(table), first + len(replaced)), *table.shape[1:]))
    grown[: len(table)] = table
    grown[first : first + len(replaced)] = torch.stack([table[list(ids)].mean(dim=0) for ids in replaced])
    return grown


def check_length(length: int, max_positions: int) -> None:
    """Refuse a sequence that has no position embedding, with a sentence rather than an index error."""
    if length > max_positions:
        raise UserError(
            f"A sequence of {length} tokens is longer than the position table of {max_positions}: shorten "
            "data.sequence_length (data.maximum_length of labelled texts), raise encoder.max_positions "
            "(model.grow.max_positions with model.init_from), or use positions: rotary."
        )
