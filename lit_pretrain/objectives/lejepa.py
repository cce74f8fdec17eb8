"""LeJEPA: views of a picture have one embedding, and embeddings are spread as a Gaussian (Balestriero and LeCun 2025,
arXiv:2511.08544).

No teacher, no queue, no negatives. That views agree alone is solved by one point for all pictures. What forbids it is
SIGReg: along random directions the embeddings of a batch must be distributed as N(0, 1), by the test of Epps and Pulley
(1983), which compares characteristic functions, so that it is bounded and smooth.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, distributed, nn

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.transformer import initialise
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies, chance_in_batch
from lit_pretrain.objectives.gathering import first_row, gather_rows, processes, together
from lit_pretrain.objectives.objective import Batch, EncoderPass, ObjectiveOutput, Vocabulary
from lit_pretrain.objectives.picture_panels import Caption, grid
from lit_pretrain.objectives.vision_objective import VisionObjective
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image

    from lit_pretrain.backbone.vision_encoder import VisionEncoder

# Where the characteristic functions are compared: 17 points from 0 to 3, as the authors'. The other half is its mirror.
KNOTS, LARGEST_FREQUENCY = 17, 3.0
VARIANCE_EPSILON = 1e-5


class LeJEPA(VisionObjective):
    """Bring the embeddings of several views of a picture together, and those of all pictures into a Gaussian's form.

    The loss is (1 - gaussianity_share) x invariance + gaussianity_share x gaussianity; both fall towards 0, a
    gaussianity of 1 or so is what a sample of a Gaussian itself has. `accuracy` is the share of pictures whose second
    view is nearer to the first one than any other picture's of the batch (chance: one in the batch).

    Args:
        views: Of each picture, varied by `model.augmentation`: crops of any size (`crop: resized`) and colours, else
            there is nothing to see through.
        patch_dropout: Share of a view's patches that training leaves out, others in each view: less work, and one
            more thing to see through.
        gaussianity_share: Weight of the Gaussian form (lambda of the paper, 0.02 to 0.05).
        directions: Along which the form is tested, others at every step.
        projection_width: Of the embeddings, few (16 to 64) as the paper has them.
        hidden_width: Of the projector between the encoder's features and the embeddings; it has batch normalisation,
            which takes out what all pictures have in common from the first step.
        weight: Factor of this loss in the sum.
    """

    name = "lejepa"
    views_apart = True
    training_settings = ("views", "patch_dropout", "gaussianity_share", "directions", "weight")
    compares_batch = True

    def __init__(
        self,
        views: int = 4,
        patch_dropout: float = 0.0,
        gaussianity_share: float = 0.05,
        directions: int = 256,
        projection_width: int = 32,
        hidden_width: int = 512,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_number("LeJEPA.views", views, least=2)
        for name, value in (("directions", directions), ("projection_width", projection_width)):
            check_number(f"LeJEPA.{name}", value, least=1)
        check_number("LeJEPA.hidden_width", hidden_width, least=1)
        if not 0.0 <= patch_dropout < 1.0:
            raise UserError(f"LeJEPA.patch_dropout is {patch_dropout}: give a share from 0 to below 1.")
        if not 0.0 < gaussianity_share < 1.0:
            raise UserError(f"LeJEPA.gaussianity_share is {gaussianity_share}: give a share between 0 and 1.")
        self.views = views
        self.patch_dropout = patch_dropout
        self.gaussianity_share = gaussianity_share
        self.directions = directions
        self.projection_width = projection_width
        self.hidden_width = hidden_width
        self.weight = weight
        self.projector: nn.Sequential | None = None
        # How uint8 pictures are varied: the module's augmentation; without one, views are mirrored or not.
        self.vary: Callable[[Tensor, int, torch.Generator | None], Tensor] | None = None

    @property
    def loss_factors(self) -> dict[str, float]:
        """The two parts."""
        return {"invariance": 1.0 - self.gaussianity_share, "gaussianity": self.gaussianity_share}

    def build(self, encoder: "VisionEncoder", vocabulary: Vocabulary | None = None) -> None:
        """Make the projector."""
        if self.projector is None:
            width, hidden = encoder.width, self.hidden_width
            self.projector = nn.Sequential(
                nn.Linear(width, hidden, bias=False),  # the means are taken out
                BatchStandardisation(),
                nn.GELU(),
                nn.Linear(hidden, hidden, bias=False),
                BatchStandardisation(),
                nn.GELU(),
                nn.Linear(hidden, self.projection_width),
            )
            initialise(self)
            # Embeddings begin with a variance of about 1, where the test of Gaussianity has the steepest slope.
            nn.init.normal_(cast(nn.Linear, self.projector[-1]).weight, std=hidden**-0.5)

    def kept_of(self, patches: int) -> int:
        """Patches of a view that the encoder sees in training."""
        return max(1, round(patches * (1.0 - self.patch_dropout)))

    # -- what is seen

    def draw_views(self, batch: Batch, size: int, generator: torch.Generator | None) -> Tensor:
        """Views (V, B, C, S, S), floats in [0, 1]."""
        images = batch["images"]
        if self.vary is None:
            flips = torch.rand(
                (self.views, len(images), 1, 1, 1), generator=generator, device=images.device, dtype=torch.float32
            )
            return torch.where(flips < 0.5, images, images.flip(-1))
        stored = batch.get("stored_images", (images * 255.0).round().to(torch.uint8))
        return torch.stack([self.vary(stored, size, generator) for _ in range(self.views)])

    def make_pass(self, batch: Batch, encoder: "VisionEncoder", generator: torch.Generator | None) -> EncoderPass:
        """All pictures' first views, then all second ones, and so on; and the directions of the test."""
        # Drawn first, so that they are the same however many pictures a process has.
        shape = self.projection_width, self.directions
        device = batch["images"].device
        directions = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        images = encoder.normalize(self.draw_views(batch, encoder.image_size, generator).flatten(0, 1))
        inputs = {"images": images}
        if self.training and self.patch_dropout:
            shape = len(images), encoder.patches
            scores = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
            inputs["keep"] = scores.argsort(dim=1)[:, : self.kept_of(encoder.patches)]
        return EncoderPass(inputs, {"directions": functional.normalize(directions, dim=0)})

    # -- what is asked

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: "VisionEncoder"
    ) -> ObjectiveOutput:
        """Both parts, and how well a picture's views find each other; collective in training."""
        embeddings = at_least_float32(required(self.projector)(encoder.forward_head(features)))
        embeddings = embeddings.unflatten(0, (self.views, -1))
        directions = targets["directions"].to(embeddings.dtype)
        with torch.autocast(features.device.type, enabled=False):
            invariance = (embeddings - embeddings.mean(dim=0)).square().mean()
            everyone, first = embeddings, 0
            if self.training and together():
                # All processes test along the same directions, all samples at once.
                distributed.broadcast(directions, src=0)
                everyone = gather_rows(embeddings.transpose(0, 1)).transpose(0, 1)
                first = first_row(embeddings.shape[1])
            gaussianity = sigreg(everyone, directions)
        count = torch.full((), embeddings.shape[1], device=embeddings.device)
        found = nearest(embeddings[0].detach(), everyone[1].detach())
        right = (found == torch.arange(first, first + len(found), device=found.device)).sum()
        loss = (1.0 - self.gaussianity_share) * invariance + self.gaussianity_share * gaussianity
        statistics = {
            "loss": (loss.detach() * count, count),
            "invariance": (invariance.detach() * count, count),
            "gaussianity": (gaussianity.detach() * count, count),
            "accuracy": (right, count),
        }
        return ObjectiveOutput(loss, statistics)

    def check_data(self, encoder: "VisionEncoder", facts: DataFacts) -> None:
        """Some patches must be left."""
        if self.patch_dropout and self.kept_of(encoder.patches) == encoder.patches:
            raise UserError(
                f"LeJEPA.patch_dropout {self.patch_dropout} of the {encoder.patches} patches of a picture leaves out "
                "none: raise it or set it to 0."
            )

    # -- costs and pictures

    def pass_shape(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> tuple[int, int]:
        """Every view, with the patches that are kept."""
        return samples * self.views, encoder.prefix_tokens + self.kept_of(encoder.patches)

    def forward_flops(self, encoder: "VisionEncoder", samples: int, sequence_length: int) -> float:
        """Operations of the projector and of the projections on the directions."""
        hidden, width = self.hidden_width, self.projection_width
        projector = encoder.width * hidden + hidden * hidden + hidden * width
        return 2.0 * samples * self.views * (projector + width * self.directions * processes())

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """The first view's picture is any of its batch's."""
        return {name: value for name, value in chance_in_batch(frequencies).items() if name == "accuracy"}

    @torch.no_grad()
    def examples(
        self,
        encoder: "VisionEncoder",
        batch: Batch,
        vocabulary: Vocabulary | None,
        generator: torch.Generator,
        count: int = 8,
    ) -> "Image":
        """The views of each picture, a row each; under a view whose picture is found by the row's first one."""
        fields = {name: value[:count] for name, value in batch.items() if name in ("images", "stored_images")}
        views = self.draw_views(fields, encoder.image_size, generator)
        features = encoder.forward_features(encoder.normalize(views.flatten(0, 1)))
        embeddings = required(self.projector)(encoder.forward_head(features)).float().unflatten(0, (self.views, -1))
        rows = torch.arange(embeddings.shape[1], device=embeddings.device)
        found = torch.stack([nearest(embeddings[0], view) == rows for view in embeddings[1:]], dim=1).tolist()
        captions = [
            [Caption("first view", True), *(Caption("found" if right else "another is nearer", right) for right in row)]
            for row in found
        ]
        return grid([list(row) for row in views.transpose(0, 1)], captions)


class BatchStandardisation(nn.Module):
    """Batch normalisation by the present batch, over all processes in training, without parameters of its own."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) with mean 0 and variance 1 over the samples."""
        everyone = gather_rows(features) if self.training else features
        variance, mean = torch.var_mean(at_least_float32(everyone), dim=0, unbiased=False)
        return ((features - mean) * (variance + VARIANCE_EPSILON).rsqrt()).to(features.dtype)


def sigreg(embeddings: Tensor, directions: Tensor) -> Tensor:
    """How far embeddings are from N(0, 1) along directions: the statistic of Epps and Pulley, its mean over both.

    N times the squared distance between the samples' characteristic function and the Gaussian's, weighted by
    the latter, integrated over frequencies from -3 to 3 by the trapezoidal rule.

    Args:
        embeddings: (V, N, E) floats, N samples in each of V sets that are tested apart.
        directions: (E, M) of length 1.

    Returns:
        A scalar.
    """
    step = LARGEST_FREQUENCY / (KNOTS - 1)
    frequencies = torch.linspace(0.0, LARGEST_FREQUENCY, KNOTS, device=embeddings.device, dtype=embeddings.dtype)
    gaussian = torch.exp(-frequencies.square() / 2.0)
    weights = 2.0 * step * gaussian
    weights[0] /= 2.0
    weights[-1] /= 2.0
    angles = (embeddings @ directions)[..., None] * frequencies
    real, imaginary = angles.cos().mean(dim=1), angles.sin().mean(dim=1)
    distance = ((real - gaussian).square() + imaginary.square()) @ weights
    return embeddings.shape[1] * distance.mean()


def nearest(queries: Tensor, candidates: Tensor) -> Tensor:
    """Which candidate (M, E) is nearest to each query (N, E): (N,) integers."""
    return torch.cdist(queries, candidates).argmin(dim=1)
