"""Writes what `predict` returns (embeddings, say) to a parquet file, batch by batch, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_pretrain.data.loading import SURPLUS
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.paths import make_directory, shown_path
from lit_pretrain.tracking.run_record import mlflow_logger
from lit_pretrain.trainer_state import data_module_of


class PredictionWriter(BasePredictionWriter):
    """Writes a row for each sample: tensors (B,) become columns, tensors (B, D) columns of lists of D floats.

    Data modules that have `named_samples` add their texts or the names of their files, by the batch's `sample_id`. The
    file's metadata names the `classes` of a module that knows any, in the order of its probabilities, and has what its
    `prediction_metadata()` returns.

    Several processes write a file each. Use `trainer.predict(return_predictions=False)`, or all of it stays in memory.

    Args:
        path: The file; null for predictions.parquet in the run's directory.
    """

    # Since `on_predict_start`.
    _target: Path

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self.written_to: Path | None = None
        self.rows = 0
        self._writer: Any = None
        self._metadata: dict[str, str] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the file, the same on every rank but for its number."""
        logger = mlflow_logger(trainer)
        directory = None
        if self.path is None and trainer.is_global_zero:
            directory = str(logger.run_directory if logger is not None else trainer.default_root_dir)
        folder: Any = trainer.strategy.broadcast(directory)
        target = Path(self.path or Path(folder) / "predictions.parquet").expanduser()
        if trainer.world_size > 1:
            target = target.with_name(f"{target.stem}-rank{trainer.global_rank}{target.suffix}")
        make_directory(target.parent)
        self._target, self.rows, self.written_to = target.resolve(), 0, None
        self._metadata = metadata_of(pl_module)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch."""
        import pyarrow.parquet

        names = getattr(data_module_of(trainer), "named_samples", None)
        if names is not None and isinstance(prediction, dict) and "sample_id" in prediction:
            prediction = {**prediction, **names(prediction["sample_id"].tolist())}
        table = prediction_table(prediction).replace_schema_metadata(self._metadata)
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._part, table.schema)
        if batch.get(SURPLUS):
            return
        self._writer.write_table(table)
        self.rows += table.num_rows

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the file in its place and say where it is."""
        if self._writer is None:
            raise UserError("There was nothing to predict: the predict data has no batch.")
        self._writer.close()
        self._writer = None
        self._part.replace(self._target)
        self.written_to = self._target
        if (logger := mlflow_logger(trainer)) is not None:
            logger.set_tags({"predictions": str(self._target), "predictions.rows": str(self.rows)})
        if trainer.is_global_zero:
            more = f" (and a file for each of the other {trainer.world_size - 1})" if trainer.world_size > 1 else ""
            print(f"{self.rows} predictions are in {shown_path(self._target)}{more}", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no half-written file behind."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._part.unlink(missing_ok=True)

    @property
    def _part(self) -> Path:
        return self._target.with_name(f".{self._target.name}.part")


def metadata_of(module: LightningModule) -> dict[str, str] | None:
    """What a module says of its predictions as a whole; null for nothing."""
    classes, more = getattr(module, "classes", None), getattr(module, "prediction_metadata", None)
    metadata = {"classes": json.dumps(list(classes))} if classes else {}
    return metadata | (more() if callable(more) else {}) or None


def prediction_table(prediction: Any) -> Any:
    """Turn a batch of predictions into an Arrow table.

    Args:
        prediction: Name -> tensor (B,) or (B, D), or a list of B strings.

    Raises:
        UserError: If it is something else.
    """
    import pyarrow

    if not isinstance(prediction, dict) or not prediction:
        raise UserError("predict_step must return a dictionary of tensors to be written to parquet.")
    columns = {}
    for name, value in prediction.items():
        if isinstance(value, torch.Tensor) and value.dim() in (1, 2):
            # Parquet has no bfloat16.
            value = value.detach().cpu()
            array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            flat = pyarrow.array(array.reshape(-1))
            columns[name] = flat if array.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, array.shape[1])
        elif isinstance(value, list | tuple):
            array = pyarrow.array(list(value))
            # A batch in which nothing has a class does not tell the type, and a file has one for all batches.
            nothing, names = pyarrow.null(), pyarrow.string()
            known_types = {nothing: names, pyarrow.list_(nothing): pyarrow.list_(names)}
            columns[name] = array.cast(known_types.get(array.type, array.type))
        else:
            raise UserError(f"predict_step's '{name}' cannot be written to parquet: give a tensor (B,) or (B, D).")
    return pyarrow.table(columns)
