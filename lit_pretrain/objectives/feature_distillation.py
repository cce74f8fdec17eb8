"""Feature distillation: what would another, trained encoder say of the whole text? Hints of a teacher (Romero et al.
2015, arXiv:1412.6550) for pooled features, as of sentence embeddings (Reimers and Gurevych 2020, arXiv:2004.09813).

A student reads half of a text and predicts the teacher's features of all of it. A number for each of the teacher's
features says more than the words of one other half do, so that a large encoder takes over within minutes what a cheap
one, that has read far more, has found; or a small one what a large one knows. Reads the same pass as `BagOfWords`.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.text_encoder import TextEncoder, initialise
from lit_pretrain.errors import check_number
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies
from lit_pretrain.objectives.gathering import gather_rows
from lit_pretrain.objectives.objective import Batch, EncoderPass, Objective, ObjectiveOutput, Vocabulary
from lit_pretrain.objectives.span_halves import (
    check_halves,
    check_hiding,
    halves_pass,
    means_of_halves,
    name_of_pass,
    shape_of_halves,
)
from lit_pretrain.required import required

# Share of the present batch in the running statistics, once there have been more batches than its inverse.
MOMENTUM = 0.01
# Added to variances: a feature that is the same for all texts is asked for as 0.
EPSILON = 1e-6


class Teacher(Protocol):
    """What is asked of a trained encoder; see `lit_pretrain.modules.teachers`."""

    @property
    def width(self) -> int:
        """Its features."""

    def features(self, batch: Batch, vocabulary: Vocabulary, device: torch.device) -> Tensor:
        """Pooled features (B, width) of a clean batch of the student's word pieces, without gradients."""


class FeatureDistillation(Objective):
    """Predict a teacher's pooled features of a text from the mean of a half's features.

    The loss is the mean of squared errors of features that are standardised over a batch (in evaluation by running
    statistics): the share of their variance that is not explained, 1 for who knows nothing.

    Args:
        teacher: A trained text encoder, as `model.init_from` names it. It is frozen, stays out of checkpoints, and is
            not needed to use what was trained. One with another tokenizer is given the text of the word pieces again,
            for which a step waits for the device.
        weight: Factor of this loss in the sum.
        token_dropout: Share of a half's tokens that training leaves out, others at every step. Objectives on halves
            with the same share read one pass.
        teacher_width: The teacher's features; null finds it out.
    """

    name = "feature_distillation"
    views_apart = True
    training_settings = ("token_dropout", "weight")
    compares_batch = True
    uses_pooling = False
    reads_mean_by = "mask"
    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(
        self, teacher: str, weight: float = 1.0, token_dropout: float = 0.0, teacher_width: int | None = None
    ) -> None:
        super().__init__()
        check_number("FeatureDistillation.teacher_width", teacher_width, least=1)
        self.teacher = teacher
        self.weight = weight
        self.token_dropout = token_dropout
        self.teacher_width = teacher_width
        self.pass_name = name_of_pass("FeatureDistillation", token_dropout)
        self.predictor: nn.Linear | None = None
        # What reads a teacher by its name: the module's, which knows of runs and files.
        self.load_teacher: Callable[[str], Teacher] | None = None
        self._teacher: Teacher | None = None
        self._vocabulary: Vocabulary | None = None

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """The teacher is there, and reads texts; what was trained before may be used without it."""
        if self.teacher_width is None:
            self.find_teacher()

    def find_teacher(self) -> Teacher:
        """The teacher, read once."""
        if self._teacher is None:
            self._teacher = required(self.load_teacher)(self.teacher)
        return self._teacher

    def build(self, encoder: TextEncoder, vocabulary: Vocabulary | None = None) -> None:
        """Make the predictor. What a checkpoint tells of the teacher is believed, so that it need not be there."""
        self._vocabulary = vocabulary
        if self.predictor is None:
            if self.teacher_width is None:
                self.teacher_width = self.find_teacher().width
            self.predictor = nn.Linear(encoder.width, self.teacher_width)
            initialise(self.predictor)
            self.register_buffer("mean", torch.zeros(self.teacher_width))
            self.register_buffer("variance", torch.ones(self.teacher_width))
            self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def make_pass(self, batch: Batch, encoder: TextEncoder, generator: torch.Generator) -> EncoderPass:
        """All first halves, then all second halves."""
        return halves_pass(batch, generator, self.token_dropout if self.training else 0.0)

    @torch.no_grad()
    def standardised_features(self, batch: Batch, device: torch.device) -> Tensor:
        """The teacher's features of whole texts, (B, its width), float32, by the mean and variance over texts."""
        features = at_least_float32(self.find_teacher().features(batch, required(self._vocabulary), device))
        mean, variance = (at_least_float32(part) for part in (self.mean, self.variance))
        if self.training:
            everyone = gather_rows(features)
            mean, variance = everyone.mean(dim=0), everyone.var(dim=0, unbiased=False)
            self.batches += 1
            share = (1.0 / self.batches).clamp(min=MOMENTUM)
            self.mean.lerp_(mean.to(self.mean.dtype), share.to(self.mean.dtype))
            self.variance.lerp_(variance.to(self.variance.dtype), share.to(self.variance.dtype))
        return (features - mean) * (variance + EPSILON).rsqrt()

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: TextEncoder
    ) -> ObjectiveOutput:
        """Mean squared error over all halves and features, which training standardises by all processes' batches."""
        target = self.standardised_features(batch, features.device).repeat(2, 1)
        predictor = required(self.predictor)
        prediction = at_least_float32(predictor(means_of_halves(features, targets).to(predictor.weight.dtype)))
        loss = nn.functional.mse_loss(prediction, target.to(prediction.dtype))
        halves = torch.full((), float(len(target)), device=loss.device)
        return ObjectiveOutput(loss, {"loss": (loss.detach() * halves, halves)})

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """Of telling always the mean of standardised features."""
        return {"loss": 1.0}

    def pass_shape(self, encoder: TextEncoder, samples: int, sequence_length: int) -> tuple[int, int]:
        """The halves."""
        return shape_of_halves(samples, sequence_length, self.token_dropout)

    def forward_flops(self, encoder: TextEncoder, samples: int, sequence_length: int) -> float:
        """Operations of the predictor; the teacher's, which learns nothing, are not counted."""
        return 4.0 * samples * encoder.width * required(self.teacher_width)

    def check_encoder(self, encoder: TextEncoder) -> None:
        """Tokens can be hidden of attention that reads a mask alone."""
        check_hiding(self, encoder)

    def check_data(self, encoder: TextEncoder, facts: DataFacts) -> None:
        """The sequences must be of one text each, and long enough to be cut."""
        check_halves("FeatureDistillation", facts)
