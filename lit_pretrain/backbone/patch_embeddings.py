"""From pictures to tokens: ViT's patch embedding (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1).

The patches are cut out and multiplied by one matrix. That equals the strided convolution that others use, is as fast or
faster on a CPU, and embeds only the patches that are kept. Registers are those of Darcet et al. (2024,
arXiv:2309.16588). Positions are learned, resized to other grids as timm does (bicubic, antialiased), or fixed 2-d
sines and cosines in timm's layout (`timm.layers.build_sincos2d_pos_embed`: sines of rows, of columns, then cosines of
rows, of columns), computed anew for every grid.
"""

from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from lit_pretrain.backbone.dropout import Dropout
from lit_pretrain.backbone.norms import NormKind, make_norm
from lit_pretrain.errors import UserError

Grid = tuple[int, int]


class PatchEmbeddings(nn.Module):
    """Patch embedding, then positions, class token and registers, then an optional norm and dropout.

    Args:
        patch_size: Pixels of a patch's side.
        channels: Channels of a picture.
        width: Features of a token.
        grid_size: Patches of a picture's side, for which positions are learned.
        class_token: Whether a learned token comes first.
        registers: Learned tokens after it, of no meaning of their own.
        positions: `learned`, or `sincos` for fixed ones.
        class_position: Whether class token and registers have rows in the table of learned positions too.
        norm: Whether the tokens are normalised before the first block (CLIP).
        norm_epsilon: Epsilon of that norm.
        bias: Whether the patch embedding has a bias.
        dropout: Dropout after it.
    """

    fixed_position: Tensor

    def __init__(
        self,
        patch_size: int,
        channels: int,
        width: int,
        grid_size: int,
        class_token: bool = True,
        registers: int = 0,
        positions: Literal["learned", "sincos"] = "learned",
        class_position: bool = True,
        norm: bool = False,
        norm_epsilon: float = 1e-6,
        bias: bool = True,
        dropout: float = 0.0,
        norm_kind: NormKind = "layer",
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size, self.channels, self.width = patch_size, channels, width
        self.grid: Grid = (grid_size, grid_size)
        self.prefix_tokens = int(class_token) + registers
        self.positioned_prefix = self.prefix_tokens if class_position and positions == "learned" else 0
        self.projection = nn.Linear(channels * patch_size**2, width, bias=bias)
        self.class_token = nn.Parameter(torch.empty(1, 1, width)) if class_token else None
        self.registers = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.position: nn.Parameter | None = None
        if positions == "learned":
            self.position = nn.Parameter(torch.empty(1, self.positioned_prefix + grid_size**2, width))
        else:
            self.register_buffer("fixed_position", sincos_positions(self.grid, width), persistent=False)
        self.norm = make_norm(width, norm_epsilon, norm_kind, norm_bias) if norm else nn.Identity()
        self.dropout = Dropout(dropout) if dropout else nn.Identity()
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """As timm: normal of 0.02 for positions, almost zeros for learned tokens, the rest as of a convolution."""
        self.projection.reset_parameters()
        for token in (self.class_token, self.registers):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        if self.position is not None:
            nn.init.normal_(self.position, std=0.02)

    def forward(self, images: Tensor, keep: Tensor | None = None, with_positions: bool = True) -> Tensor:
        """Embed pictures.

        Args:
            images: (B, C, H, W) float, normalised; H and W any multiples of the patch size.
            keep: (B, K) integers, the patches (row by row) to embed, in this order; null means all N.
            with_positions: Whether patches carry their positions. Class token and registers are no patches and keep
                theirs.

        Returns:
            (B, prefix + N or K, D) tokens.

        Raises:
            UserError: If the pictures cannot be cut into patches.
        """
        grid = self.grid_of(images)
        patches = cut_patches(images, self.patch_size)
        if keep is not None:
            patches = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[-1]))
        # Pictures are float32 whatever the weights are (16 or 64 bits without autocast). Under autocast the product is
        # of 16 bits, and what the blocks add up should not be.
        kind = self.projection.weight.dtype
        tokens = self.projection(patches.to(kind)).to(kind)
        prefix_position, patch_position = self.positions_for(grid)
        if with_positions:
            # On a CPU, `embedding` takes a third of the time of an index in the backward pass.
            tokens = tokens + (patch_position if keep is None else functional.embedding(keep, patch_position[0]))
        prefix: list[Tensor] = [token for token in (self.class_token, self.registers) if token is not None]
        if prefix:
            learned = torch.cat(prefix, dim=1)
            if self.positioned_prefix:
                learned = learned + prefix_position
            tokens = torch.cat([learned.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.dropout(self.norm(tokens))

    def grid_of(self, images: Tensor) -> Grid:
        """Rows and columns of patches in pictures (B, C, H, W), or a `UserError` if they do not fit."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise UserError(
                f"The encoder takes pictures of shape (batch, {self.channels}, height, width) and was given "
                f"{tuple(images.shape)}: set encoder.channels to what the data has."
            )
        height, width = images.shape[2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise UserError(
                f"A picture of {height} x {width} pixels cannot be cut into patches of {self.patch_size}: crop or "
                "resize it to multiples of encoder.patch_size."
            )
        return height // self.patch_size, width // self.patch_size

    def positions_for(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Positions of the prefix, (1, prefix or 0, D), and of the patches of a grid, (1, N, D)."""
        if self.position is None:
            own = self.fixed_position
            position = own if grid == self.grid else sincos_positions(grid, self.width, own.device).to(own.dtype)
        elif grid == self.grid:
            position = self.position
        else:
            from timm.layers import resample_abs_pos_embed

            position = resample_abs_pos_embed(self.position, grid, self.grid, self.positioned_prefix)
        return position[:, : self.positioned_prefix], position[:, self.positioned_prefix :]


def cut_patches(images: Tensor, patch_size: int) -> Tensor:
    """Patches of (B, C, H, W) pictures row by row, (B, N, C * patch_size ** 2), each in the order C, row, column."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size**2)


def sincos_positions(grid: Grid, width: int, device: torch.device | None = None) -> Tensor:
    """Fixed positions of a grid's patches, (1, N, D)."""
    from timm.layers import build_sincos2d_pos_embed

    return build_sincos2d_pos_embed(list(grid), width, device=device)[None]
