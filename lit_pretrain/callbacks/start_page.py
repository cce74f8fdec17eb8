"""What a training is, in a few lines before its first step: what, from where, how much of the data, where it lands."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lit_pretrain.callbacks.progress import total_steps
from lit_pretrain.modules.optimization import count_elements
from lit_pretrain.required import required
from lit_pretrain.tracking.paths import shown_path
from lit_pretrain.tracking.run_record import mlflow_logger, run_directory
from lit_pretrain.trainer_state import data_module_of

# What a module's record says it starts from, by the part that does.
STARTS = {"init_from": "", "text_init_from": "text: ", "vision_init_from": "vision: "}


def start_page(trainer: Trainer, module: LightningModule) -> list[str]:
    """The lines."""
    describe = getattr(module, "describe", None)
    facts: dict[str, Any] = describe() if callable(describe) else {}
    rows = {
        "model": model_row(trainer, module, facts),
        "start": start_row(trainer, module, facts),
        "steps": steps_row(trainer),
        "run": run_row(trainer),
    }
    head = f"{type(module).__name__}: {facts['objectives']}" if "objectives" in facts else type(module).__name__
    if "task" in facts:
        head += f": {facts['task']}" + (f", {facts['classes']} classes" if facts.get("classes") else "")
    return [head, *(f"  {name:<7}{row}" for name, row in rows.items() if row)]


def model_row(trainer: Trainer, module: LightningModule, facts: dict[str, Any]) -> str:
    """Encoders, parameters, device and precision."""
    encoders = []
    for prefix, name in (("", str(facts.get("encoder", ""))), ("text_", "text"), ("vision_", "vision")):
        if f"{prefix}depth" in facts:
            encoders.append(f"{name} {facts[f'{prefix}depth']} x {facts[f'{prefix}width']}")
    parameters = f"{count_elements(module.parameters()):,} parameters"
    where = f"{trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision}"
    return "; ".join([*([" and ".join(encoders)] if encoders else []), parameters, where])


def start_row(trainer: Trainer, module: LightningModule, facts: dict[str, Any]) -> str:
    """Which weights and which step are begun with."""
    if trainer.ckpt_path:
        return f"goes on from step {trainer.global_step:,} of {shown_path(trainer.ckpt_path)}"
    sources = {part: facts[key] for key, part in STARTS.items() if facts.get(key) not in (None, "scratch")}
    seed = getattr(module, "seed", None)
    weights = "; ".join(f"{part}{source}" for part, source in sources.items()) or "new weights"
    return weights if seed is None else f"{weights}, seed {seed}"


def steps_row(trainer: Trainer) -> str:
    """How many steps of how much data, and how often it is validated."""
    data, steps = data_module_of(trainer), total_steps(trainer)
    batch = getattr(data, "batch_size", None)
    parts = [f"{steps:,}" if math.isfinite(steps) else "no end by steps"]
    if isinstance(batch, int):
        samples = batch * trainer.accumulate_grad_batches * trainer.world_size
        length = getattr(data, "sequence_length", None)
        tokens = f" of {length} tokens" if isinstance(length, int) else ""
        parts[0] += f", each of {samples:,} samples{tokens}"
    batches = trainer.num_training_batches
    if math.isfinite(batches) and math.isfinite(steps) and batches:
        epochs = steps * trainer.accumulate_grad_batches / batches
        count = f"{epochs:.2g}" if epochs < 10 else f"{epochs:,.0f}"
        parts.append(f"{count} epoch" if count == "1" else f"{count} epochs")
    if validation_batches(trainer):
        every = required(trainer.val_check_batch) / trainer.accumulate_grad_batches
        if trainer.check_val_every_n_epoch is not None and trainer.val_check_batch == batches:
            epochs_between = trainer.check_val_every_n_epoch
            parts.append(f"validated every {'epoch' if epochs_between == 1 else f'{epochs_between} epochs'}")
        elif math.isfinite(every):
            parts.append(f"validated every {every:,.0f}")
    else:
        parts.append("no validation")
    return ", ".join(parts)


def run_row(trainer: Trainer) -> str:
    """What the run is called, where its files lie, and who keeps its figures."""
    directory, logger = run_directory(trainer), mlflow_logger(trainer)
    named = f"{logger.run_name} in " if logger is not None else ""
    where = shown_path(directory) if directory is not None else shown_path(trainer.default_root_dir)
    if not trainer.loggers:
        return f"{where}; no logger, so no figures, tables and pictures are kept"
    others = [type(other).__name__ for other in trainer.loggers if other is not logger]
    return f"{named}{where}" + (f"; {', '.join(others)}" if others else "")


def validation_batches(trainer: Trainer) -> float:
    """Batches of a validation; 0 where there is none."""
    return sum(trainer.num_val_batches) if trainer.enable_validation else 0
