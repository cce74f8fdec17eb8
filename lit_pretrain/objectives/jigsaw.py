"""Jigsaw puzzles (Noroozi and Favaro 2016, arXiv:1603.09246): in which order do a picture's nine tiles lie?

Nine tiles of the cells of a 3 x 3 grid are shuffled by one of a set of permutations that differ in as many places as
can be, and pass through the encoder one by one; which permutation it was is told from their features together. Of the
paper's precautions against shortcuts (section 4.2), tiles keep a gap and move within their cells, each is standardised,
and a share of the pictures is grey; the jitter of colour channels is left out: ShortcutCheck's `chroma_offsets` tells
whether a data set needs it.
"""

import functools
import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.transformer import initialise
from lit_pretrain.errors import check_number
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_of_classes
from lit_pretrain.objectives.classification import classification_output
from lit_pretrain.objectives.objective import Batch, EncoderPass, ObjectiveOutput, Vocabulary
from lit_pretrain.objectives.patch_cutting import CELLS, PatchGrid, cut, drop_to_grey, grid_for, standardize
from lit_pretrain.objectives.picture_panels import grid
from lit_pretrain.objectives.picture_shortcuts import chroma_features, continuity_features
from lit_pretrain.objectives.vision_objective import Shortcut, VisionObjective
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image

    from lit_pretrain.backbone.vision_encoder import VisionEncoder

TILES = CELLS**2
CENTRE = TILES // 2


class Jigsaw(VisionObjective):
    """Tell by which permutation nine tiles of a picture were shuffled.

    Args:
        permutations: How many there are to tell apart (1,000 at most in the paper); see `far_permutations`.
        gap: Least gap between neighbouring tiles, as a share of a cell (a third of the picture's side), rounded to
            pixels, at least one unless 0. It keeps contours from running on from tile to tile.
        jitter: How far a tile moves within its cell along each axis, in the same way.
        patch_pixels: Pixels of a tile's side, a multiple of the encoder's patch size; null for the largest that leaves
            gap and jitter.
        grey_share: Probability that a picture is shown in grey.
        normalize_tiles: Whether each tile gets mean 0 and deviation 1, so that brightness does not tell neighbours.
        hidden_width: Width of the head's hidden layer; null for the encoder's.
        weight: Factor of this loss in the sum.
    """

    name = "jigsaw"

    orders: Tensor

    def __init__(
        self,
        permutations: int = 100,
        gap: float = 0.1,
        jitter: float = 0.1,
        patch_pixels: int | None = None,
        grey_share: float = 0.3,
        normalize_tiles: bool = True,
        hidden_width: int | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_number("Jigsaw.permutations", permutations, least=2, most=1000)
        check_number("Jigsaw.gap", gap, least=0, below=1)
        check_number("Jigsaw.jitter", jitter, least=0, below=1 - gap)
        check_number("Jigsaw.patch_pixels", patch_pixels, least=1)
        check_number("Jigsaw.grey_share", grey_share, least=0, most=1)
        check_number("Jigsaw.hidden_width", hidden_width, least=1)
        self.permutations = permutations
        self.gap = gap
        self.jitter = jitter
        self.patch_pixels = patch_pixels
        self.grey_share = grey_share
        self.normalize_tiles = normalize_tiles
        self.hidden_width = hidden_width
        self.weight = weight
        self.head: nn.Sequential | None = None

    def check_data(self, encoder: "VisionEncoder", facts: DataFacts) -> None:
        """Three by three cells must fit into a picture."""
        self.tile_grid(encoder)

    def tile_grid(self, encoder: "VisionEncoder") -> PatchGrid:
        """Where the tiles lie; a `UserError` if they do not fit."""
        return grid_for("Jigsaw", encoder, self.gap, self.jitter, self.patch_pixels)

    def build(self, encoder: "VisionEncoder", vocabulary: Vocabulary | None = None) -> None:
        """Make the head, and the permutations, which a checkpoint keeps: (K, 9), the tile that lies at each place."""
        if self.head is None:
            hidden = encoder.width if self.hidden_width is None else self.hidden_width
            self.head = nn.Sequential(
                nn.Linear(TILES * encoder.width, hidden),
                nn.LayerNorm(hidden),
                nn.GELU(),
                nn.Linear(hidden, self.permutations),
            )
            initialise(self)
            self.register_buffer("orders", torch.tensor(far_permutations(self.permutations)))

    def tiles(self, images: Tensor, encoder: "VisionEncoder", generator: torch.Generator) -> Tensor:
        """(B, 9, 3, p, p) tiles of clean pictures (B, 3, S, S), row by row, some of them grey."""
        places = self.tile_grid(encoder)
        images = drop_to_grey(images, self.grey_share, generator)
        return cut(images, places.corners(len(images), generator, images.device), places.patch)

    def shuffle(self, tiles: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tiles (B, 9, ...) in another order, and the permutation's number (B,)."""
        labels = torch.randint(0, self.permutations, (len(tiles),), generator=generator, device=tiles.device)
        return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], self.orders[labels]], labels

    def normalize(self, tiles: Tensor, encoder: "VisionEncoder") -> Tensor:
        """What the encoder reads of (B, 9, 3, p, p) tiles: (9 B, 3, p, p)."""
        images = encoder.normalize(tiles.flatten(0, 1))
        return standardize(images) if self.normalize_tiles else images

    def make_pass(self, batch: Batch, encoder: "VisionEncoder", generator: torch.Generator) -> EncoderPass:
        """Cut the pictures into tiles and shuffle them."""
        tiles, labels = self.shuffle(self.tiles(batch["images"], encoder, generator), generator)
        return EncoderPass({"images": self.normalize(tiles, encoder)}, {"labels": labels})

    def logits(self, features: Tensor, encoder: "VisionEncoder") -> Tensor:
        """Scores (B, K) of the permutations, from the features of the tiles in the order in which they lie."""
        return required(self.head)(encoder.forward_head(features).unflatten(0, (-1, TILES)).flatten(1))

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: "VisionEncoder"
    ) -> ObjectiveOutput:
        """Mean cross-entropy over the pictures; `in_place` is the share of the tiles of which the place is told."""
        logits, labels = self.logits(features, encoder), targets["labels"]
        output = classification_output(logits, labels, (), self.training)
        right = self.orders[logits.argmax(dim=-1)] == self.orders[labels]
        output.statistics["in_place"] = (right.sum(), torch.full((), right.numel(), device=right.device))
        return output

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """All permutations are equally frequent."""
        figures = chance_of_classes([1 / self.permutations] * self.permutations)
        if self.head is not None:
            # Of the permutation that has most places in common with all of them.
            agreement = torch.stack([(self.orders == order).double().mean() for order in self.orders])
            figures["in_place"] = float(agreement.max())
        return figures

    def pass_shape(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> tuple[int, int]:
        """Nine small pictures a sample."""
        side = self.tile_grid(encoder).patch // encoder.patch_size
        return samples * TILES, encoder.prefix_tokens + side**2

    def forward_flops(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> float:
        """Operations of the head's matrix products."""
        hidden = encoder.width if self.hidden_width is None else self.hidden_width
        return 2.0 * samples * hidden * (TILES * encoder.width + self.permutations)

    @torch.no_grad()
    def examples(
        self,
        encoder: "VisionEncoder",
        batch: Batch,
        vocabulary: Vocabulary | None,
        generator: torch.Generator,
        count: int = 8,
    ) -> "Image":
        """A row a picture: the picture, its puzzle as it was asked, and as the model puts it together."""
        images = batch["images"][:count]
        tiles, labels = self.shuffle(self.tiles(images, encoder, generator), generator)
        logits = self.logits(encoder.forward_features(self.normalize(tiles, encoder)), encoder)
        told = self.orders[logits.argmax(dim=-1)]
        # Where the tile lies that belongs to a place.
        solved = tiles[torch.arange(len(tiles), device=tiles.device)[:, None], told.argsort(dim=1)]
        right = (told == self.orders[labels]).sum(dim=1).tolist()
        rows = [list(image) for image in zip(images, puzzle(tiles), puzzle(solved), strict=True)]
        captions = [[None, None, f"{number} of 9 in place"] for number in right]
        return grid(rows, captions, ["picture", "the puzzle", "the model's solution"])

    @torch.no_grad()
    def shortcuts(self, encoder: "VisionEncoder", batch: Batch, generator: torch.Generator) -> dict[str, Shortcut]:
        """Where tiles lie by contours that run on (`borders`, of the centre's neighbours) and by `chroma_offsets`."""
        tiles = self.normalize(self.tiles(batch["images"], encoder, generator), encoder).unflatten(0, (-1, TILES))
        device = tiles.device
        around = torch.tensor([place for place in range(TILES) if place != CENTRE], device=device)
        borders = continuity_features(tiles[:, CENTRE, None].expand(-1, TILES - 1, -1, -1, -1), tiles[:, around])
        places, neighbours = (torch.arange(number, device=device).repeat(len(tiles)) for number in (TILES, TILES - 1))
        return {
            "borders": Shortcut(borders.flatten(0, 1), neighbours, TILES - 1),
            "chroma_offsets": Shortcut(chroma_features(tiles.flatten(0, 1)), places, TILES),
        }


@functools.cache
def far_permutations(count: int) -> list[list[int]]:
    """Permutations of nine that differ in as many places as can be, the first being the order itself.

    As the paper's algorithm 1: each is one of those with the largest mean Hamming distance from the ones before it;
    of several, here, the first of those whose nearest is the farthest.
    """
    places = bytearray(itertools.chain.from_iterable(itertools.permutations(range(TILES))))
    # (9, 9!), so that what is counted of a permutation lies in memory beside that of the next.
    everything = torch.frombuffer(places, dtype=torch.uint8).view(-1, TILES).T.contiguous()
    # On the CPU, also where a model is built without memory (the meta device).
    total = torch.zeros(everything.shape[1], dtype=torch.int32, device="cpu")
    least = torch.full_like(total, TILES, dtype=torch.uint8)
    chosen = [0]
    while len(chosen) < count:
        # Place by place: what is counted at once fits into a processor's cache.
        distance = torch.zeros_like(least)
        for entries in everything:
            distance += entries != entries[chosen[-1]]
        total += distance
        torch.minimum(least, distance, out=least)
        # One that was chosen is at no distance from itself.
        chosen.append(int((total * (TILES + 1) + least).masked_fill_(least == 0, -1).argmax()))
    return everything[:, chosen].T.tolist()


def puzzle(tiles: Tensor) -> Tensor:
    """(B, 9, 3, p, p) tiles put together row by row, with a white line between them: (B, 3, side, side)."""
    line = max(1, tiles.shape[-1] // 8)
    framed = nn.functional.pad(tiles, (0, line, 0, line), value=1.0).unflatten(1, (CELLS, CELLS))
    return framed.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)[..., :-line, :-line]
