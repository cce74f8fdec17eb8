"""Does pretraining on pictures with captions tell classes that it was never taught? Zero-shot accuracy on the way.

Nothing is learned from the labelled pictures: see `lit_pretrain.evaluation.zero_shot`.
"""

from typing import TYPE_CHECKING, cast

from lightning import LightningDataModule
from lightning.pytorch import LightningModule, Trainer

from lit_pretrain.callbacks.measurement import Measurement
from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.labelled_data import Part, check_labelled_pictures, some_of, task_of, whole_part
from lit_pretrain.evaluation.pair_embedder import PairEmbedder
from lit_pretrain.evaluation.zero_shot import DEFAULT_TEMPLATES, ClassNames, Prompts, make_prompts, measure_zero_shot

if TYPE_CHECKING:
    from lit_pretrain.modules.contrastive.contrastive_pretraining import ContrastivePretraining


class ZeroShot(Measurement):
    """Logs zero_shot/accuracy beside zero_shot/chance, and zero_shot/top5_accuracy of six classes and more.

    Args:
        data: Labelled pictures, as `LabelledDataModule` and `ImageDataModule` read them: the test part, or, without one
            of its own, all of them.
        templates: What is said of a class, each with {} for its name; their embeddings are averaged. Or a YAML file
            that lists them.
        class_names: A name or several for a class, as a mapping from the data's names or a list in their order, or a
            YAML file that holds one of these; null takes the data's own names.
        pictures: At most so many are classified.
        every_n_validations: Validations between two measurements.
    """

    def __init__(
        self,
        data: LightningDataModule,
        templates: list[str] | str = list(DEFAULT_TEMPLATES),  # noqa: B006 (never changed)
        class_names: ClassNames | str | None = None,
        pictures: int = 2000,
        every_n_validations: int = 1,
    ) -> None:
        if min(pictures, every_n_validations) < 1:
            raise UserError("ZeroShot.pictures and every_n_validations must be at least 1.")
        super().__init__(every_n_validations)
        self.data = data
        self.templates = templates
        self.class_names = class_names
        self.pictures = pictures
        self._prompts: Prompts | None = None
        self._part: Part | None = None
        self._chance: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the data and refuse what cannot be measured, before any training."""
        if not hasattr(pl_module, "embed_texts"):
            raise UserError(
                f"ZeroShot compares pictures with texts, and {type(pl_module).__name__} has not a tower for each: take "
                "it out of trainer.callbacks."
            )
        if stage not in ("fit", "validate") or self._prompts is not None:
            return
        self.data.prepare_data()
        self.data.setup("fit")
        check_labelled_pictures(self.data, "ZeroShot")
        self._prompts = make_prompts(task_of(self.data)[1], self.templates, self.class_names)
        self._part = some_of(whole_part(self.data), self.pictures)

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Accuracies by metric."""
        assert self._part is not None and self._prompts is not None  # since setup
        result = measure_zero_shot(PairEmbedder(cast("ContrastivePretraining", pl_module)), self._part, self._prompts)
        metrics = {"zero_shot/accuracy": result.accuracy, "zero_shot/chance": result.chance}
        if result.top5_accuracy is not None:
            metrics["zero_shot/top5_accuracy"] = result.top5_accuracy
        self._chance = {"zero_shot/accuracy": result.chance, "zero_shot/top5_accuracy": 5 / result.classes}
        return metrics

    def chance(self) -> dict[str, float]:
        """Accuracies of any class for any picture."""
        return dict(self._chance)
