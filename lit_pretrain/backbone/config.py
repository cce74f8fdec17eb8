"""The settings of the shared Transformer, and the published sizes of BERT and ViT.

Every option exists because a public checkpoint needs it: BERT (Devlin et al. 2019, arXiv:1810.04805) is post-norm with
an epsilon of 1e-12; ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) and CLIP (Radford et al. 2021, arXiv:2103.00020)
are pre-norm, CLIP with quick GELU; DeiT III (Touvron et al. 2022, arXiv:2204.07118) adds LayerScale and stochastic
depth; DINOv2 (Oquab et al. 2023, arXiv:2304.07193) has a SwiGLU in its largest. ModernBERT (Warner et al. 2024,
arXiv:2412.13663) and with it Ettin (Weller et al. 2025, arXiv:2507.11412) have GeGLU, no biases in layers and norms,
no norm before the first attention, and windows in two layers of three; EuroBERT (Boizard et al. 2025,
arXiv:2503.05500) has RMS norms.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from lit_pretrain.backbone.norms import NormKind
from lit_pretrain.errors import UserError, check_number, nearest

BertSize = Literal["tiny", "mini", "small", "medium", "base", "large"]
VitSize = Literal["tiny", "small", "base", "large"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu", "geglu"]
# Of these, those whose feed-forward has a gate: three matrices in the place of two.
GATED = ("swiglu", "geglu")

# depth, width, heads as released by the authors (Turc et al. 2019, arXiv:1908.08962, for those below base).
BERT_SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}

# depth, width, heads: base and large of Dosovitskiy et al., tiny and small of DeiT (Touvron et al. 2021,
# arXiv:2012.12877).
VIT_SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (12, 192, 3),
    "small": (12, 384, 6),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}


@dataclass(frozen=True)
class TransformerConfig:
    """Settings of a `Transformer`, whatever its modality.

    Args:
        depth: Number of blocks; with 0 a text is the bag of its embeddings (fastText, arXiv:1607.01759).
        width: Features of a token.
        heads: Attention heads; null means one for every 64 features, at least one.
        feed_forward_width: Features inside the feed-forward; null means 4 times the width.
        norm_order: `post` normalises after each residual sum (BERT), `pre` before each branch and at the end (ViT).
        activation: `gelu` (by erf), `gelu_tanh`, `quick_gelu` (x sigmoid(1.702 x), CLIP's); or one with a gate, which
            makes three matrices of two (Shazeer 2020, arXiv:2002.05202): `swiglu`, silu(A x) B x (DINOv2's largest,
            EuroBERT), `geglu`, gelu(A x) B x (ModernBERT).
        norm_epsilon: Epsilon of the norms (BERT 1e-12, ViT 1e-6, ModernBERT 1e-5).
        norm: `layer`, or `rms`, without mean and bias (EuroBERT).
        norm_bias: Whether layer norms have a bias (not in ModernBERT).
        bias: Whether the linear layers of a block have a bias.
        dropout: Dropout on the branches' outputs; BERT's authors use 0.1, a small budget does better with 0.
        attention_dropout: Dropout on the attention weights; above 0 the CPU's fast attention kernel cannot be used.
        stochastic_depth: Probability that the last block's branches are skipped, growing linearly from 0 at the first.
        layer_scale: Initial value of a learned gain per feature on each branch; null means none.
        final_norm: Whether `pre` normalises the tokens at the end (`post` has done so already).
        query_key_norm: Whether each head's queries and keys are normalised (Dehghani et al. 2023, arXiv:2302.05442).
        first_attention_norm: Whether `pre` normalises before the first block's attention too (not in ModernBERT, whose
            embeddings are normalised already).
        attention_window: How far to either side a token of a local layer sees, of texts (ModernBERT: 64); null lets all
            layers see everything.
        global_every: With a window, the first layer and every so many after it see everything (ModernBERT: 3).
    """

    family: ClassVar[str] = "BERT"
    published_sizes: ClassVar[dict[str, tuple[int, int, int]]] = BERT_SIZES
    least_depth: ClassVar[int] = 0
    # Whether batches differ in their sequences' length, so that compiled code should serve any.
    lengths_vary: ClassVar[bool] = True

    depth: int = 4
    width: int = 256
    heads: int | None = None
    feed_forward_width: int | None = None
    norm_order: Literal["post", "pre"] = "post"
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-12
    bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    layer_scale: float | None = None
    final_norm: bool = True
    query_key_norm: bool = False
    norm: NormKind = "layer"
    norm_bias: bool = True
    first_attention_norm: bool = True
    attention_window: int | None = None
    global_every: int = 3

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        for name, least in (("depth", self.least_depth), ("width", 1)):
            if getattr(self, name) < least:
                raise UserError(f"transformer.{name} is {getattr(self, name)}: give at least {least}.")
        if self.resolved_heads < 1 or self.width % self.resolved_heads:
            raise UserError(
                f"transformer.width {self.width} is not a multiple of transformer.heads {self.resolved_heads}: "
                "choose a number of heads that divides the width."
            )
        check_number("transformer.feed_forward_width", self.feed_forward_width, least=1)
        check_number("transformer.norm_epsilon", self.norm_epsilon, above=0)
        check_number("transformer.layer_scale", self.layer_scale, least=0)
        check_number("transformer.attention_window", self.attention_window, least=1)
        check_number("transformer.global_every", self.global_every, least=1)
        if not self.first_attention_norm and self.norm_order == "post":
            raise UserError(
                "transformer.first_attention_norm: false leaves out the norm before the first attention, and "
                "norm_order: post has none there: leave it out, or set norm_order to pre."
            )
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"transformer.{name} is {getattr(self, name)}: give a probability from 0 to below 1.")

    @property
    def readable_layers(self) -> int:
        """Layers whose features can be read, counted from 1: the blocks, or the embeddings where there is none."""
        return max(1, self.depth)

    @property
    def resolved_heads(self) -> int:
        """Number of attention heads after defaults."""
        return max(1, self.width // 64) if self.heads is None else self.heads

    @property
    def resolved_feed_forward_width(self) -> int:
        """Features inside the feed-forward after defaults."""
        return 4 * self.width if self.feed_forward_width is None else self.feed_forward_width

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a gate."""
        return self.activation in GATED

    def window_of(self, index: int) -> int | None:
        """How far to either side tokens of a block see, by its number from 0; null for everything."""
        return None if index % self.global_every == 0 else self.attention_window

    def resolved(self) -> Self:
        """The same settings with the heads and the feed-forward's width as numbers."""
        return replace(self, heads=self.resolved_heads, feed_forward_width=self.resolved_feed_forward_width)

    def sized(self, size: str) -> Self:
        """Return these settings with the depth, width and heads of a published size of this family.

        Args:
            size: A name in `BERT_SIZES`, or in `VIT_SIZES` for a `VisionTransformerConfig`.

        Raises:
            UserError: If there is no such size, or these settings ask for another depth, width or number of heads.
        """
        sizes = self.published_sizes
        if size not in sizes:
            raise UserError(
                f"There is no {self.family} size '{size}'{nearest(size, sizes)}: choose one of {', '.join(sizes)}."
            )
        depth, width, heads = sizes[size]
        for name, value in (("depth", depth), ("width", width), ("heads", heads)):
            given = getattr(self, name)
            # The default is what nobody asked for.
            if given not in (value, getattr(type(self), name)):
                raise UserError(
                    f"The size '{size}' has {name} {value}, and transformer.{name} is {given}: leave one of the two "
                    "out (size: null keeps all of transformer's)."
                )
        return replace(self, depth=depth, width=width, heads=heads)

    def forward_flops_per_token(self, sequence_length: int) -> float:
        """Floating-point operations of one forward pass for one token, a multiply-add counted as two.

        Counts the matrix products only (the convention of Kaplan et al. 2020, arXiv:2001.08361).

        Args:
            sequence_length: Number of tokens that attend to each other.
        """
        return sum((self.block_flops_per_token(index, sequence_length) for index in range(self.depth)), 0.0)

    def block_flops_per_token(self, index: int, sequence_length: int) -> float:
        """As `forward_flops_per_token`, of one block; of a local one what lies in a whole window counts."""
        window = self.window_of(index)
        seen = sequence_length if window is None else min(sequence_length, 2 * window + 1)
        projections = (
            4 * self.width * self.width + (3 if self.gated else 2) * self.width * self.resolved_feed_forward_width
        )
        return 2.0 * (projections + 2 * seen * self.width)


@dataclass(frozen=True)
class VisionTransformerConfig(TransformerConfig):
    """The same settings with ViT's values where none are given; see `TransformerConfig`."""

    family: ClassVar[str] = "ViT"
    published_sizes: ClassVar[dict[str, tuple[int, int, int]]] = VIT_SIZES
    least_depth: ClassVar[int] = 1
    lengths_vary: ClassVar[bool] = False

    depth: int = 6
    width: int = 192
    norm_order: Literal["post", "pre"] = "pre"
    norm_epsilon: float = 1e-6
