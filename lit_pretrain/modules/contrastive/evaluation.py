"""Evaluating two towers: embeddings are gathered batch by batch, and measured, told and drawn when all are there."""

import sys
from typing import TYPE_CHECKING, Any

import torch

from lit_pretrain.data.loading import SURPLUS
from lit_pretrain.measures.retrieval import chance_of_retrieval
from lit_pretrain.modules.contrastive.panels import search_panels
from lit_pretrain.modules.contrastive.validation import Gallery, gallery_figures, suggestions
from lit_pretrain.modules.steps import training_share
from lit_pretrain.objectives.objective import Batch
from lit_pretrain.tracking.run_record import validates_training

if TYPE_CHECKING:
    from PIL.Image import Image

# Share of the training before which a model may look as if it had learned nothing.
TOO_EARLY = 0.2


class ContrastiveEvaluation:
    """What a `ContrastivePretraining` has seen of an evaluation.

    Attributes:
        training_means: Means over training batches since the last report, for what is suggested.
    """

    def __init__(self) -> None:
        self.training_means: dict[str, float] = {}
        self._seen: list[Gallery] = []
        self._latest: tuple[str, Gallery] | None = None
        self._said: set[str] = set()

    def add(self, module: Any, batch: Batch) -> None:
        """Keep a batch's embeddings; captions are embedded as many at a time as there are pictures."""
        pictures = module.embed_pictures(batch["images"])
        texts = batch["input_ids"].split(len(pictures)), batch["attention_mask"].split(len(pictures))
        embedded = [
            module.embed_texts({"input_ids": ids, "attention_mask": mask, "padded": batch.get("padded", True)})
            for ids, mask in zip(*texts, strict=True)
        ]
        if batch.get(SURPLUS):
            return
        facts = ("picture", "picture_key"), ("caption_picture", "caption_id", "caption_key")
        of_pictures, of_texts = ([batch[name] for name in names] for names in facts)
        parts = (pictures, *of_pictures, torch.cat(embedded), *of_texts)
        # Where they are, until all are there: to bring each batch to the CPU would wait for it.
        self._seen.append(Gallery(*(part.detach() for part in parts)))

    def finish(self, module: Any, stage: str) -> dict[str, float]:
        """Put the embeddings of all processes together and measure; in training, say what should be looked at."""
        gallery, self._seen = Gallery.collect(self._seen), []
        self._latest = stage, gallery
        figures = gallery_figures(gallery, module.objective, module.batch_size)
        trainer = module.trainer
        if validates_training(trainer) and training_share(trainer) >= TOO_EARLY:
            pictures, width = len(gallery.pictures), module.embedding_width
            self._say(trainer, suggestions(figures, self.training_means, module.objective, pictures, width))
        return figures

    def chance(self, module: Any) -> dict[str, float]:
        """What the latest evaluation's figures are without learning: any picture for any text."""
        if self._latest is None:
            return {}
        gallery = self._latest[1]
        loss = module.objective.chance(min(module.batch_size, len(gallery.pictures)))
        return {"loss": loss, "loss_over_chance": 1.0, **chance_of_retrieval(gallery.places, gallery.text_keys)}

    def _say(self, trainer: Any, sentences: dict[str, str]) -> None:
        """Tell a person, each once in a training and from one process."""
        for name, sentence in sentences.items():
            if name not in self._said and trainer.is_global_zero:
                print(f"Step {trainer.global_step}: {sentence}", file=sys.stderr, flush=True)
            self._said.add(name)

    def panels(self, data: Any, count: int) -> "dict[str, Image]":
        """Pictures found for captions and captions found for pictures; empty before any validation.

        Args:
            data: The data module whose pictures were evaluated.
            count: Searches of a panel.
        """
        if self._latest is None:
            return {}
        import numpy

        stage, gallery = self._latest
        pictures = data.galleries[stage]
        return search_panels(
            gallery,
            lambda ids: pictures.gather(numpy.array(ids))[0],
            lambda ids: data.captions(stage, ids),
            count,
        )
