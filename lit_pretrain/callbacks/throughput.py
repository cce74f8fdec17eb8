"""How fast the training is: tokens, samples and operations a second, and the share of the machine's measured peak."""

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_leaves

from lit_pretrain.callbacks.peak import dtype_of_precision, measured_peak
from lit_pretrain.errors import check_number
from lit_pretrain.tracking.run_record import log_figures, mlflow_logger
from lit_pretrain.trainer_state import log_interval_of


@dataclass
class Amount:
    """Work of this rank and the seconds it took."""

    seconds: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0

    def add(self, seconds: float, cost: dict[str, float]) -> None:
        """Add one batch."""
        self.seconds += seconds
        self.samples += cost.get("samples", 0)
        self.tokens += cost.get("tokens", 0)
        self.flops += cost.get("flops", 0)


class Throughput(Callback):
    """Logs throughput/* every `log_every_n_steps` steps and the mean at the end.

    The time from the end of one batch to the end of the next is counted, waiting for data included; batches between
    which a validation ran or a checkpoint was written are left out, with their time. Costs come from the module's
    `step_cost(batch)`, asked once for each shape of batch. No device is ever waited for.

    Args:
        warm_up_batches: Batches at the start that are not counted (compilation, caches).
        measure_peak: Whether to measure the machine's peak for a quarter of a second after the first batch.
    """

    def __init__(self, warm_up_batches: int = 5, measure_peak: bool = True) -> None:
        check_number("Throughput.warm_up_batches", warm_up_batches, least=0)
        self.warm_up_batches = warm_up_batches
        self.measure_peak = measure_peak
        self.peak: float | None = None
        self.tokens_per_second: float | None = None
        self.samples_per_second: float | None = None
        self.totals: dict[str, float] = {"samples": 0.0, "tokens": 0.0, "flops": 0.0, "seconds": 0.0}
        self.mean = Amount()
        self._window = Amount()
        self._costs: dict[tuple, dict[str, float]] = {}
        self._batches = 0
        self._last_end: float | None = None
        self._disturbed = False
        self._logged_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.mean, self._window = Amount(), Amount()
        self._batches, self._logged_step = 0, trainer.global_step
        self._last_end = time.perf_counter()
        self._disturbed = False

    def _measure_peak(self, trainer: Trainer) -> None:
        dtype = dtype_of_precision(str(trainer.precision))
        self.peak = measured_peak(trainer.strategy.root_device.type, dtype)
        logger = mlflow_logger(trainer)
        if logger is not None:
            kind = str(dtype).removeprefix("torch.")
            logger.set_tags({"machine.peak_teraflops": f"{self.peak / 1e12:.3g} ({kind} matrix products)"})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time until the next batch out."""
        self._disturbed = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave the time until the next batch out."""
        self._disturbed = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log if it is time."""
        now = time.perf_counter()
        seconds = now - (self._last_end if self._last_end is not None else now)
        self._last_end = now
        cost = self._cost(pl_module, batch)
        self._batches += 1
        self.totals["seconds"] += seconds
        for name in ("samples", "tokens", "flops"):
            self.totals[name] += cost.get(name, 0) * trainer.world_size
        if self._batches > self.warm_up_batches and not self._disturbed:
            self._window.add(seconds, cost)
            self.mean.add(seconds, cost)
        self._disturbed = False
        if self._batches == 1 and self.measure_peak and trainer.is_global_zero:
            # After the first step, which a person waits for.
            if callable(getattr(pl_module, "step_cost", None)):
                self._measure_peak(trainer)
            self._last_end = time.perf_counter()
        step = trainer.global_step
        if step != self._logged_step and step % log_interval_of(trainer) == 0:
            self._logged_step = step
            # With the totals so far: a training that is killed has cost something too.
            self._log(trainer, self.rates(self._window, trainer.world_size) | self._shown_totals())
            self._window = Amount()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log means over the whole training and totals, those of the parts before a resume included."""
        rates = self.rates(self.mean, trainer.world_size)
        summary = {f"{name}_mean": value for name, value in rates.items()}
        self._log(trainer, summary | self._shown_totals())

    def _shown_totals(self) -> dict[str, float]:
        """All work since the training began, what was not counted left out."""
        totals = {
            "throughput/total_samples": self.totals["samples"],
            "throughput/total_tokens": self.totals["tokens"],
            "throughput/total_petaflops": self.totals["flops"] / 1e15,
            "throughput/total_hours": self.totals["seconds"] / 3600,
        }
        return {name: value for name, value in totals.items() if value}

    def rates(self, amount: Amount, world_size: int = 1) -> dict[str, float]:
        """Rates of all ranks together, from the work of one; empty if nothing was counted."""
        if amount.seconds <= 0:
            return {}
        rates = {
            "throughput/samples_per_second": world_size * amount.samples / amount.seconds,
            "throughput/tokens_per_second": world_size * amount.tokens / amount.seconds,
            "throughput/teraflops_per_second": world_size * amount.flops / amount.seconds / 1e12,
        }
        if self.peak:
            rates["throughput/share_of_peak"] = amount.flops / amount.seconds / self.peak
        return {name: value for name, value in rates.items() if value}

    def _cost(self, pl_module: LightningModule, batch: Any) -> dict[str, float]:
        step_cost = getattr(pl_module, "step_cost", None)
        if not callable(step_cost):
            return {}
        shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
        if shapes not in self._costs:
            self._costs[shapes] = step_cost(batch)
        return self._costs[shapes]

    def _log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.tokens_per_second = metrics.get("throughput/tokens_per_second", self.tokens_per_second)
        self.samples_per_second = metrics.get("throughput/samples_per_second", self.samples_per_second)
        if not metrics:
            return
        metrics["throughput/peak_memory_gib"] = peak_memory(trainer.strategy.root_device) / 2**30
        log_figures(trainer, metrics)

    def state_dict(self) -> dict[str, Any]:
        """The totals, which a resumed run goes on adding to."""
        return {"totals": dict(self.totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the totals of the run that is resumed."""
        self.totals = dict(state_dict["totals"])


def peak_memory(device: torch.device) -> float:
    """Most bytes held so far: on the GPU by tensors, on a CPU by the whole process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0.0
    status = Path("/proc/self/status")
    most = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    if most is not None:
        # Linux: what `resource` tells of a process begins with the peak of the one that started it.
        return 1024.0 * int(most[1])
    import resource  # not on Windows

    # Bytes on macOS, else kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
