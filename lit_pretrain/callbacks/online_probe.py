"""What are the features worth during pretraining? k nearest neighbours and a linear probe on labelled pictures.

Features are frozen, so the encoder's gradients and the training's draws are never touched; they are taken after several
blocks, since the last one is often not the best.
"""

from collections.abc import Iterator, Sequence

import torch
from lightning import LightningDataModule
from lightning.pytorch import LightningModule, Trainer

from lit_pretrain.backbone import VisionEncoder
from lit_pretrain.callbacks.measurement import Measurement
from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.features import features_of_batches, probe_depths
from lit_pretrain.evaluation.labelled_data import Part, check_labelled_pictures, open_part, some_of, task_of
from lit_pretrain.evaluation.protocols import share_of_most_frequent
from lit_pretrain.measures.knn import knn_accuracy
from lit_pretrain.measures.linear_probe import fit_linear_probe
from lit_pretrain.trainer_state import data_module_of


class OnlineProbe(Measurement):
    """Logs probe/knn_accuracy/block_<d> and probe/linear_accuracy/block_<d> after validations.

    The protocols are those of `lit_pretrain.evaluation`: means over the patches; 20 neighbours at a temperature of
    0.07; logistic regression on standardised features. In contrastive pretraining, the tower of pictures is probed.

    Args:
        data: Labelled pictures; null takes those that are pretrained on, which must have a label column then.
        depths: Blocks, counted from 1; null takes three at even distances, the last among them.
        train_pictures: Pictures to learn from.
        test_pictures: Pictures to be tried on, of the data's validation part.
        every_n_validations: Validations between two probes.
    """

    def __init__(
        self,
        data: LightningDataModule | None = None,
        depths: list[int] | None = None,
        train_pictures: int = 5000,
        test_pictures: int = 2000,
        every_n_validations: int = 1,
    ) -> None:
        if min(train_pictures, test_pictures, every_n_validations) < 1:
            raise UserError("OnlineProbe.train_pictures, test_pictures and every_n_validations must be at least 1.")
        super().__init__(every_n_validations)
        self.data = data
        self.depths = depths
        self.train_pictures = train_pictures
        self.test_pictures = test_pictures
        self._chance: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse data without labels and depths that are not there, before any training."""
        if stage == "predict":
            # Nothing is probed, and what is embedded need not have labels.
            return
        data = self._data(trainer)
        if self.data is not None:
            self.data.prepare_data()
            self.data.setup(stage)
        check_labelled_pictures(data, type(self).__name__)
        blocks = probed_encoder(pl_module).config.depth
        for depth in self.depths or []:
            if not 1 <= depth <= blocks:
                raise UserError(f"OnlineProbe.depths names block {depth} of {blocks}: give depths from 1 to {blocks}.")

    def _data(self, trainer: Trainer) -> LightningDataModule:
        return data_module_of(trainer) if self.data is None else self.data

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Accuracies by metric."""
        return self.measure(self._data(trainer), probed_encoder(pl_module))

    def measure(self, data: LightningDataModule, encoder: VisionEncoder) -> dict[str, float]:
        """Accuracies by metric.

        Args:
            data: Labelled pictures.
            encoder: Whose features.
        """
        depths: Sequence[int] = self.depths or probe_depths(encoder.config.depth)
        train, train_labels = labelled_features(encoder, some_of(open_part(data, "train"), self.train_pictures), depths)
        test, test_labels = labelled_features(
            encoder, some_of(open_part(data, "validation"), self.test_pictures), depths
        )
        classes, metrics = len(task_of(data)[1]), {}
        for depth in depths:
            knn = knn_accuracy(train[depth], train_labels, test[depth], test_labels, classes)
            linear = fit_linear_probe(train[depth], train_labels).accuracy(test[depth], test_labels)
            metrics[f"probe/knn_accuracy/block_{depth}"] = float(knn)
            metrics[f"probe/linear_accuracy/block_{depth}"] = float(linear)
        self._chance = dict.fromkeys(metrics, share_of_most_frequent(test_labels))
        return metrics

    def chance(self) -> dict[str, float]:
        """Accuracies of telling always the most frequent class."""
        return dict(self._chance)


def probed_encoder(module: LightningModule) -> VisionEncoder:
    """The encoder of pictures that a module trains.

    Raises:
        UserError: If it has none.
    """
    for name in ("vision_encoder", "encoder"):
        if isinstance(encoder := getattr(module, name, None), VisionEncoder):
            return encoder
    raise UserError(
        f"OnlineProbe probes an encoder of pictures, which {type(module).__name__} has not: take it out of "
        "trainer.callbacks."
    )


def labelled_features(
    encoder: VisionEncoder, part: Part, depths: Sequence[int]
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Features (N, D) of a part's pictures by depth, and their labels (N,)."""
    labels: list[torch.Tensor] = []

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for batch in part.batches():
            labels.append(batch["label"])
            yield batch

    return features_of_batches(encoder, batches(), depths), torch.cat(labels)
