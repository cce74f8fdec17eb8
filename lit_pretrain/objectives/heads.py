"""The head that turns features into word pieces, shared by the objectives that predict them."""

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.norms import NormKind, make_norm
from lit_pretrain.backbone.text_encoder import TextEncoder, initialise
from lit_pretrain.backbone.transformer import make_activation
from lit_pretrain.objectives.linear_cross_entropy import CrossEntropy, linear_cross_entropy
from lit_pretrain.required import required


class LanguageModelingHead(nn.Module):
    """Dense, GELU, layer norm, then a decoder tied to the token embedding plus a bias (arXiv:1810.04805, as released).

    GELU in the form that the encoder has, as in transformers; the exact one for an encoder with another activation. The
    norm is of the encoder's kind.

    Args:
        input_width: Features of a token.
        embedding_width: Width of the token embedding that the decoder is tied to.
        vocabulary_size: Number of word pieces.
        norm_epsilon: Epsilon of the norm.
        activation: The encoder's.
        norm_kind: `layer` or `rms`.
        norm_bias: Whether a layer norm has a bias.
    """

    def __init__(
        self,
        input_width: int,
        embedding_width: int,
        vocabulary_size: int,
        norm_epsilon: float,
        activation: str = "gelu",
        norm_kind: NormKind = "layer",
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(input_width, embedding_width)
        self.activation = make_activation(activation if "gelu" in activation else "gelu")
        self.norm = make_norm(embedding_width, norm_epsilon, norm_kind, norm_bias)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        initialise(self)

    @classmethod
    def for_encoder(cls, encoder: TextEncoder, input_width: int | None = None) -> "LanguageModelingHead":
        """A head that fits an encoder, from features of `input_width` (null: the encoder's own)."""
        width = encoder.width if input_width is None else input_width
        config = encoder.config
        norm = (config.norm_epsilon, config.activation, config.norm, config.norm_bias)
        return cls(width, encoder.width, required(encoder.vocabulary_size), *norm)

    def transform(self, features: Tensor) -> Tensor:
        """Map (..., D) to (..., embedding width), what the decoder reads."""
        return self.norm(self.activation(self.dense(features)))

    def logits(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Scores (..., V) of every word piece."""
        return nn.functional.linear(self.transform(features), embedding, self.bias)

    def cross_entropy(
        self, features: Tensor, embedding: Tensor, targets: Tensor, valid: Tensor, uniform: Tensor | None = None
    ) -> CrossEntropy:
        """Cross-entropy of (M, D) features with (M,) targets where `valid`; see `linear_cross_entropy`."""
        return linear_cross_entropy(self.transform(features), embedding, self.bias, targets, valid, uniform)

    @staticmethod
    def huggingface_names(attribute: str) -> dict[str, str]:
        """Names of the head's tensors, as an objective's `attribute`, and as Hugging Face's BERT classes call them."""
        transform = "cls.predictions.transform"
        return {
            f"{attribute}.dense.weight": f"{transform}.dense.weight",
            f"{attribute}.dense.bias": f"{transform}.dense.bias",
            f"{attribute}.norm.weight": f"{transform}.LayerNorm.weight",
            f"{attribute}.norm.bias": f"{transform}.LayerNorm.bias",
            f"{attribute}.bias": "cls.predictions.bias",
        }

    def forward_flops(self, rows: float) -> float:
        """Operations of the head's matrix products for so many rows."""
        width, vocabulary = self.dense.out_features, len(self.bias)
        return 2.0 * rows * width * (self.dense.in_features + vocabulary)
