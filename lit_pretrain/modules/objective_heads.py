"""The objectives' heads that come with the weights a pretraining starts from: ours, and those of transformers' BERT.

A head serves again where it does the same: of a checkpoint of ours if the objective is of the same class and has the
same settings, but for those of `Objective.training_settings`; of a `BertForPreTraining`, a `BertForMaskedLM` and the
like if its tensors are there by the names that the objective gives them (`huggingface_names`). Where the vocabulary has
grown, so does what a head has for each word piece.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_pretrain.backbone.embeddings import grown_rows
from lit_pretrain.class_paths import short_name
from lit_pretrain.modules.starting_points import StartingPoint
from lit_pretrain.objectives.class_checks import is_measuring
from lit_pretrain.objectives.objective import Objective


@dataclass(frozen=True)
class VocabularyGrowth:
    """How a vocabulary has grown.

    Attributes:
        rows: Of the table of embeddings before; there may have been more than pieces.
        first: Id of the first new piece.
        replaced: Of each new piece the ids of those that it takes the place of.
    """

    rows: int
    first: int
    replaced: Sequence[Sequence[int]]

    def grown(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """A head's tensor, with numbers for new pieces if it has some for each and is to have that shape."""
        after = max(self.rows, self.first + len(self.replaced))
        of_pieces = tensor.ndim > 0 and len(tensor) == self.rows and shape == (after, *tensor.shape[1:])
        return grown_rows(tensor, self.first, self.replaced) if of_pieces else tensor


def take_heads(
    objectives: Sequence[Objective], start: StartingPoint, growth: VocabularyGrowth | None = None
) -> StartingPoint:
    """Copy the heads that a source has into objectives that are built.

    Args:
        objectives: Of a pretraining, with their heads.
        start: What it starts from.
        growth: Of the vocabulary since; null for none.

    Returns:
        The same, telling which heads were taken, which are new, and what was left out.
    """
    own_heads = {short_name(head.settings["class_path"]): head for head in start.objective_heads}
    taken, fresh, used = [], [], set()
    for objective in objectives:
        state = trained_state(objective)
        if not state:
            continue
        head = own_heads.pop(short_name(objective.settings()["class_path"]), None)
        if head is not None:
            # Where the encoder pools otherwise now, what it pooled with may be the head's own.
            pooler = {name: value for name, value in moved_pooler(objective, start).items() if name in state}
            pooler = {name: value for name, value in pooler.items() if name not in head.tensors}
            tensors = grown_tensors(pooler | head.tensors, state, growth)
            reason = difference_of(objective, head.settings["init_args"]) or misfit(state, tensors)
            if not reason:
                used |= {objective.huggingface_names()[name].removeprefix("bert.") for name in pooler}
        else:
            names = {ours: theirs.removeprefix("bert.") for ours, theirs in objective.huggingface_names().items()}
            tensors = {
                ours: start.format_heads[theirs] for ours, theirs in names.items() if theirs in start.format_heads
            }
            tensors = grown_tensors(tensors, state, growth)
            reason = misfit(state, tensors) if tensors else ""
            if tensors and not reason:
                used |= set(names.values())
        if not tensors or reason:
            fresh.append(objective.name + (f" ({reason})" if reason else ""))
            continue
        with torch.no_grad():
            for name, value in state.items():
                value.copy_(tensors[name])
        taken.append(objective.name)
    left_out = [name for name in start.left_out if name.removeprefix("bert.") not in used]
    left_out += [f"the head of {name}" for name, head in own_heads.items() if head.tensors]
    # What has been copied need not be kept in memory.
    start = replace(start, objective_heads=(), format_heads={})
    return replace(start, left_out=left_out, taken_heads=tuple(taken), fresh_heads=tuple(fresh))


def moved_pooler(objective: Objective, start: StartingPoint) -> dict[str, Tensor]:
    """BERT's pooler that the encoder had, by an objective's names for it; empty if either has none.

    An encoder that pools with it has the objective read it there; one that no longer does leaves it to the objective.
    """
    names = objective.huggingface_names()
    named = {ours: theirs.removeprefix("bert.") for ours, theirs in names.items() if ".pooler." in f".{theirs}"}
    return {ours: start.format_heads[theirs] for ours, theirs in named.items() if theirs in start.format_heads}


def grown_tensors(
    tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], growth: VocabularyGrowth | None
) -> Mapping[str, Tensor]:
    """A source's tensors as a head with a larger vocabulary has them."""
    if growth is None:
        return tensors
    return {name: growth.grown(value, state[name].shape) if name in state else value for name, value in tensors.items()}


def trained_state(objective: Objective) -> dict[str, Tensor]:
    """What an objective has learned: parameters, and buffers unless it takes them from the data at hand."""
    state = objective.state_dict()
    if is_measuring(objective):
        learned = {name for name, _ in objective.named_parameters()}
        state = {name: value for name, value in state.items() if name in learned}
    return state


def difference_of(objective: Objective, saved: Mapping[str, object]) -> str:
    """In which setting that a head depends on an objective differs from a saved one; empty for none."""
    own = objective.settings()["init_args"]
    for name in sorted(own.keys() | saved.keys()):
        if name not in objective.training_settings and name in saved and saved[name] != own.get(name):
            return f"its {name} is {own.get(name)} here, {saved[name]} there"
    return ""


def misfit(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Why tensors are not those of a head; empty if they are."""
    for name, value in state.items():
        if name not in tensors:
            return f"no {name} there"
        if tensors[name].shape != value.shape:
            return f"its {name} has the shape {tuple(value.shape)} here, {tuple(tensors[name].shape)} there"
    return ""
