"""What are the features worth during pretraining? k nearest neighbours and a linear probe on labelled pictures.

Features are frozen, so the encoder's gradients and the training's draws are never touched; they are taken after several
blocks, since the last one is often not the best.
"""

from collections.abc import Sequence

import torch
from lightning import LightningDataModule
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.features import picture_features, probe_depths
from lit_pretrain.evaluation.knn import knn_accuracy
from lit_pretrain.evaluation.linear_probe import fit_linear_probe
from lit_pretrain.tracking.run_record import mlflow_logger


class OnlineProbe(Callback):
    """Logs probe/knn_accuracy/block_<d> and probe/linear_accuracy/block_<d> after validations.

    The protocols are those of `lit_pretrain.evaluation`: means over the patches; 20 neighbours at a temperature of
    0.07; logistic regression on standardised features.

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
        self.data = data
        self.depths = depths
        self.train_pictures = train_pictures
        self.test_pictures = test_pictures
        self.every_n_validations = every_n_validations
        self._validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse data without labels and depths that are not there, before any training."""
        data = self._data(trainer)
        if self.data is not None:
            self.data.prepare_data()
            self.data.setup(stage)
        if not getattr(data, "classes", None):
            raise UserError(
                "OnlineProbe needs labels, which the data lacks: set data.label_column, give the probe data of its "
                "own, or take it out of trainer.callbacks."
            )
        blocks = pl_module.encoder.config.depth
        for depth in self.depths or []:
            if not 1 <= depth <= blocks:
                raise UserError(f"OnlineProbe.depths names block {depth} of {blocks}: give depths from 1 to {blocks}.")

    def _data(self, trainer: Trainer) -> LightningDataModule:
        return trainer.datamodule if self.data is None else self.data

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        metrics = self.measure(self._data(trainer), pl_module.encoder)
        logger = mlflow_logger(trainer)
        if logger is not None:
            logger.log_metrics(metrics, trainer.global_step)
        # Where the progress bar, the closing table and checkpoints find them.
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})

    def measure(self, data: LightningDataModule, encoder: torch.nn.Module) -> dict[str, float]:
        """Accuracies by metric.

        Args:
            data: With `labelled_arrays` and `classes`.
            encoder: With `forward_intermediates`.
        """
        depths: Sequence[int] = self.depths or probe_depths(encoder.config.depth)
        train_images, train_labels = data.labelled_arrays("train", self.train_pictures)
        test_images, test_labels = data.labelled_arrays("validation", self.test_pictures)
        train_labels, test_labels = torch.as_tensor(train_labels), torch.as_tensor(test_labels)
        train, test = (picture_features(encoder, images, depths) for images in (train_images, test_images))
        classes, metrics = len(data.classes), {}
        for depth in depths:
            knn = knn_accuracy(train[depth], train_labels, test[depth], test_labels, classes)
            linear = fit_linear_probe(train[depth], train_labels).accuracy(test[depth], test_labels)
            metrics[f"probe/knn_accuracy/block_{depth}"] = float(knn)
            metrics[f"probe/linear_accuracy/block_{depth}"] = float(linear)
        return metrics
