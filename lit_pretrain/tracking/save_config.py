"""Saves the resolved config with the run: in its directory, as an artifact, and as parameters to compare runs by."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from lit_pretrain.errors import without_credentials
from lit_pretrain.tracking.paths import write_atomically
from lit_pretrain.tracking.run_record import RunRecorder, mlflow_logger, run_directory
from lit_pretrain.trainer_state import callbacks_of, is_fast_run
from lit_pretrain.yaml_files import load_yaml


class SaveConfig(SaveConfigCallback):
    """`config.yaml` in the run's directory and among its artifacts; `config-resumed-<n>.yaml` when it is resumed.

    Lightning's own writes beside all runs and refuses to start a second one.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, config, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save; of a run that goes on only when it does, since until then its checkpoint may refuse the settings."""
        if not is_resumed(trainer):
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save those by which the run goes on."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save on rank zero, when the run has begun: for every logger, and beside what it writes."""
        # What has been parsed needs no second check.
        text = without_credentials(self.parser.dump(self.config, skip_none=False, skip_validation=True))
        settings = dict(flatten_config(load_yaml(text)))
        directory, logger = run_directory(trainer), mlflow_logger(trainer)
        name = "config.yaml"
        if directory is not None and is_resumed(trainer):
            number = logger.resume_count if logger is not None else len(list(directory.glob("config-resumed-*"))) + 1
            name = f"config-resumed-{number}.yaml"
        if logger is not None:
            logger.log_text(text, name)
        elif directory is not None:
            write_atomically(directory / name, text)
        for candidate in trainer.loggers:
            candidate.log_hyperparams(settings)
            folder = getattr(candidate, "log_dir", None)
            if candidate is not logger and isinstance(folder, str) and not is_fast_run(trainer):
                write_atomically(Path(folder) / name, text)


def is_resumed(trainer: Trainer) -> bool:
    """Whether the trainer's run had begun before."""
    logger = mlflow_logger(trainer)
    if logger is not None:
        return logger.resumed
    recorder = next((callback for callback in callbacks_of(trainer) if isinstance(callback, RunRecorder)), None)
    return recorder is not None and recorder.local is not None and recorder.local.resumed


def flatten_config(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a config as "model.objectives.MaskedLanguageModeling.share": 0.15.

    A class stands for itself by its name and its arguments directly beneath it; unset (null) settings are left out, and
    so are the logger and the callbacks, which are not what runs are compared by.
    """
    if prefix in ("config", "trainer.logger", "trainer.callbacks", "trainer.plugins", "ckpt_path"):
        return
    if isinstance(value, dict) and "class_path" in value:
        yield prefix, value["class_path"].rpartition(".")[2]
        yield from flatten_config(value.get("init_args") or {}, prefix)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten_config(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "class_path" in item for item in value):
        names = [item["class_path"].rpartition(".")[2] for item in value]
        yield prefix, ", ".join(names)
        for name, item in zip(names, value, strict=True):
            yield from flatten_config(item.get("init_args") or {}, f"{prefix}.{name}")
    elif value is not None:
        yield prefix, value
