"""What any mix of objectives on one encoder needs, as a whole training or beside another loss."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.class_paths import class_and_file
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.errors import UserError
from lit_pretrain.modules.accumulation import Shares
from lit_pretrain.modules.operations import encoder_operations, is_trained, passes_of
from lit_pretrain.modules.teachers import give_teachers
from lit_pretrain.objectives.batch import DataFacts
from lit_pretrain.objectives.chance import AnswerFrequencies
from lit_pretrain.objectives.class_checks import check_class, check_reading, is_measuring
from lit_pretrain.objectives.lejepa import LeJEPA
from lit_pretrain.objectives.objective import Batch, Objective, ObjectiveOutput, arrange_batch, passes_run
from lit_pretrain.objectives.outputs import check_terms
from lit_pretrain.objectives.vision_objective import VisionObjective

# Pictures from which an objective may take what it must know of the data before the first step.
MEASURED_PICTURES = 2048


def check_objectives(objectives: Sequence[Objective], setting: str = "model") -> None:
    """At least one objective, each once, and each such that it can be trained on and a checkpoint can build it again.

    Raises:
        UserError: Else, naming the `objectives` of a setting, or the class at fault.
    """
    if not objectives:
        raise UserError(f"{setting}.objectives is empty: name at least one objective to train on.")
    for objective in objectives:
        check_class(objective)
    for place, objective in enumerate(objectives):
        twin = next((earlier for earlier in objectives[:place] if earlier.name == objective.name), None)
        if twin is not None and type(twin) is type(objective):
            raise UserError(f"{setting}.objectives names {objective.name} twice: keep one, and set its weight.")
        if twin is not None:
            raise UserError(
                f"{class_and_file(type(twin))} and {class_and_file(type(objective))} both have the name "
                f"'{objective.name}', by which metrics are logged: give one of them another."
            )
    check_reading(objectives)


def check_encoder(objectives: Sequence[Objective], encoder: nn.Module) -> None:
    """Refuse objectives that an encoder cannot learn from, before any data is read.

    Raises:
        UserError: In one sentence.
    """
    for objective in objectives:
        if isinstance(objective, VisionObjective) and isinstance(encoder, TextEncoder):
            raise UserError(
                f"{class_and_file(type(objective))} learns from pictures, and this trains on texts: leave it out."
            )
        objective.check_encoder(encoder)


@contextmanager
def any_objectives(encoder: Any) -> Iterator[None]:
    """Within this a causal encoder takes objectives that are refused for it today: a checkpoint may have them."""
    causal = getattr(encoder, "causal", False)
    if causal:
        encoder.causal = False
    try:
        yield
    finally:
        if causal:
            encoder.causal = True


# -- before training


def build_on_texts(objectives: Iterable[Objective], encoder: TextEncoder, tokenizer: Any, data: Any) -> None:
    """Check that data of texts serves the objectives, and make the heads.

    Args:
        objectives: On texts.
        encoder: Its vocabulary is the tokenizer's.
        tokenizer: Of the data.
        data: With `sequence_length` and `batch_fields`; null checks nothing.

    Raises:
        UserError: If sequence length and position table, or data and objectives do not fit.
    """
    give_teachers(objectives)
    if data is not None:
        check_on_texts(objectives, encoder, data)
    for objective in objectives:
        objective.build(encoder, tokenizer)


def check_on_texts(objectives: Iterable[Objective], encoder: TextEncoder, data: Any) -> None:
    """Check that data of texts serves the objectives, by its settings alone: before it is read, too.

    Args:
        objectives: On texts.
        encoder: That is trained.
        data: With `sequence_length` and `batch_fields`; without them nothing is checked.

    Raises:
        UserError: If sequence length and position table, or data and objectives do not fit.
    """
    if not hasattr(data, "sequence_length"):
        return
    encoder.check_length(data.sequence_length)
    layout = getattr(data, "layout", "")
    facts = DataFacts(tuple(getattr(data, "batch_fields", ())), layout, sequence_length=data.sequence_length)
    for objective in objectives:
        if "documents" in facts.fields and not objective.packable:
            raise UserError(
                f"data.packing puts several texts into a sequence, and {class_and_file(type(objective))} takes a "
                "sequence for one text: leave one of the two out (predicting words goes with packing)."
            )
        objective.check_data(encoder, facts)


def build_on_pictures(
    objectives: Iterable[VisionObjective],
    encoder: VisionEncoder,
    augmentation: ImageAugmentation,
    data: Any,
    training: bool,
) -> None:
    """Check that pictures, encoder and objectives fit, make the heads, and let objectives look at the data.

    Args:
        objectives: On pictures.
        encoder: Pictures are cropped to its `image_size`.
        augmentation: What is varied in training.
        data: With `facts` and `train_dataset`; null checks and measures nothing.
        training: Whether the data is trained on, which decides how evaluation frames pictures.

    Raises:
        UserError: If the pictures are too small or too grey, or an objective cannot work at the encoder's size.
    """
    facts = getattr(data, "facts", None)
    if facts is not None:
        augmentation.check(facts.stored_size, encoder.image_size)
        encoder.frame_as_stored(facts.stored_size, training)
        known = DataFacts(
            tuple(getattr(data, "batch_fields", ())),
            "pictures",
            stored_size=facts.stored_size,
            grey_share=facts.grey_share,
        )
        for objective in objectives:
            objective.check_data(encoder, known)
    for objective in objectives:
        objective.build(encoder)
        if isinstance(objective, LeJEPA):
            objective.vary = augmentation.vary
        if facts is not None and is_measuring(objective):
            objective.measure(encoder.frame(measured_pictures(data.train_dataset)))


def measured_pictures(dataset: Any) -> Tensor:
    """Training pictures at even distances, (N, 3, S, S) uint8, the same in every process."""
    count = min(MEASURED_PICTURES, len(dataset))
    return dataset.__getitems__([(0, index * len(dataset) // count) for index in range(count)])["images"]


# -- losses and metrics


def weights_of(objectives: Iterable[Objective]) -> dict[str, float]:
    """Factor of each objective's loss, by its name."""
    return {objective.name: objective.weight for objective in objectives}


def sum_losses(outputs: dict[str, ObjectiveOutput], weights: dict[str, float], shares: Shares = Shares()) -> Tensor:  # noqa: B008 (frozen)
    """Weighted sum of the objectives' losses.

    Args:
        outputs: By the objectives' names.
        weights: By the same.
        shares: What the batch counts among accumulated ones.
    """
    terms = []
    for name, output in outputs.items():
        parts = output.parts if shares.counted and output.parts else {"loss": output.loss}
        terms += [weights[name] * shares.of(f"{name}/{part}") * value for part, value in parts.items()]
    return torch.stack(terms).sum()


def count_terms(
    objectives: Sequence[Objective], encoder: nn.Module, batch: Batch, generator: torch.Generator
) -> dict[str, Tensor]:
    """How many terms the objectives' means have on a training batch, by "objective/mean", without the encoder.

    Args:
        objectives: In their order, in which they draw.
        encoder: That the batch is corrupted for.
        batch: As the objectives read it.
        generator: As `compute_objectives` is going to have it.
    """
    batch = arrange_batch(objectives, batch, generator)
    counts_by_name: dict[str, Tensor] = {}
    last = max((place for place, objective in enumerate(objectives) if objective.uneven), default=-1)
    for objective in objectives[: last + 1]:
        counts = objective.count_terms(batch, encoder, generator)
        check_terms(objective, counts)
        counts_by_name |= {f"{objective.name}/{name}": count for name, count in counts.items()}
    return counts_by_name


def flatten(outputs: dict[str, ObjectiveOutput], objectives: Iterable[Objective]) -> dict[str, tuple[Tensor, Tensor]]:
    """All statistics by "objective/statistic".

    The weighted sum of losses follows from their means (`total_loss`), which are exact however many terms batches have;
    where an objective's loss does not, the sum is among them as "loss", a mean over batches.
    """
    flat = {f"{name}/{key}": pair for name, output in outputs.items() for key, pair in output.statistics.items()}
    if all(f"{objective.name}/{name}" in flat for objective in objectives for name in objective.loss_factors):
        return flat
    weights = weights_of(objectives)
    losses = [weights[name] * at_least_float32(output.loss.detach()) for name, output in outputs.items()]
    total = torch.stack(losses).sum()
    return {"loss": (total, torch.ones_like(total))} | flat


def perplexities(objectives: Iterable[Objective], means: dict[str, Tensor]) -> dict[str, Tensor]:
    """Perplexities of the losses over tokens, of means by "objective/statistic"."""
    values = {}
    for objective in objectives:
        for name in objective.perplexities:
            if (key := f"{objective.name}/{name}") in means:
                values[f"{objective.name}/{name.replace('loss', 'perplexity')}"] = means[key].exp()
    return values


def total_loss(objectives: Iterable[Objective], means: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weighted sum of losses as "loss", of means by "objective/statistic" that `flatten` gave the sums of."""
    factors = {
        f"{objective.name}/{name}": objective.weight * by
        for objective in objectives
        for name, by in objective.loss_factors.items()
    }
    losses = [factor * means[key] for key, factor in factors.items() if key in means]
    return {"loss": torch.stack(losses).sum()} if losses and "loss" not in means else {}


def frequencies_of(data: Any) -> AnswerFrequencies:
    """How often what objectives ask for occurs in a data module, of whatever class, or null."""
    shares = getattr(data, "piece_shares", None)
    return AnswerFrequencies(
        pieces=torch.as_tensor(shares()) if callable(shares) else None,
        random_pairs=getattr(data, "random_share", 0.5),
        batch_size=getattr(data, "batch_size", None),
    )


def latest_evaluation(trainer: Any) -> dict[str, float]:
    """What a trainer's latest evaluation has logged, by name without the stage; without any, what its training has."""
    for stage in ("test/" if trainer.testing else "validation/", "train/"):
        metrics = trainer.callback_metrics.items()
        if found := {name.removeprefix(stage): float(value) for name, value in metrics if name.startswith(stage)}:
            return found
    return {}


def chance_of_mix(
    objectives: Sequence[Objective], data: Any, measured: Mapping[str, float] | None = None
) -> dict[str, float]:
    """What a mix's figures are without learning, by "objective/statistic"; their sum too, if all losses are known.

    Args:
        objectives: Of the mix.
        data: The data module, of whatever class, or null.
        measured: Means of the latest evaluation, by "objective/statistic".
    """
    frequencies = frequencies_of(data)

    own: dict[str, dict[str, float]] = {objective.name: {} for objective in objectives}
    for name, value in (measured or {}).items():
        head, _, tail = name.partition("/")
        own.setdefault(head, {})[tail] = value
    means = {
        f"{objective.name}/{name}": torch.tensor(value, dtype=torch.float64)
        for objective in objectives
        for name, value in objective.chance(replace(frequencies, statistics=own[objective.name])).items()
    }
    losses = {f"{objective.name}/{name}" for objective in objectives for name in objective.loss_factors}
    total = total_loss(objectives, means) if losses <= means.keys() else {}
    return {name: float(value) for name, value in (total | means | perplexities(objectives, means)).items()}


def mix(objectives: Iterable[Objective]) -> str:
    """The objectives with their weights, as a person would write them."""
    return " + ".join(
        f"{objective.weight:g} x {objective.name}" if objective.weight != 1 else objective.name
        for objective in objectives
    )


# -- costs


def cost_on_texts(objectives: Sequence[Objective], encoder: TextEncoder, batch: Batch) -> dict[str, float]:
    """Samples, tokens (padding included) and floating-point operations of one training batch; see `operations_of`."""
    samples, length = batch["input_ids"].shape
    flops = operations_of(objectives, encoder, samples, length)
    return {"samples": samples, "tokens": samples * length, "flops": flops}


def cost_on_pictures(objectives: Sequence[VisionObjective], encoder: VisionEncoder, batch: Batch) -> dict[str, float]:
    """As `cost_on_texts`: pictures and floating-point operations."""
    samples = len(batch["images"])
    flops = operations_of(objectives, encoder, samples, encoder.prefix_tokens + encoder.patches)
    return {"samples": samples, "flops": flops}


def operations_of(
    objectives: Sequence[Objective], encoder: TextEncoder | VisionEncoder, samples: int, length: int
) -> float:
    """Floating-point operations of a training step: those of every pass's matrix products, and the heads', by the rule
    of `modules.operations`.

    Args:
        objectives: In a mix.
        encoder: That all passes are sent through.
        samples: Of a clean batch.
        length: Tokens of a clean sample.
    """
    flops = 0.0
    for objective in passes_run(objectives):
        sequences, tokens = objective.pass_shape(encoder, samples, length)
        flops += sequences * encoder_operations(encoder, tokens)
    return flops + sum(
        head_operations(objective, encoder, objective.forward_flops(encoder, samples, length))
        for objective in objectives
    )


def head_operations(objective: Objective, encoder: TextEncoder | VisionEncoder, forward: float) -> float:
    """Operations of a training step of an objective's head; one without weights multiplies features with features."""
    below = is_trained(encoder)
    return forward * passes_of(
        is_trained(objective) or (below and not any(True for _ in objective.parameters())), below
    )
