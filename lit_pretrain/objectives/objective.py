"""What every pretext task answers, and how several of them share the encoder's passes.

An objective is given a clean batch; it makes its own corrupted input and targets with a generator it is handed, owns
its head, and returns a loss, its metrics and, on request, things to look at. Texts and pictures have the same methods.
docs/adding_an_objective.md tells how to write one.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.backbone.pooling import mean_pool
from lit_pretrain.class_paths import build, class_and_file, class_path_of
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.batch import Batch, DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies
from lit_pretrain.objectives.outputs import (
    EncoderPass,
    ObjectiveOutput,
    check_batch,
    check_inputs,
    check_output,
    check_pass,
    check_terms,
    check_unchanged,
    states,
)
from lit_pretrain.objectives.rates import Rate, rate_at
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image


class Vocabulary(Protocol):
    """What an objective on text must know of the tokenizer."""

    vocabulary_size: int
    mask_id: int
    special_ids: list[int]
    continuation_mask: Any  # (V,) booleans, True where a piece continues a word ("##ing")

    def decode(self, ids: list[int], keep_special: bool = False) -> str:
        """Text of word pieces."""

    def id_to_token(self, token_id: int) -> str:
        """A word piece by its id."""


class Objective(nn.Module):
    """Base of the pretext tasks.

    A subclass has a `name` of its own, calls `super().__init__()` first, stores each argument of its constructor under
    the argument's own name, so that `settings` can tell how to build it again, and makes its parts in `build`. It must
    have `compute`, and `make_pass` unless `passes` is 0; everything else has a default.

    The encoder that its methods are given is a TextEncoder, a VisionEncoder or what has the same methods: a subclass
    says which, and refuses others in `check_encoder`.
    """

    name: ClassVar[str] = ""
    # Losses in nats over tokens, whose exponential is a perplexity.
    perplexities: ClassVar[tuple[str, ...]] = ()
    # Passes through the encoder that this objective asks for; 0 if it reads another's.
    passes: ClassVar[int] = 1
    # Whether objectives without a pass of their own may read its pass: it has the batch's own rows, each token at its
    # own place, and every token sees all others. A class that makes another pass than its base says so again.
    shares_pass: ClassVar[bool] = False
    # Whether a pass has all samples' first views, then all second ones, and not a sample's views one after the other.
    views_apart: ClassVar[bool] = False
    # Objectives with the same name here make the same pass, which is run once for all of them.
    pass_name: str = ""
    # Whether the encoder's pooling and its positions learn from this; what no objective uses is left as it is.
    uses_pooling: bool = True
    uses_positions: bool = True
    # Whether the loss has means over what batches of equal size have unequally many of (hidden positions, pictures with
    # colours); then `terms` counts it.
    uneven: ClassVar[bool] = False
    # What `arrange` and `count_terms` read of a batch beside `input_ids` and `attention_mask`, or `images`.
    fields_ahead: ClassVar[tuple[str, ...]] = ()
    # Settings that a trained head does not depend on: with others than it was trained with, it serves as well.
    training_settings: ClassVar[tuple[str, ...]] = ("weight",)
    # Whether samples are compared with the others of their batch, so that a larger batch is another task.
    compares_batch: ClassVar[bool] = False
    # Whether it is about tokens, so that a row may hold several texts (`data.packing`), which `clean_inputs` passes on.
    packable: ClassVar[bool] = False
    # The target of the pass by which `compute` averages the features of each row first, 1 where they count. Where all
    # that read a pass say the same, it is done once for them: `compute` is given the means, (B, D) float32 at least.
    reads_mean_by: ClassVar[str | None] = None
    # Whether word pieces are predicted by the encoder's own table of them, so that all of its rows have a gradient.
    ties_embeddings: ClassVar[bool] = False
    weight: float = 1.0
    # Whether this changes over the training; then `training_share` is how much of it is over, before every step.
    varies: bool = False
    training_share: float = 0.0

    def rate_now(self, rate: Rate) -> float:
        """A share that may change over the training; in evaluation always the last one, so that figures compare."""
        return rate_at(rate, self.training_share if self.training else 1.0)

    @property
    def loss_factors(self) -> dict[str, float]:
        """Statistics whose sum, each with its factor, is the loss."""
        return {"loss": 1.0}

    # -- before training

    def check_encoder(self, encoder: Any) -> None:
        """Raise `UserError` if this encoder cannot learn from this objective, before any data is read."""

    def check_data(self, encoder: Any, facts: DataFacts) -> None:
        """Raise `UserError` if the data cannot serve this objective, or not at the encoder's size."""

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise `UserError` if this tokenizer lacks what this objective needs, before any text is read."""

    def build(self, encoder: Any, vocabulary: Vocabulary | None = None) -> None:
        """Make the head, once the encoder's width and, of texts, the tokenizer are known; may be called again."""

    def measure(self, images: Tensor) -> None:
        """Take what must be known of the data from some training pictures (N, 3, S, S), uint8, after `build`.

        They are read for those objectives alone that have this method.
        """

    # -- a step

    def arrange(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Change the clean batch for every objective of the mix, before any of them makes its pass from it.

        By this two objectives learn from one corrupted pass: sentence order prediction swaps texts and adds its answers
        as a field, masked language modelling hides tokens of what it finds, and both read that pass (ALBERT).
        """
        return batch

    def make_pass(self, batch: Batch, encoder: Any, generator: torch.Generator) -> EncoderPass | None:
        """Corrupt the clean batch, which stays as it is; null, if `passes` is 0: it reads a pass that others share."""
        if self.passes:
            raise NotImplementedError
        return None

    def compute(self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: Any) -> ObjectiveOutput:
        """Loss and statistics from the encoder's features (B, N, D), or their means (`reads_mean_by`), and the pass's
        targets.
        """
        raise NotImplementedError

    def terms(self, targets: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """How many terms the means of the loss have, scalars by the names of their statistics, if they are `uneven`.

        Args:
            targets: Of the pass.
            batch: Clean batch.
        """
        return {}

    def targets_of(self, targets: dict[str, Tensor], sample: int, samples: int) -> dict[str, Tensor]:
        """The targets of one sample of a pass, with which `compute` compares its features alone.

        Args:
            targets: Of the pass.
            sample: Which, from 0.
            samples: Of the batch.
        """
        return {
            name: value[self.rows_of_sample(sample, samples, len(value))]
            if isinstance(value, Tensor) and value.ndim and len(value) % samples == 0
            else value
            for name, value in targets.items()
        }

    def rows_of_sample(self, sample: int, samples: int, rows: int) -> slice:
        """Where the rows of a sample lie among those of a pass; see `views_apart`."""
        each = rows // samples
        return slice(sample, None, samples) if self.views_apart else slice(sample * each, (sample + 1) * each)

    def count_terms(self, batch: Batch, encoder: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """As `terms`, of a batch that is not trained on yet; draws what `make_pass` draws."""
        made = self.make_pass(batch, encoder, generator)
        return self.terms({} if made is None else made.targets, batch)

    def forward(self, encoder: Any, batch: Batch, generator: torch.Generator) -> ObjectiveOutput:
        """This objective alone: corrupt, encode, compare."""
        return compute_objectives(encoder, [self], batch, generator)[self.name]

    # -- what it costs, and what is looked at

    def chance(self, frequencies: AnswerFrequencies) -> dict[str, float]:
        """Statistics by name, as they are without learning: of a guess that looks at no sample; those that are known.

        A person sees them beside what was learned.
        """
        return {}

    def pass_shape(self, encoder: Any, samples: int, sequence_length: int) -> tuple[int, int]:
        """Sequences that the pass of a batch sends through the encoder, and the tokens of each.

        Args:
            encoder: That it is sent through.
            samples: Of the batch.
            sequence_length: Tokens of a clean sample, those of a whole picture with the encoder's prefix.
        """
        return samples, sequence_length

    def forward_flops(self, encoder: Any, samples: int, sequence_length: int) -> float:
        """Operations of a forward pass beyond the encoder's own pass, of a clean batch as in `pass_shape`: the head's
        matrix products.
        """
        return 0.0

    def examples(
        self,
        encoder: Any,
        batch: Batch,
        vocabulary: Any,
        generator: torch.Generator,
        count: int = 8,
    ) -> "list[dict[str, str]] | Image | None":
        """What a person looks at, of the first `count` samples of a clean batch: rows of words on texts, a picture on
        pictures (see `picture_panels.grid`); none by default.
        """
        return None

    def huggingface_names(self) -> dict[str, str]:
        """Ours -> Hugging Face's names of the head's tensors, for export; empty if that format has no such head."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The class and the arguments that build this objective again, primitives only; see `objective_from`.

        Raises:
            UserError: If the class keeps an argument under another name than its own.
        """
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        lost = [name for name in names if not hasattr(self, name)]
        if lost:
            raise UserError(
                f"{class_and_file(type(self))} keeps no attribute of the name of its argument {lost[0]}, so that no "
                f"checkpoint could build it again: set self.{lost[0]} in its constructor, or write a `settings` of its "
                "own."
            )
        return {"class_path": class_path_of(type(self)), "init_args": {name: getattr(self, name) for name in names}}


def objective_from(settings: dict[str, Any]) -> Objective:
    """Build an objective from what its `settings` returned; a user's own class is imported.

    Raises:
        UserError: If it cannot be.
    """
    return build(settings["class_path"], settings["init_args"], Objective, "an objective")


def compute_objectives(
    encoder: Any, objectives: Sequence[Objective], batch: Batch, generator: torch.Generator
) -> dict[str, ObjectiveOutput]:
    """Run every objective on one clean batch with as few passes through the encoder as their inputs allow.

    An objective without a pass of its own (next sentence prediction) reads the first one that another shares, as BERT's
    authors do with the masked input, and the clean batch's if there is none; see `pass_read`.

    Args:
        encoder: With `forward_features`.
        objectives: Any mix, each at most once.
        batch: Clean batch on the encoder's device.
        generator: Source of every draw, on the same device.

    Returns:
        Output by the objective's name.

    Raises:
        UserError: If an objective returns something else than it should.
    """
    batch = arrange_batch(objectives, batch, generator)
    before = states(batch)
    passes: dict[str, EncoderPass] = {}
    for objective in objectives:
        made = objective.make_pass(batch, encoder, generator)
        check_pass(objective, made)
        check_unchanged(objective, "make_pass", batch, before)
        if made is not None:
            passes[objective.name] = made
    run: dict[str, Tensor] = {}
    for objective in objectives:
        name = objective.pass_name or objective.name
        if objective.name in passes and name not in run:
            run[name] = encode(objective, passes[objective.name], encoder)
    readers = [objective for objective in objectives if objective.name not in passes]
    if readers:
        source = pass_read(objectives)
        read = encoder.forward_features(**clean_inputs(batch, encoder)) if source is None else run[source]
        for objective in readers:
            passes[objective.name] = EncoderPass({})
            run[objective.pass_name or objective.name] = read
    for name, reader in readers_of_means(objectives).items():
        mask = passes[reader.name].targets[required(reader.reads_mean_by)]
        run[name] = mean_pool(at_least_float32(run[name]), mask)
    outputs = {}
    for objective in objectives:
        features, targets = run[objective.pass_name or objective.name], passes[objective.name].targets
        outputs[objective.name] = objective.compute(features, targets, batch, encoder)
        check_output(objective, outputs[objective.name], features)
        check_unchanged(objective, "compute", batch, before)
        if objective.uneven and not objective.training:
            # Counted in training if batches are accumulated, which is no time to learn of a mistake.
            parts = outputs[objective.name].parts or {"loss": features}
            check_terms(objective, objective.terms(targets, batch), set(parts))
    return outputs


def readers_of_means(objectives: Sequence[Objective]) -> dict[str, Objective]:
    """The passes that several objectives read by the same means alone, and one of these; see `reads_mean_by`."""
    readers: dict[str, list[Objective]] = {}
    for objective in objectives:
        name = objective.pass_name or objective.name
        if objective.passes == 0:
            name = pass_read(objectives) or name
        readers.setdefault(name, []).append(objective)
    return {
        name: first
        for name, (first, *others) in readers.items()
        if others and first.reads_mean_by and all(other.reads_mean_by == first.reads_mean_by for other in others)
    }


def encode(objective: Objective, made: EncoderPass, encoder: Any) -> Tensor:
    """Features of a pass; an error within the encoder says whose pass it was, and of what."""
    check_inputs(objective, made, encoder)
    try:
        features: Tensor = encoder.forward_features(**made.inputs)
    except Exception as error:
        shown = [f"{name} {describe(value)}" for name, value in made.inputs.items()]
        error.add_note(f"In the pass that {class_and_file(type(objective))} has made, of {', '.join(shown)}.")
        raise
    return features


def describe(value: Any) -> str:
    """Shape and type of a tensor, or a value."""
    return f"{tuple(value.shape)} {str(value.dtype)[6:]}" if isinstance(value, Tensor) else repr(value)


def arrange_batch(objectives: Sequence[Objective], batch: Batch, generator: torch.Generator) -> Batch:
    """The clean batch as all objectives of a mix read it; see `Objective.arrange`."""
    for objective in objectives:
        clean, before = batch, states(batch)
        batch = objective.arrange(clean, generator)
        check_batch(objective, batch)
        check_unchanged(objective, "arrange", clean, before)
    return batch


def pass_read(objectives: Sequence[Objective]) -> str | None:
    """The name of the pass that objectives without one of their own read; null for one of the clean batch."""
    return next(
        (
            objective.pass_name or objective.name
            for objective in objectives
            if objective.passes and objective.shares_pass
        ),
        None,
    )


def passes_run(objectives: Sequence[Objective]) -> list[Objective]:
    """The passes through the encoder that `compute_objectives` runs for a mix, each by the objective that makes it.

    Objectives of one `pass_name` make one pass together; those without a pass read the first one that is shared, or a
    pass of the clean batch if there is none.
    """
    passes: list[Objective] = []
    for objective in objectives:
        shared = objective.pass_name and any(earlier.pass_name == objective.pass_name for earlier in passes)
        passes += [] if shared else [objective] * objective.passes
    readers = [objective for objective in objectives if objective.passes == 0]
    if readers and pass_read(objectives) is None:
        passes.append(readers[0])
    return passes


def clean_inputs(batch: Batch, encoder: Any = None) -> dict[str, Any]:
    """The encoder's arguments for a batch as it is; the encoder, which knows how they are normalised, for pictures."""
    if encoder is not None and "images" in batch:
        return {"images": encoder.normalize(batch["images"])}
    names = ("input_ids", "attention_mask", "token_type_ids", "padded", "documents")
    return {name: batch[name] for name in names if name in batch}


def global_mean(total: Tensor, count: Tensor, training: bool) -> Tensor:
    """Mean over the whole batch of all processes, as this process's share of it.

    The processes' gradients are averaged afterwards, so each returns its own sum times the number of processes over the
    global count: processes with more masked positions weigh more, as in one process with the whole batch.

    Args:
        total: Scalar sum of this process.
        count: Scalar number of terms of this process, or the sum of their weights; the mean of none is 0, not NaN.
        training: In evaluation processes may have different numbers of batches, so they must not wait for each other.
    """
    count = count.to(total.dtype)
    if training and torch.distributed.is_available() and torch.distributed.is_initialized():
        count = count.clone()
        torch.distributed.all_reduce(count)
        total = total * torch.distributed.get_world_size()
    return total / torch.where(count > 0, count, 1.0)


def require_both_sides(objective: Objective, encoder: Any, task: str) -> None:
    """Raise a `UserError` if an encoder sees the text before a token alone.

    Args:
        objective: That learns nothing then, or something else.
        encoder: Any.
        task: What the objective does, which takes both sides.
    """
    if getattr(encoder, "causal", False):
        raise UserError(
            f"{type(objective).__name__} {task}, and in a causal encoder no token sees a later one: take one that is "
            "not (encoder.causal: false), or CausalLanguageModeling."
        )


def require_fields(objective: Objective, fields: Sequence[str], needed: str, advice: str) -> None:
    """Raise a `UserError` if the batch lacks what the objective learns from."""
    if needed not in fields:
        raise UserError(f"{type(objective).__name__} needs '{needed}' in the batches, which this data lacks: {advice}.")
