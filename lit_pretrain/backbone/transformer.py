"""The one Transformer of the suite: a stack of blocks that knows nothing of modality.

Text and pictures differ in what feeds it (embeddings) and in what reads it (heads), nowhere else.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_pretrain.backbone.attention import attend, attend_locally, worth_blocks
from lit_pretrain.backbone.config import TransformerConfig
from lit_pretrain.backbone.dropout import Dropout
from lit_pretrain.backbone.norms import make_norm
from lit_pretrain.backbone.packed_rows import (
    DocumentBounds,
    attend_within,
    bounds_of,
    mask_between,
    serves_variable_lengths,
)
from lit_pretrain.backbone.rotary import Rotation, rotate
from lit_pretrain.errors import UserError

# Graphs that torch.compile may make before it leaves what comes to eager mode. torch's own limit of 8 is soon reached:
# it counts those of all compiled modules of a process together (all towers, decoders and generators), each for training
# and for evaluation, with and without a mask, and for every batch size.
MOST_GRAPHS = 128


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU: x sigmoid(1.702 x)."""

    def forward(self, features: Tensor) -> Tensor:
        """Apply it to every element."""
        return features * torch.sigmoid(1.702 * features)


def make_activation(name: str) -> nn.Module:
    """The activation of a feed-forward by its name in `TransformerConfig`; of one with a gate that of the gate."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "gelu": nn.GELU,
        "gelu_tanh": partial(nn.GELU, approximate="tanh"),
        "quick_gelu": QuickGELU,
        "swiglu": nn.SiLU,
        "geglu": nn.GELU,
    }
    return kinds[name]()


def norm_of(config: TransformerConfig, width: int | None = None) -> nn.Module:
    """A norm as a Transformer's settings say, over its own width unless another is given."""
    return make_norm(config.width if width is None else width, config.norm_epsilon, config.norm, config.norm_bias)


# Who attends to whom: booleans, the bounds of documents that do not see each other, or null for everybody.
Mask = Tensor | DocumentBounds | None


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.resolved_heads
        self.dropout = config.attention_dropout
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.projection = nn.Linear(config.width, config.width, bias=config.bias)
        self.query_norm: nn.Module | None = None
        self.key_norm: nn.Module | None = None
        if config.query_key_norm:
            head_width = config.width // self.heads
            self.query_norm = norm_of(config, head_width)
            self.key_norm = norm_of(config, head_width)

    def forward(
        self, tokens: Tensor, mask: Mask, causal: bool, rotation: Rotation | None, window: int | None = None
    ) -> Tensor:
        """Mix tokens of shape (B, N, D).

        `mask` is boolean, broadcastable to (B, heads, N, N), True where attended; with a `window` (B, 1, 1, N). Of rows
        of several documents it may be their bounds.
        """
        batch, length, width = tokens.shape
        query, key, value = (
            self.query_key_value(tokens).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, DocumentBounds):
            mixed = attend_within(query, key, value, mask, causal, window)
        elif window is None:
            mixed = attend(query, key, value, mask, causal, dropout)
        else:
            mixed = attend_locally(query, key, value, mask, window, dropout)
        return self.projection(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two linear layers with an activation between, applied to each token alone."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated = config.gated
        inner = config.resolved_feed_forward_width * (2 if self.gated else 1)
        self.expand = nn.Linear(config.width, inner, bias=config.bias)
        self.activation = make_activation(config.activation)
        self.contract = nn.Linear(config.resolved_feed_forward_width, config.width, bias=config.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        features = self.expand(tokens)
        if self.gated:
            gate, features = features.chunk(2, dim=-1)
            return self.contract(self.activation(gate) * features)
        return self.contract(self.activation(features))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): in training, a branch is left out for some samples.

    timm's keeps the rate as a number, by which torch.compile would tell the blocks apart and make graphs for each; a
    buffer is an input of one graph for all, the first block's rate of 0 included. It follows from the settings, so that
    checkpoints do not hold it.

    Args:
        rate: Probability that a sample's branch is left out; the others' are scaled up, so that the mean stays.
    """

    rate: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(rate), persistent=False)

    def forward(self, branch: Tensor) -> Tensor:
        """Leave out whole samples of (B, ...)."""
        if not self.training:
            return branch
        shape = (len(branch), *[1] * (branch.ndim - 1))
        kept = torch.rand(shape, device=branch.device) >= self.rate
        return branch * (kept / (1.0 - self.rate)).to(branch.dtype)


class Block(nn.Module):
    """Attention and feed-forward, each with a residual connection and a norm.

    Args:
        config: The Transformer's settings.
        drop_path: Probability that a branch is skipped for a sample in training.
        attention_norm: Whether there is a norm of the attention.
    """

    def __init__(self, config: TransformerConfig, drop_path: float = 0.0, attention_norm: bool = True) -> None:
        super().__init__()
        self.pre_norm = config.norm_order == "pre"
        self.attention = Attention(config)
        self.attention_norm = norm_of(config) if attention_norm else nn.Identity()
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = norm_of(config)
        self.attention_branch = self._branch(config, drop_path)
        self.feed_forward_branch = self._branch(config, drop_path)

    @staticmethod
    def _branch(config: TransformerConfig, drop_path: float) -> nn.Sequential:
        """What happens to a branch's output before it is added: only what the settings ask for, alike in all blocks."""
        steps: list[nn.Module] = []
        if config.layer_scale is not None:
            # timm brings torchvision, 3 seconds of start-up that text without this option should not pay.
            from timm.layers import LayerScale

            steps.append(LayerScale(config.width, init_values=config.layer_scale))
        if config.dropout:
            steps.append(Dropout(config.dropout))
        if config.stochastic_depth:
            steps.append(DropPath(drop_path))
        return nn.Sequential(*steps)

    def forward(
        self,
        tokens: Tensor,
        mask: Mask = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Map (B, N, D) to (B, N, D); see `Attention.forward` for the arguments."""
        if self.pre_norm:
            mixed = self.attention(self.attention_norm(tokens), mask, causal, rotation, window)
            tokens = tokens + self.attention_branch(mixed)
            return tokens + self.feed_forward_branch(self.feed_forward(self.feed_forward_norm(tokens)))
        mixed = self.attention(tokens, mask, causal, rotation, window)
        tokens = self.attention_norm(tokens + self.attention_branch(mixed))
        return self.feed_forward_norm(tokens + self.feed_forward_branch(self.feed_forward(tokens)))


# What a block is given beside the tokens: mask, causality, rotation, and the window where attention is cut into blocks.
View = tuple[Mask, bool, Rotation | None] | tuple[Mask, bool, Rotation | None, int]


class Transformer(nn.Module):
    """A stack of blocks over tokens of any kind.

    Args:
        config: Depth, width, norm order and the other settings.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        rates = [config.stochastic_depth * index / max(1, config.depth - 1) for index in range(config.depth)]
        self.blocks = nn.ModuleList(
            Block(config, rate, index > 0 or config.first_attention_norm) for index, rate in enumerate(rates)
        )
        normalise = config.norm_order == "pre" and config.final_norm
        self.final_norm = norm_of(config) if normalise else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each block's activations in the backward pass."""
        self.gradient_checkpointing = enable

    def compile_blocks(self) -> None:
        """Compile every block in place, which keeps the parameters' names as they are.

        Sequences whose lengths vary are compiled for one length, then for any; others for each shape that comes, which
        is faster. Blocks that serve two Transformers are compiled as the first one's.
        """
        for block in self.blocks:
            if block._compiled_call_impl is None:
                block.compile(dynamic=None if self.config.lengths_vary else False, recompile_limit=MOST_GRAPHS)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        local_rotation: Rotation | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Run every block.

        Args:
            tokens: (B, N, D) embedded tokens.
            attention_mask: (B, N) boolean, True where a token is real; null when all are.
            causal: Whether a token sees only itself and the tokens before it.
            rotation: Rotary positions, from `lit_pretrain.backbone.rotary.rotation_for`.
            local_rotation: Those of local layers; null for the same.
            positions: (B, N) integers, where the tokens stand, for the windows of local layers; null where they are
                consecutive.
            documents: (B, N) integers, the document that a token belongs to, each seeing itself alone, in the place of
                a mask; null for one document a row.

        Returns:
            (B, N, D) tokens; finite for a row without any real token too.
        """
        views = self._views(tokens, attention_mask, causal, rotation, local_rotation, positions, documents)
        for block, view in zip(self.blocks, views, strict=True):
            tokens = self._run(block, tokens, view)
        return self.final_norm(tokens)

    def forward_intermediates(
        self,
        tokens: Tensor,
        indices: Sequence[int],
        attention_mask: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        local_rotation: Rotation | None = None,
    ) -> list[Tensor]:
        """Outputs of some blocks; those after the last one asked for do not run.

        Args:
            tokens: (B, N, D) embedded tokens.
            indices: Which blocks, from 0, or negative from the end; the outputs come in this order. Without any block,
                the embedded tokens are the only output, 0.
            attention_mask: As for `forward`.
            causal: As for `forward`.
            rotation: As for `forward`.
            local_rotation: As for `forward`.

        Returns:
            (B, N, D) for every index; the last block's has gone through the final norm, the others' have not.

        Raises:
            UserError: If there is no such block.
        """
        depth = self.config.readable_layers
        outside = [index for index in indices if not -depth <= index < depth]
        if outside:
            raise UserError(
                f"There is no block {outside[0]} in a Transformer of depth {self.config.depth}: give {-depth} to "
                f"{depth - 1}."
            )
        if not self.blocks:
            return [self.final_norm(tokens) for _ in indices]
        places = [index % depth for index in indices]
        views = self._views(tokens, attention_mask, causal, rotation, local_rotation)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks[: max(places, default=-1) + 1]):
            tokens = self._run(block, tokens, views[index])
            outputs[index] = self.final_norm(tokens) if index == depth - 1 else tokens
        return [outputs[index] for index in places]

    def _run(self, block: nn.Module, tokens: Tensor, view: View) -> Tensor:
        """One block, its activations kept or to be recomputed."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, tokens, *view, use_reentrant=False)
        return block(tokens, *view)

    def _views(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        causal: bool,
        rotation: Rotation | None,
        local_rotation: Rotation | None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> list[View]:
        """What each block is given beside the tokens."""
        window = self.config.attention_window
        mask: Mask
        if documents is None:
            mask = self._mask(attention_mask, causal)
        else:
            mask = self._mask_of_documents(tokens, documents, causal)
        everything: View = (mask, causal, rotation)
        if window is None:
            return [everything] * len(self.blocks)
        rotation = rotation if local_rotation is None else local_rotation
        length = tokens.shape[1]
        # An exported graph serves any length, which nothing may depend on.
        known_length = positions is None and documents is None and not torch.compiler.is_exporting()
        if isinstance(mask, DocumentBounds):
            local: View = (mask, causal, rotation, window)
        elif known_length and length <= window + 1:
            local = (mask, causal, rotation)
        elif known_length and not causal and worth_blocks(length, window):
            local = (mask, causal, rotation, window)
        else:
            places = torch.arange(length, device=tokens.device)[None] if positions is None else positions
            seen = ((places[:, :, None] - places[:, None, :]).abs() <= window)[:, None]
            if mask is not None:
                # A token sees itself, so that no row is empty.
                seen = (seen & mask) | torch.eye(length, dtype=torch.bool, device=tokens.device)
            elif causal:
                seen = seen & torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
            local = (seen, causal, rotation)
        windows = [self.config.window_of(index) for index in range(len(self.blocks))]
        return [everything if window is None else local for window in windows]

    def _mask_of_documents(self, tokens: Tensor, documents: Tensor, causal: bool) -> Tensor | DocumentBounds:
        """Who attends to whom in rows of several documents, by what is fastest for these tokens."""
        device = tokens.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
        dropout = self.config.attention_dropout if self.training else 0.0
        if serves_variable_lengths(tokens.device, dtype, dropout):
            return bounds_of(documents)
        return mask_between(documents, causal)

    @staticmethod
    def _mask(attention_mask: Tensor | None, causal: bool) -> Tensor | None:
        """Who attends to whom, (B, 1, 1 or N, N), such that no row is empty: softmax over nothing would be NaN."""
        if attention_mask is None:
            return None
        mask = attention_mask.to(torch.bool)
        if not causal:
            return (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        length = mask.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=mask.device)
        return ((mask[:, None, :] & earlier) | itself)[:, None, :, :]


def prepare_transformers(module: nn.Module, compiled: bool, recomputed: bool) -> None:
    """Set how every Transformer inside a module runs: encoders, decoders and generators alike.

    Args:
        module: With all its parts made.
        compiled: Whether torch.compile is applied to the blocks.
        recomputed: Whether activations are recomputed in the backward pass.
    """
    for part in module.modules():
        if isinstance(part, Transformer):
            if recomputed:
                part.set_grad_checkpointing()
            if compiled:
                part.compile_blocks()


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Initial values of BERT and ViT: normal of 0.02 for matrices, zeros for biases, ones for the gains of norms."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
