"""Text on the shared Transformer: BERT's encoder (Devlin et al. 2019, arXiv:1810.04805), with rotary positions as an
option, or CLIP's causal one (Radford et al. 2021, arXiv:2103.00020), answering the same questions as timm's models do
(forward_features, forward_head, group_matcher, ...).
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.config import BertSize, TransformerConfig
from lit_pretrain.backbone.embeddings import TextEmbeddings, check_length
from lit_pretrain.backbone.packed_rows import places_within
from lit_pretrain.backbone.pooling import (
    AttentionPooling,
    BertPooler,
    Pooling,
    last_token,
    mean_pool,
    up_to_end_of_text,
)
from lit_pretrain.backbone.public_weights import copy_public_weights
from lit_pretrain.backbone.rotary import Rotation, rotation_for
from lit_pretrain.backbone.transformer import Transformer, initialise
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.required import required
from lit_pretrain.weights import huggingface_text
from lit_pretrain.weights.public import PublicWeights

# Of all layers, or of global and of local ones; empty without rotary positions.
Rotations = tuple[Rotation, ...]


class TextEncoder(nn.Module):
    """Word pieces in, one feature vector a token out.

    Args:
        vocabulary_size: Number of word pieces; null takes the tokenizer's when training starts.
        size: A published BERT size, which sets the Transformer's depth, width and heads; null keeps `transformer`'s.
        transformer: Settings of the shared Transformer.
        positions: `learned` (BERT, up to `max_positions` tokens) or `rotary` (any length).
        max_positions: Rows of the learned position table.
        segments: Segment embeddings (2 for sentence A and B, 0 for none).
        embedding_norm: Whether the embeddings' sum is normalised (BERT).
        pooling: How `forward_head` makes one vector: `mean`, `cls`, `pooler` (BERT's dense and tanh), `map` or
            `end_of_text` (CLIP's, with `causal`).
        rotary_base: Base of the rotary frequencies.
        local_rotary_base: Base of those of local layers (`transformer.attention_window`); null for the same.
        causal: Whether a token never sees later ones, so that padding, which follows a text, needs no mask (CLIP).
        ngrams: Pieces of the longest n-grams that have embeddings of their own, added to the tokens'; 1 for none.
        ngram_rows: How many n-grams have one: the most frequent ones of the corpus, when training starts.
    """

    def __init__(
        self,
        vocabulary_size: int | None = None,
        size: BertSize | None = None,
        transformer: TransformerConfig = TransformerConfig(),  # noqa: B008 (frozen, so sharing it is safe)
        positions: Literal["learned", "rotary"] = "learned",
        max_positions: int = 512,
        segments: int = 2,
        embedding_norm: bool = True,
        pooling: Pooling = "mean",
        rotary_base: float = 10_000.0,
        causal: bool = False,
        ngrams: int = 1,
        ngram_rows: int = 100_000,
        local_rotary_base: float | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("vocabulary_size", vocabulary_size, 1),
            ("max_positions", max_positions, 1),
            ("segments", segments, 0),
            ("ngram_rows", ngram_rows, 1),
        ):
            check_number(f"encoder.{name}", value, least=least)
        check_number("encoder.rotary_base", rotary_base, above=0)
        check_number("encoder.local_rotary_base", local_rotary_base, above=0)
        config = transformer if size is None else transformer.sized(size)
        head_width = config.width // config.resolved_heads
        if positions == "rotary" and head_width % 2:
            raise UserError(
                f"Rotary positions turn pairs of features, but a head has {head_width}: choose width and heads so that "
                "their quotient is even."
            )
        if local_rotary_base is not None and (positions != "rotary" or config.attention_window is None):
            raise UserError(
                f"encoder.local_rotary_base is {local_rotary_base}, of rotary positions in local layers: set "
                "encoder.positions to rotary and transformer.attention_window, or leave it out."
            )
        self.width = config.width
        self.positions = positions
        self.max_positions = max_positions
        self.segments = segments
        self.embedding_norm = embedding_norm
        self.pooling = pooling
        self.rotary_base = rotary_base
        self.local_rotary_base = local_rotary_base
        self.causal = causal
        self.ngrams = ngrams
        self.ngram_rows = ngram_rows
        self.embeddings = TextEmbeddings(
            vocabulary_size=None,
            width=config.width,
            max_positions=max_positions,
            positions=positions,
            segments=segments,
            norm=embedding_norm,
            norm_epsilon=config.norm_epsilon,
            dropout=config.dropout,
            ngrams=ngrams,
            ngram_rows=ngram_rows,
            norm_kind=config.norm,
            norm_bias=config.norm_bias,
        )
        self.transformer = Transformer(config)
        self.pooler: BertPooler | AttentionPooling | None = None
        if pooling == "pooler":
            self.pooler = BertPooler(config.width)
        elif pooling == "map":
            self.pooler = AttentionPooling(config)
        initialise(self)
        if vocabulary_size is not None:
            self.set_vocabulary(vocabulary_size)
        self._rotations: dict[torch.device, Rotations] = {}
        self.check_pooling()

    # -- what it is made of

    @property
    def config(self) -> TransformerConfig:
        """Settings of the Transformer inside."""
        return self.transformer.config

    @property
    def vocabulary_size(self) -> int | None:
        """Number of word pieces, or null while the tokenizer is unknown."""
        return None if self.embeddings.token is None else self.embeddings.token.num_embeddings

    def set_vocabulary(self, vocabulary_size: int) -> None:
        """Make the token table once the tokenizer is known; a smaller table is a `UserError`."""
        self.embeddings.set_vocabulary(vocabulary_size)

    def grow_vocabulary(self, first: int, replaced: Sequence[Sequence[int]]) -> None:
        """Give new pieces embeddings, each the mean of those that it takes the place of.

        Args:
            first: Id of the first of them.
            replaced: Of each the ids of the pieces before.

        Raises:
            UserError: If the encoder has embeddings for n-grams of the old pieces.
        """
        self.embeddings.grow_vocabulary(first, replaced)

    @property
    def lacks_ngrams(self) -> bool:
        """Whether it has embeddings for n-grams, and nobody has said yet for which."""
        return self.embeddings.ngrams is not None and not self.embeddings.ngrams.known

    def settings(self) -> dict[str, Any]:
        """Arguments that build this encoder again, primitives only; `TextEncoder.from_settings` reads them."""
        names = ["positions", "max_positions", "segments", "embedding_norm", "pooling", "rotary_base", "causal"]
        names += ["ngrams", "ngram_rows", "local_rotary_base"]
        settings = {"vocabulary_size": self.vocabulary_size, "transformer": asdict(self.config)}
        return settings | {name: getattr(self, name) for name in names}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "TextEncoder":
        """Build an encoder from what `settings` returned; its weights are fresh.

        A causal one may have a pooling that is refused today: such checkpoints have been written, and load.
        """
        arguments = settings | {"transformer": TransformerConfig(**settings["transformer"])}
        encoder = cls(**arguments | {"causal": False})
        encoder.causal = arguments.get("causal", False)
        return encoder

    def check_pooling(self) -> None:
        """Raise `UserError` if all texts would have the same pooled features, before any training."""
        if self.causal and self.pooling in ("cls", "pooler"):
            raise UserError(
                f"pooling: {self.pooling} reads the first token, which sees no other where attention is causal, so "
                "that all texts would have the same features: set pooling to mean or map, or encoder.causal to false."
            )

    @classmethod
    def from_public(cls, weights: PublicWeights) -> "TextEncoder":
        """Build an encoder that computes what a public checkpoint does, in evaluation mode; its head is left to others.

        Raises:
            UserError: If its tensors are not those that its settings ask for.
        """
        encoder = cls.from_settings(weights.settings)
        copy_public_weights(encoder, weights)
        return encoder.eval()

    @classmethod
    def from_pretrained(cls, path_or_hub_name: str | Path) -> "TextEncoder":
        """Load a public BERT, RoBERTa, DistilBERT or ModernBERT, in evaluation mode; what is left out is said.

        Args:
            path_or_hub_name: A directory in the format of transformers, or a name on the hub; see
                `lit_pretrain.weights.huggingface_text.load_weights`.

        Raises:
            UserError: If a file is missing, the model is none of these, or its tensors do not match its config.
        """
        weights = huggingface_text.load_weights(path_or_hub_name)
        weights.report_left_out()
        return cls.from_public(weights)

    def save_pretrained(self, directory: str | Path, heads: tuple[nn.Module, ...] = ()) -> None:
        """Write weights that transformers loads; see `lit_pretrain.weights.huggingface_text.save_weights`."""
        settings = self.settings() | {"transformer": asdict(self.config.resolved())}
        huggingface_text.save_weights(settings, self.state_dict(), directory, heads)

    def fits_public_format(self) -> bool:
        """Whether transformers' formats have a place for all of it, so that `save_pretrained` can write it."""
        try:
            huggingface_text.refuse_what_is_lacking(self.settings() | {"transformer": asdict(self.config.resolved())})
        except UserError:
            return False
        return True

    # -- timm's protocol

    def forward_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        causal: bool = False,
        padded: bool = True,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Encode word pieces.

        Args:
            input_ids: (B, N) integers.
            attention_mask: (B, N), or as `positions`, True or 1 where a token is real; null when all are.
            token_type_ids: (B, N) segments; null means the first for all.
            causal: Whether a token sees only itself and earlier ones; always so if the encoder is causal. Padding then
                has to follow the texts.
            padded: Whether the mask may be False or 0 anywhere. Where it is known not to be, attention runs without it.
            positions: (B, M) integers: of these tokens only, in this order; null means of all. The others are left out
                of the blocks, and take part as neighbours in n-grams alone.
            documents: (B, N) integers, the document of its row that a token belongs to, -1 of padding; each is encoded
                as if it were alone. Null where a row is one document.

        Returns:
            (B, N, D) features, or (B, M, D).
        """
        places = None if documents is None else places_within(documents)
        tokens = self.embeddings(input_ids, token_type_ids, places, positions)
        mask = self.needed_mask(attention_mask, causal, padded)
        rotations = self.rotations(input_ids.shape[1], tokens.device)
        if positions is not None:
            places = positions if places is None else places.gather(1, positions)
            documents = None if documents is None else documents.gather(1, positions)
        if places is not None:
            rotations = rotations_at(rotations, places)
        return self.transformer(
            tokens, mask, causal or self.causal, *rotations, positions=positions, documents=documents
        )

    def forward_intermediates(
        self,
        input_ids: Tensor,
        indices: Sequence[int],
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        causal: bool = False,
        padded: bool = True,
    ) -> list[Tensor]:
        """Features after some blocks, for probing; see `Transformer.forward_intermediates`.

        Args:
            input_ids: (B, N) integers.
            indices: Which blocks, from 0, or negative from the end.
            attention_mask: As for `forward_features`.
            token_type_ids: As for `forward_features`.
            causal: As for `forward_features`.
            padded: As for `forward_features`.

        Returns:
            (B, N, D) for every index, the last block's with the final norm if there is one.
        """
        tokens = self.embeddings(input_ids, token_type_ids)
        mask = self.needed_mask(attention_mask, causal, padded)
        rotations = self.rotations(input_ids.shape[1], tokens.device)
        return self.transformer.forward_intermediates(tokens, indices, mask, causal or self.causal, *rotations)

    def needed_mask(self, attention_mask: Tensor | None, causal: bool = False, padded: bool = True) -> Tensor | None:
        """The mask, or None where nothing is padded or no token sees the padding that follows it.

        Attention without one is faster: flash attention takes none, and the causal one need not be made.
        """
        return None if causal or self.causal or not padded else attention_mask

    def forward_head(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Pool (B, N, D) features to (B, D), over the real tokens only."""
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "mean":
            return mean_pool(tokens, attention_mask)
        if self.pooling == "end_of_text":
            return last_token(tokens, attention_mask)
        pooler = required(self.pooler)
        return pooler(tokens, attention_mask) if self.pooling == "map" else pooler(tokens)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        padded: bool = True,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Pooled features (B, D) of word pieces (B, N); see `forward_features`.

        Where a text ends is read off its ids if there is no mask and `end_of_text` is pooled.
        """
        if attention_mask is None and self.pooling == "end_of_text":
            attention_mask = up_to_end_of_text(input_ids)
        tokens = self.forward_features(input_ids, attention_mask, token_type_ids, padded=padded, positions=positions)
        return self.forward_head(tokens, attention_mask)

    def no_weight_decay(self) -> set[str]:
        """Parameters that must not decay although they have several dimensions: the learned query that pools.

        BERT decays its embeddings, positions and segments among them.
        """
        if self.pooling != "map":
            return set()
        return {f"pooler.{name}" for name in cast(AttentionPooling, self.pooler).no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that say which layer a parameter belongs to, in timm's form, for layer decay and freezing.

        The embeddings, every block, and what follows the last block, as in `VisionEncoder`; the third has no parameters
        where `post` norms and a pooling without any leave nothing. There is no coarser grouping.
        """
        return {
            "stem": r"^embeddings",
            "blocks": r"^transformer\.blocks\.(\d+)",
            "head": r"^(?:transformer\.final_norm|pooler)",
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each block's activations in the backward pass."""
        self.transformer.set_grad_checkpointing(enable)

    def compile_blocks(self) -> None:
        """Compile every block of the Transformer in place."""
        self.transformer.compile_blocks()

    # -- positions and cost

    def check_length(self, sequence_length: int) -> None:
        """Raise `UserError` if sequences of this length have no position, before any training."""
        if self.positions == "learned":
            check_length(sequence_length, self.max_positions)

    def rotations(self, length: int, device: torch.device) -> Rotations:
        """What `make_rotations` gives for `length` tokens.

        They are the beginning of tables that are kept for each device and made anew for the longest text so far.
        """
        tables = self._rotations.get(device)
        if tables is None or (tables and len(tables[0][0]) < length):
            # Evaluation may come first, and what inference mode makes cannot be saved for a backward pass later.
            with torch.inference_mode(False), torch.no_grad():
                tables = self.make_rotations(length, device, self.width // self.config.resolved_heads)
            self._rotations[device] = tables
        return tuple((cosine[:length], sine[:length]) for cosine, sine in tables)

    def make_rotations(self, length: int, device: torch.device, head_width: int) -> Rotations:
        """Rotary cosines and sines (`length`, `head_width` / 2), as a Transformer takes them.

        Those of all layers; or those of global layers, then of local ones; none for learned positions.
        """
        if self.positions == "learned":
            return ()
        places = torch.arange(length, device=device)
        bases = [self.rotary_base] if self.local_rotary_base is None else [self.rotary_base, self.local_rotary_base]
        return tuple(rotation_for(places, head_width, base) for base in bases)


def rotations_at(rotations: Rotations, places: Tensor) -> Rotations:
    """Rotations of (B, N) places that differ from row to row: (B, 1, N, features), the same for all heads."""
    return tuple((cosine[places][:, None], sine[places][:, None]) for cosine, sine in rotations)
