"""What every pretext task answers, and how several of them share the encoder's passes.

An objective is given a clean batch; it makes its own corrupted input and targets with a generator it is handed, owns
its head, and returns a loss, its metrics and, on request, things to look at.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lit_pretrain.class_paths import build, class_path_of
from lit_pretrain.errors import UserError

# Tensors by name; of texts also `padded`, a plain bool: whether there is any padding, which only their loader knows
# without waiting for the device. A batch that does not say may have some.
Batch = dict[str, Tensor]


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


@dataclass
class EncoderPass:
    """One pass through the encoder that an objective asks for.

    Attributes:
        inputs: Keyword arguments of the encoder's `forward_features`.
        targets: What the objective will compare with.
    """

    inputs: dict[str, Any]
    targets: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ObjectiveOutput:
    """What an objective says of one batch.

    Attributes:
        loss: Scalar to minimise; over several processes, its mean over them is the loss of the whole batch.
        statistics: Name -> (sum, count), scalars that do not require gradients; a metric is sum / count over batches.
            Losses are in nats.
        parts: The means, with their factors, that the loss is the sum of, by the names of `Objective.terms`; may be
            left out where there is one.
    """

    loss: Tensor
    statistics: dict[str, tuple[Tensor, Tensor]]
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """Base of the pretext tasks.

    A subclass stores each argument of its constructor under the argument's own name, so that `settings` can tell how to
    build it again.
    """

    name: ClassVar[str] = ""
    # Losses in nats over tokens, whose exponential is a perplexity.
    perplexities: ClassVar[tuple[str, ...]] = ()
    # Passes through the encoder that this objective asks for; 0 if it reads another's.
    passes: ClassVar[int] = 1
    # Whether its pass hides later tokens from each, so that objectives without a pass of their own cannot read it.
    causal: ClassVar[bool] = False
    # Objectives with the same name here make the same pass, which is run once for all of them.
    pass_name: str = ""
    # Whether the encoder's pooling and its positions learn from this; what no objective uses is left as it is.
    uses_pooling: bool = True
    uses_positions: bool = True
    # Whether the loss has means over what batches of equal size have unequally many of (hidden positions, pictures with
    # colours); then `terms` counts it.
    uneven: ClassVar[bool] = False
    # Whether samples are compared with the others of their batch, so that a larger batch is another task.
    compares_batch: ClassVar[bool] = False
    weight: float = 1.0

    @property
    def loss_factors(self) -> dict[str, float]:
        """Statistics whose sum, each with its factor, is the loss."""
        return {"loss": 1.0}

    def build(self, encoder: nn.Module, vocabulary: Vocabulary | None = None) -> None:
        """Make the head, once the encoder's width and the tokenizer are known."""

    def make_pass(self, batch: Batch, encoder: nn.Module, generator: torch.Generator) -> EncoderPass | None:
        """Corrupt the clean batch; null means the objective reads whatever bidirectional pass is made."""
        raise NotImplementedError

    def compute(
        self, features: Tensor, targets: dict[str, Tensor], batch: Batch, encoder: nn.Module
    ) -> ObjectiveOutput:
        """Loss and statistics from the encoder's features (B, N, D) and the pass's targets."""
        raise NotImplementedError

    def terms(self, targets: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """How many terms the means of the loss have, scalars by the names of their statistics, if they are `uneven`.

        Args:
            targets: Of the pass.
            batch: Clean batch.
        """
        return {}

    def count_terms(self, batch: Batch, encoder: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """As `terms`, of a batch that is not trained on yet; draws what `make_pass` draws."""
        made = self.make_pass(batch, encoder, generator)
        return self.terms({} if made is None else made.targets, batch)

    def forward(self, encoder: nn.Module, batch: Batch, generator: torch.Generator) -> ObjectiveOutput:
        """This objective alone: corrupt, encode, compare."""
        return compute_objectives(encoder, [self], batch, generator)[self.name]

    def examples(
        self, encoder: nn.Module, batch: Batch, vocabulary: Vocabulary, generator: torch.Generator, count: int = 8
    ) -> list[dict[str, str]]:
        """Rows for a person to look at, of the first `count` samples; none by default."""
        return []

    def pass_shape(self, samples: int, sequence_length: int) -> tuple[int, int]:
        """Sequences that the pass of a batch of texts sends through the encoder, and the tokens of each."""
        return samples, sequence_length

    def forward_flops(self, encoder: nn.Module, samples: int, sequence_length: int) -> float:
        """Operations of a forward pass beyond the encoder's own pass: the head's matrix products."""
        return 0.0

    def check(self, batch_keys: Sequence[str], sequence_length: int) -> None:
        """Raise `UserError` if the data cannot serve this objective, before any training."""

    def check_encoder(self, encoder: nn.Module) -> None:
        """Raise `UserError` if this encoder cannot learn from this objective, before any data is read."""

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
                f"{class_path_of(type(self))} keeps no attribute of the name of its argument {lost[0]}, so that no "
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
    encoder: nn.Module, objectives: Sequence[Objective], batch: Batch, generator: torch.Generator
) -> dict[str, ObjectiveOutput]:
    """Run every objective on one clean batch with as few passes through the encoder as their inputs allow.

    An objective without a pass of its own (next sentence prediction) reads the first bidirectional pass of another, as
    BERT's authors do with the masked input, and the clean batch if there is none.

    Args:
        encoder: With `forward_features`.
        objectives: Any mix, each at most once.
        batch: Clean batch on the encoder's device.
        generator: Source of every draw, on the same device.

    Returns:
        Output by the objective's name.
    """
    passes = {objective.name: objective.make_pass(batch, encoder, generator) for objective in objectives}
    features: dict[str, Tensor | None] = {}
    run: dict[str, Tensor] = {}
    for objective in objectives:
        one, name = passes[objective.name], objective.pass_name or objective.name
        if one is not None and name not in run:
            run[name] = encoder.forward_features(**one.inputs)
        features[objective.name] = run.get(name)
    readers = [objective for objective in objectives if passes[objective.name] is None]
    if readers:
        read = (one for one in objectives if passes[one.name] is not None and not one.causal)
        shared = next((features[one.name] for one in read if not passes[one.name].inputs.get("causal")), None)
        if shared is None:
            shared = encoder.forward_features(**clean_inputs(batch))
        for objective in readers:
            features[objective.name], passes[objective.name] = shared, EncoderPass({})
    return {
        objective.name: objective.compute(features[objective.name], passes[objective.name].targets, batch, encoder)
        for objective in objectives
    }


def passes_run(objectives: Sequence[Objective]) -> list[Objective]:
    """The passes through the encoder that `compute_objectives` runs for a mix, each by the objective that makes it.

    Objectives of one `pass_name` make one pass together; those without a pass read the first one that is not causal, or
    a pass of the clean batch if there is none.
    """
    found: list[Objective] = []
    for objective in objectives:
        shared = objective.pass_name and any(one.pass_name == objective.pass_name for one in found)
        found += [] if shared else [objective] * objective.passes
    readers = [objective for objective in objectives if objective.passes == 0]
    if readers and all(objective.causal for objective in found):
        found.append(readers[0])
    return found


def count_passes(objectives: Sequence[Objective]) -> int:
    """Passes through the encoder that `compute_objectives` runs for a mix."""
    return len(passes_run(objectives))


def clean_inputs(batch: Batch) -> dict[str, Any]:
    """The encoder's arguments for a text batch as it is."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "padded") if name in batch}


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


def require_both_sides(objective: Objective, encoder: nn.Module, asked: str) -> None:
    """Raise a `UserError` if an encoder sees the text before a token alone.

    Args:
        objective: That learns nothing then, or something else.
        encoder: Any.
        asked: What the objective does, which takes both sides.
    """
    if getattr(encoder, "causal", False):
        raise UserError(
            f"{type(objective).__name__} {asked}, and with encoder.causal no token sees a later one: set "
            "encoder.causal to false, or take CausalLanguageModeling."
        )


def require_fields(objective: Objective, batch_keys: Sequence[str], needed: str, advice: str) -> None:
    """Raise a `UserError` if the batch lacks what the objective learns from."""
    if needed not in batch_keys:
        raise UserError(f"{type(objective).__name__} needs '{needed}' in the batches, which this data lacks: {advice}.")
