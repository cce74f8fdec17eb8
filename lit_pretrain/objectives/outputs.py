"""What an objective returns for a batch, and the sentence for a class that returns something else.

`Objective` stands above: here objectives are modules of any class.
"""

import inspect
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.class_paths import class_and_file
from lit_pretrain.errors import UserError


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


def check_batch(objective: nn.Module, batch: Any) -> None:
    """Refuse what is no batch.

    Raises:
        UserError: In one sentence.
    """
    if not isinstance(batch, dict):
        raise wrong(objective, "arrange", f"returns {kind_of(batch)}", "return the whole batch, a dict of tensors")


def states(batch: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """What tells whether a batch is still as it was, by field: which tensor, and how often it was written to."""
    # Tensors that were made in inference mode do not count how often they are written to.
    return {
        name: (id(value), value._version if isinstance(value, Tensor) and not value.is_inference() else 0)
        for name, value in batch.items()
    }


def check_unchanged(
    objective: nn.Module, method: str, batch: dict[str, Any], before: dict[str, tuple[int, int]]
) -> None:
    """Refuse a method that has changed the batch, which the other objectives of the mix read too.

    Args:
        objective: Whose method it is.
        method: That was called.
        batch: That it was handed.
        before: The batch's `states` before.

    Raises:
        UserError: In one sentence.
    """
    after = states(batch)
    if after == before:
        return
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    raise wrong(
        objective,
        method,
        f"changes the batch's own {' and '.join(names)}, which others read too",
        "make new tensors, as ids.clone(), and return a new dict, as batch | {...}",
    )


@cache
def signature_of(forward_features: Any) -> inspect.Signature:
    """The arguments of an encoder's pass."""
    return inspect.signature(forward_features)


def check_inputs(objective: nn.Module, made: EncoderPass, encoder: Any) -> None:
    """Refuse inputs that the encoder does not take.

    Raises:
        UserError: In one sentence.
    """
    method = getattr(type(encoder), "forward_features", None)
    if method is None:
        return
    signature = signature_of(method)
    try:
        signature.bind(encoder, **made.inputs)
    except TypeError as error:
        taken = ", ".join(list(signature.parameters)[1:])
        raise wrong(
            objective,
            "make_pass",
            f"returns inputs that {type(encoder).__name__}.forward_features does not take ({error})",
            f"it takes {taken}; what compute needs goes into the targets",
        ) from None


def check_terms(objective: nn.Module, terms: Any, parts: "set[str] | None" = None) -> None:
    """Refuse what does not count the terms of the loss's means.

    Args:
        objective: That has counted them.
        terms: What it returns.
        parts: Names of the means that the loss is the sum of; null if it is not computed yet.

    Raises:
        UserError: In one sentence.
    """
    advice = 'return a dict of scalar tensors, as {"loss": hidden.sum()}'
    if not isinstance(terms, dict):
        raise wrong(objective, "terms", f"returns {kind_of(terms)}", advice)
    for name, count in terms.items():
        if not is_scalar(count):
            raise wrong(objective, "terms", f"gives {kind_of(count)} as the number '{name}'", advice)
    if parts is not None and not terms.keys() <= parts:
        unknown = " and ".join(f"'{name}'" for name in sorted(terms.keys() - parts))
        known = " and ".join(f"'{name}'" for name in sorted(parts))
        raise wrong(objective, "terms", f"counts {unknown}, and the loss is a mean by the name of {known}", "use that")


def check_pass(objective: nn.Module, made: Any) -> None:
    """Refuse what is no pass, or one that the class says nothing of.

    Raises:
        UserError: In one sentence.
    """
    if made is None and objective.passes:
        raise wrong(
            objective, "make_pass", "returns None", "return an EncoderPass, or set passes = 0 to read another's pass"
        )
    if made is not None and not objective.passes:
        raise wrong(objective, "make_pass", "returns a pass, and passes is 0", "set passes = 1")
    if made is not None and not isinstance(made, EncoderPass):
        raise wrong(objective, "make_pass", f"returns {kind_of(made)}", "return EncoderPass(inputs, targets)")
    if made is not None and not (isinstance(made.inputs, dict) and isinstance(made.targets, dict)):
        raise wrong(
            objective,
            "make_pass",
            f"returns inputs of {kind_of(made.inputs)} and targets of {kind_of(made.targets)}",
            "both are dicts by name",
        )


def check_output(objective: nn.Module, output: Any, features: Tensor) -> None:
    """Refuse what is no loss with statistics that can be added up; looks at types and shapes alone, never at values.

    Args:
        objective: That has computed it.
        output: What should be an `ObjectiveOutput`.
        features: That it was computed from.

    Raises:
        UserError: In one sentence.
    """
    if not isinstance(output, ObjectiveOutput):
        raise wrong(objective, "compute", f"returns {kind_of(output)}", "return ObjectiveOutput(loss, statistics)")
    if not is_scalar(output.loss):
        raise wrong(objective, "compute", f"returns {kind_of(output.loss)} as the loss", "return a scalar tensor")
    if not isinstance(output.statistics, dict):
        raise wrong(
            objective, "compute", f"returns {kind_of(output.statistics)} as statistics", "return a dict by name"
        )
    for name, pair in output.statistics.items():
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(map(is_scalar, pair))):
            raise wrong(
                objective,
                "compute",
                f"gives {kind_of(pair)} as the statistic '{name}'",
                "give a pair (sum, count) of scalar tensors, whose quotient over all batches is the metric",
            )
        if pair[0].requires_grad:
            raise wrong(
                objective,
                "compute",
                f"gives a statistic '{name}' that requires a gradient, so that no step's memory would be freed",
                "give its sum as .detach()",
            )
        if {term.device.type for term in pair} != {features.device.type}:
            raise wrong(
                objective,
                "compute",
                f"gives a statistic '{name}' that is not on the features' device",
                f"make its count with device=features.device, here {features.device.type}",
            )
    if features.requires_grad and not output.loss.requires_grad:
        raise wrong(
            objective,
            "compute",
            "returns a loss without a gradient, from which nothing is learned",
            "leave out .detach(), .item(), argmax and no_grad on the way to it",
        )


def check_examples(objective: nn.Module, found: Any, of_words: bool) -> None:
    """Refuse examples that cannot be shown.

    Args:
        objective: That has made them.
        found: What it shows; None for nothing.
        of_words: Whether they are of texts, and so rows; of pictures they are a picture.

    Raises:
        UserError: In one sentence.
    """
    if found is None:
        return
    if of_words and not (isinstance(found, list) and all(isinstance(row, dict) for row in found)):
        raise wrong(objective, "examples", f"returns {kind_of(found)}", "return rows, a list of dicts of words by name")
    if not of_words and not hasattr(found, "save"):
        raise wrong(objective, "examples", f"returns {kind_of(found)}", "return a Pillow picture, as grid() draws it")


def is_scalar(value: Any) -> bool:
    """Whether something is a tensor of one number without dimensions."""
    return isinstance(value, Tensor) and value.ndim == 0


def kind_of(value: Any) -> str:
    """What something is, in words."""
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(map(kind_of, value[:3]))})"
    return f"the {type(value).__name__} {value}" if isinstance(value, int | float | str) else type(value).__name__


def wrong(objective: nn.Module, method: str, fault: str, advice: str) -> UserError:
    """The sentence for a method of an objective's class."""
    return UserError(f"{method} of {class_and_file(type(objective))} {fault}: {advice}.")
