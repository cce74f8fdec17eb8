"""One step and one batch of validation before hours of work: does it run, what does it log, what does a step cost?"""

import json
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.tracking.paths import write_atomically


class Rehearsal(Callback):
    """Writes down a training's metrics, costs and sizes, and ends it after a step.

    Args:
        path: JSON file: `metrics` (names), `cost` of an optimiser step on all devices (samples, tokens, flops),
            `parameters` of all that is trained, and `transformer_parameters` of the blocks alone.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.cost: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask what the batch costs."""
        factor, module = trainer.world_size * trainer.accumulate_grad_batches, cast(Any, pl_module)
        self.cost = {name: value * factor for name, value in module.step_cost(batch).items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End it; that asks for a validation before."""
        trainer.should_stop = trainer.global_step > 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        # One, or two towers.
        encoders: list[Any] = [getattr(pl_module, name, None) for name in ("encoder", "text_encoder", "vision_encoder")]
        blocks = [encoder.transformer for encoder in encoders if encoder is not None]
        record = {
            "metrics": sorted(trainer.callback_metrics),
            "cost": self.cost,
            "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
            # Without embeddings and heads (Kaplan et al. 2020, arXiv:2001.08361).
            "transformer_parameters": sum(parameter.numel() for one in blocks for parameter in one.parameters()),
        }
        if trainer.is_global_zero:
            write_atomically(self.path, json.dumps(record) + "\n")


def rehearse(config: dict[str, Any], path: str) -> None:
    """Train one step of a config, in a process of the study.

    The training keeps its length, which schedules and unfreezing are laid over, and is stopped.

    Args:
        config: Resolved, as a cell's.
        path: As the callback's.
    """
    from lit_pretrain.cli import lightning_cli

    trainer = config["trainer"] | {
        "min_steps": None,
        "min_epochs": None,
        "limit_val_batches": 1,
        "val_check_interval": 1,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "callbacks": [{"class_path": f"{__name__}.Rehearsal", "init_args": {"path": path}}],
    }
    file = Path(path).with_suffix(".yaml")
    write_atomically(file, json.dumps(config | {"trainer": trainer}, indent=2))
    lightning_cli.run(["fit", "--config", str(file)])
