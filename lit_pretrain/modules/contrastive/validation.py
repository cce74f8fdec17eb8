"""What a validation of texts and pictures finds: retrieval, the loss beside chance, and how the space is used.

The embeddings of all processes are put together, in the data's order, so that every figure is that of one process.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy
import torch
from torch import Tensor, distributed

from lit_pretrain.measures.embedding_health import effective_rank, modality_gap
from lit_pretrain.measures.finite import check_finite
from lit_pretrain.measures.retrieval import distinct, retrieval_both_ways
from lit_pretrain.objectives.contrastive import LARGEST_SCALE, Contrastive, Pairs
from lit_pretrain.objectives.gathering import together

# Above this, or below, something should be looked at.
HARDLY_BETTER_THAN_CHANCE = 0.98
WIDE_GAP = 1.2
LOW_RANK_SHARE = 0.05
MANY_DUPLICATES = 0.1


@dataclass(frozen=True)
class Gallery:
    """Embedded pictures with all their captions.

    Attributes:
        pictures: (P, E) of length 1.
        picture_ids: (P,) index of each in its data set, ascending.
        picture_keys: (P,) equal for equal pictures.
        texts: (T, E) of length 1.
        text_pictures: (T,) index in its data set of the picture of each caption.
        text_ids: (T,) which caption each is.
        text_keys: (T,) equal for equal captions.
    """

    pictures: Tensor
    picture_ids: Tensor
    picture_keys: Tensor
    texts: Tensor
    text_pictures: Tensor
    text_ids: Tensor
    text_keys: Tensor

    @property
    def places(self) -> Tensor:
        """(T,) place of each caption's picture among `pictures`."""
        return torch.searchsorted(self.picture_ids, self.text_pictures)

    @classmethod
    def collect(cls, batches: list["Gallery"]) -> "Gallery":
        """Put the batches of all processes together, in the data's order and on the CPU; collective."""
        batches = [cls(*(getattr(batch, field.name).cpu() for field in fields(cls))) for batch in batches]
        if together():
            everyone: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(everyone, batches)
            batches = [batch for part in everyone for batch in part]
        whole = cls(*(torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(cls)))
        by_id = whole.picture_ids.argsort(stable=True)
        by_owner = whole.text_pictures.argsort(stable=True)
        return cls(
            whole.pictures[by_id],
            whole.picture_ids[by_id],
            whole.picture_keys[by_id],
            whole.texts[by_owner],
            whole.text_pictures[by_owner],
            whole.text_ids[by_owner],
            whole.text_keys[by_owner],
        )


@torch.no_grad()
def gallery_figures(gallery: Gallery, objective: Contrastive, batch_size: int) -> dict[str, float]:
    """All figures of a validation.

    Args:
        gallery: Of all processes.
        objective: Its loss is taken of the pictures' first captions.
        batch_size: Pairs of a training batch of all processes: the loss is taken of about as many at a time.

    Raises:
        UserError: If embeddings are not finite: ranks among few of them would look like any others.
    """
    check_finite(gallery.texts, "embeddings of texts")
    check_finite(gallery.pictures, "embeddings of pictures")
    places = gallery.places
    firsts, _ = distinct(places)
    statistics: dict[str, list[float]] = {}
    device = objective.log_scale.device
    groups = numpy.array_split(numpy.arange(len(gallery.pictures)), max(1, len(gallery.pictures) // batch_size))
    for group in map(torch.from_numpy, groups):
        parts = (gallery.texts[firsts[group]], gallery.pictures[group])
        keys = (gallery.text_keys[firsts[group]], gallery.picture_keys[group])
        pairs = Pairs(*(tensor.to(device) for tensor in (*parts, *keys)))
        for name, (total, count) in objective.compute(pairs, across_processes=False).statistics.items():
            sums = statistics.setdefault(name, [0.0, 0.0])
            sums[0] += float(total)
            sums[1] += float(count)
    kept = ("loss", "loss_over_chance", "temperature", "bias")
    figures = {name: statistics[name][0] / statistics[name][1] for name in kept if name in statistics}
    figures |= retrieval_both_ways(gallery.texts, gallery.pictures, places, gallery.text_keys)
    borne = torch.stack([gallery.text_keys, places], dim=1).unique(dim=0)[:, 0]
    _, inverse, counts = borne.unique(return_inverse=True, return_counts=True)
    words, bearers = borne[counts[inverse] > 1], gallery.text_keys
    return figures | {
        "modality_gap": float(modality_gap(gallery.texts, gallery.pictures)),
        "text_effective_rank": float(effective_rank(gallery.texts)),
        "picture_effective_rank": float(effective_rank(gallery.pictures)),
        "shared_captions": float(torch.isin(bearers, words).double().mean()),
    }


def suggestions(
    figures: dict[str, float], training: dict[str, float], objective: Contrastive, pictures: int, width: int
) -> dict[str, str]:
    """What figures say should be looked at, a sentence each, by the figure's name.

    Args:
        figures: Of `gallery_figures`.
        training: Means over training batches since the last report.
        objective: Its settings.
        pictures: How many were validated with.
        width: Features of an embedding.
    """
    sentences = {}
    if figures["loss_over_chance"] > HARDLY_BETTER_THAN_CHANCE:
        sentences["loss_over_chance"] = (
            f"the validation loss of {figures['loss']:.3f} is {figures['loss_over_chance']:.0%} of what chance has "
            "(ln B): check that captions belong to their pictures (data.caption_columns), lower "
            "optimizer.learning_rate, or lengthen schedule.warm_up."
        )
    if objective.loss == "clip" and figures["temperature"] < 1.01 / LARGEST_SCALE:
        sentences["temperature"] = (
            "the temperature has fallen to its floor of 0.01, as it does where training pairs are learned by heart: "
            "more pairs, more augmentation or fewer steps would help."
        )
    if figures["modality_gap"] > WIDE_GAP:
        sentences["modality_gap"] = (
            f"the means of texts and pictures are {figures['modality_gap']:.2f} apart (CLIP's 0.8): each side lies in "
            "a corner of its own; a higher objective.temperature at first, or a larger batch, brings them together."
        )
    for side in ("text", "picture"):
        rank, most = figures[f"{side}_effective_rank"], min(width, pictures)
        if rank < LOW_RANK_SHARE * most:
            sentences[f"{side}_effective_rank"] = (
                f"the {side} embeddings use about {rank:.1f} of {most} directions, so they have nearly collapsed: "
                "lower optimizer.learning_rate, or start the tower from pretrained weights."
            )
    share = training.get("duplicate_captions", 0.0)
    if objective.duplicates == "ignore" and share > MANY_DUPLICATES:
        sentences["duplicate_captions"] = (
            f"{share:.0%} of the captions of a batch are there twice and taken as wrong for each other's picture: set "
            "objective.duplicates to mask or multi_positive."
        )
    return sentences
