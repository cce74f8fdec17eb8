"""What every LightningModule of the suite has in common: optimiser, draws, running means, the watch over the loss."""

import inspect
import json
import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import Metric

from lit_pretrain.backbone.float32 import at_least_float32
from lit_pretrain.class_paths import arguments_of
from lit_pretrain.data.loading import SURPLUS
from lit_pretrain.data.randomness import default_seed, derive_seed
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.memory import give_back
from lit_pretrain.modules import bfloat16_moments, muon, sparse_embeddings
from lit_pretrain.modules.accumulation import Accumulation
from lit_pretrain.modules.averaging import AVERAGE, AverageConfig, WeightAverage, load_averages, with_averages
from lit_pretrain.modules.clipping import clip_gradients
from lit_pretrain.modules.clock import CLOCK, TrainingClock
from lit_pretrain.modules.optimization import (
    AdamWConfig,
    ScheduleConfig,
    make_optimizer,
    make_scheduler,
    rates_of,
    remember_dimensions,
)
from lit_pretrain.modules.rolling_back import MOST_TO_ONE, RollBacks, put_back
from lit_pretrain.modules.skipping import MOST_IN_A_ROW, SkippedSteps, take_out_broken, without_broken
from lit_pretrain.modules.statistics import MeanStatistics, Statistics, without_any
from lit_pretrain.modules.steps import total_steps, training_share
from lit_pretrain.modules.strategies import gathered, prepare_for
from lit_pretrain.objectives.objective import Batch, Objective
from lit_pretrain.required import required
from lit_pretrain.trainer_state import is_fast_run, log_interval_of

# Where a checkpoint has the sums since the last report.
SUMS = "lit_pretrain_sums"
# And how many steps were left out.
SKIPPED = "lit_pretrain_skipped_steps"
# And how often it has gone back.
ROLL_BACKS = "lit_pretrain_roll_backs"


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the sentence says at which step and where its batch is written down."""


class WatchedLosses:
    """The losses of a step on their way to the CPU, which nobody waits for until they are looked at.

    They are put together, and copied to pinned memory by CUDA, right behind the kernels that make them, so that a look
    at the next step finds them there: a test made then would be queued behind the kernels of that step.

    Args:
        loss: Scalar that is minimised.
        parts: Scalars that it is made of, by name.
        sample_ids: Of the batch; they stay where they are.
        step: Optimiser steps before this one.

    Attributes:
        names: Of the parts.
        sample_ids: As given.
        step: As given.
    """

    def __init__(self, loss: Tensor, parts: dict[str, Tensor], sample_ids: list[int] | Tensor, step: int) -> None:
        self.names, self.sample_ids, self.step = list(parts), sample_ids, step
        self._values = torch.stack([at_least_float32(term.detach()) for term in (loss, *parts.values())])
        self._copied = None
        if loss.device.type == "cuda":
            # Not waiting for the copy makes its memory pinned.
            self._values = self._values.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def values(self) -> list[float]:
        """The loss, then its parts; waits only where the copy has not come to its end."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


def unchanged(batch: Any) -> Any:
    """A batch as it is."""
    return batch


class BaseModule(LightningModule):
    """An encoder, heads, and AdamW over both.

    Subclasses take all but the encoder by `**settings`, which jsonargparse follows to here, so that a config has them
    beside their own.

    Args:
        encoder: Module with `forward_features`, `forward_head` and `settings`; null where a subclass has several.
        optimizer: AdamW's settings.
        schedule: Learning rate over the training, which a time may end.
        gradient_clip_norm: Largest norm of all gradients together; null for no clipping.
        compile_blocks: Whether torch.compile is applied to the Transformers' blocks.
        seed: Source of every draw in training; null takes seed_everything's.
        gradient_checkpointing: Whether the blocks' activations are computed again in the backward pass instead of kept:
            less memory for about a third more time.
        average: Whether the weights are averaged over the steps; what is evaluated, exported and started from is the
            average then.
        non_finite: At a loss or gradients that are not finite: `stop`; `skip` the step, which is counted, and ten in a
            row stop the training; or `roll_back`, which goes on from there with weights and moments of the last
            checkpoint, counted, at most three times with the same one.
    """

    # A TextEncoder, a VisionEncoder or what has their protocol; none where two towers have one each.
    encoder: Any

    def __init_subclass__(cls, **settings: Any) -> None:
        """Let `help` and notebooks show every argument."""
        super().__init_subclass__(**settings)
        cast(Any, cls).__signature__ = inspect.Signature(list(arguments_of(cls).values()))

    def __init__(
        self,
        encoder: torch.nn.Module | None,
        /,
        optimizer: AdamWConfig = AdamWConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
        gradient_clip_norm: float | None = 1.0,
        compile_blocks: bool = False,
        seed: int | None = None,
        gradient_checkpointing: bool = False,
        average: AverageConfig = AverageConfig(),  # noqa: B008 (frozen)
        non_finite: Literal["stop", "skip", "roll_back"] = "stop",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.non_finite = non_finite
        self.skipped, self.roll_backs = SkippedSteps(), RollBacks()
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        check_number("model.gradient_clip_norm", gradient_clip_norm, above=0)
        self.gradient_clip_norm = gradient_clip_norm
        self.compile_blocks = compile_blocks
        self.gradient_checkpointing = gradient_checkpointing
        self.seed = default_seed() if seed is None else seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._statistics: dict[str, MeanStatistics] = {}
        # Of a training that is resumed, by stage, until its first batch.
        self._earlier_sums: dict[str, dict[str, list]] = {}
        self._gathered = ExitStack()
        self._reported_step = 0
        # Numbers in the largest tensor of each of the last batches.
        self._batch_sizes: deque[int] = deque(maxlen=16)
        self._used_rates: dict[str, float] = {}
        self._watched: WatchedLosses | None = None
        self.clock = TrainingClock(schedule.seconds)
        # What of the objectives changes over the training.
        self._varying: list[Objective] = []
        self.accumulation = Accumulation()
        self.average_config = average
        # Since the first step of a training, until the next call of the trainer.
        self.average: WeightAverage | None = None
        self._saved_average: dict[str, Any] | None = None
        # Whatever reads the weights reads them as they are.
        self.register_state_dict_pre_hook(sparse_embeddings.settle)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As nn.Module's, which `to` calls, but what metrics count stays in float32 under `bf16-true` and `16-true`."""
        super()._apply(fn, recurse)
        for part in self.modules():
            if isinstance(part, Metric):
                part._apply(at_least_float32)
        return self

    # -- before training

    def configure_model(self) -> None:
        """Let the strategy know what it wraps; Lightning calls this before every run, once the data is set up.

        Subclasses make first what waits for the data.
        """
        if self._trainer is not None:
            remember_dimensions(self)
            if self.optimizer_config.sparse_embeddings and self.trainer.training:
                ngrams_alone = self.optimizer_config.sparse_embeddings == "ngrams"
                sparse_embeddings.begin(self, self._trainer.strategy, ngrams_alone)
            if self.optimizer_config.algorithm == "muon" and self.trainer.training:
                muon.check_strategy(self, self._trainer.strategy)
            if self.optimizer_config.moments == "bfloat16" and self.trainer.training:
                bfloat16_moments.check_strategy(self._trainer.strategy)
            prepare_for(self._trainer.strategy, self)

    def setup(self, stage: str) -> None:
        """Have batches handed over as the data module made them.

        Lightning's plugins of `bf16-true` and the like round every number in them, labels too. What meets the weights
        is brought to their type where it does.
        """
        precision: Any = self.trainer.precision_plugin
        precision.convert_input = unchanged
        self.average = self._saved_average = None
        self._batch_sizes.clear()
        self.skipped, self.roll_backs = SkippedSteps(), RollBacks()
        self.clock = TrainingClock(self.schedule_config.seconds)

    def teardown(self, stage: str) -> None:
        """Leave a module whose tables are ordinary ones, and up to date, and whose weights are the averages."""
        if stage == TrainerFn.FITTING:
            sparse_embeddings.end(self)
            if self.average is not None:
                self.average.apply()

    # -- optimiser

    @property
    def learning_rate(self) -> float:
        """Highest learning rate of the schedule; Lightning's LearningRateFinder sets it."""
        return self.optimizer_config.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer_config = replace(self.optimizer_config, learning_rate=value)

    def trained_modules(self) -> list[torch.nn.Module]:
        """Modules whose parameters are trained; each may name parameters that must not decay."""
        return [self.encoder]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what is trained, and its schedule over the trainer's steps."""
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = self.make_optimizer(fused=not scaled)
        sparse_embeddings.send_first(self)
        steps = total_steps(self.trainer)
        if not is_fast_run(self.trainer) and isinstance(steps, int):
            self.schedule_config.check(steps)
        scheduler = make_scheduler(optimizer, self.schedule_config, steps, self.clock)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def make_optimizer(self, fused: bool) -> torch.optim.Optimizer:
        """AdamW with one learning rate for all."""
        return make_optimizer(self.trained_modules(), self.optimizer_config, fused)

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        """As Lightning's; then `bound`, the average, and the end of a training whose time is over; collective."""
        super().optimizer_step(*arguments, **settings)
        # Lightning lets go of gradients after the next forward pass, and that is the peak of a training's memory.
        self.zero_grad(set_to_none=True)
        if self.roll_backs.is_due:
            self._roll_back()
        else:
            self.bound()
            if self.average is not None:
                self.average.update()
        self.clock.end_step()
        if self.clock.is_over:
            # Before callbacks ask whether this is the last step.
            self.trainer.should_stop = True

    def bound(self) -> None:
        """Bring parameters back within their bounds after an optimiser step."""

    def on_after_backward(self) -> None:
        """Gather the rows of sparse gradients where an optimiser step follows; collective.

        Before anything looks at gradients: an fp16 scaler must find in all processes the same.
        """
        if self.optimizer_config.sparse_embeddings and not self.trainer.fit_loop.epoch_loop._should_accumulate():
            sparse_embeddings.gather_gradients(self.parameters())

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the trainer's setting if it has one, else by this module's."""
        if self.non_finite == "skip" and self.skipped.take_out(optimizer):
            self._tell_skipped()
            return
        if self.non_finite == "roll_back":
            self.roll_backs.note_step(finite=not take_out_broken(optimizer))
            if self.roll_backs.is_due:
                return
        if gradient_clip_val is None and self.gradient_clip_norm is not None:
            gradient_clip_val, gradient_clip_algorithm = self.gradient_clip_norm, "norm"
        clip_gradients(self.trainer, optimizer, gradient_clip_val or 0.0, gradient_clip_algorithm or "norm")

    def _tell_skipped(self) -> None:
        """Say that a step is left out; too many are none that a training can do without.

        Raises:
            NonFiniteLossError: In all processes, after several in a row.
        """
        step, skipped = self.trainer.global_step, self.skipped
        if skipped.in_a_row >= MOST_IN_A_ROW:
            raise NonFiniteLossError(
                f"The gradients are not finite in {skipped.in_a_row} steps one after the other, up to step {step}: "
                "lower optimizer.learning_rate, lengthen schedule.warm_up, or go on from an earlier checkpoint in fp32."
            )
        rank_zero_info(f"Step {step} is left out: its gradients are not finite ({skipped.total} so far).")

    def _roll_back(self) -> None:
        """Take weights, buffers, moments and averages of the last checkpoint, and go on with the next step; collective.

        Raises:
            NonFiniteLossError: In all processes, if there is none, or after several times to the same one.
        """
        step, roll_backs = self.trainer.global_step, self.roll_backs
        roll_backs.is_due = False
        path = roll_backs.latest(self.trainer)
        if path is None or roll_backs.in_a_row > MOST_TO_ONE:
            place = "no checkpoint is saved yet to go back to" if path is None else f"so often in a row after {path}"
            raise NonFiniteLossError(
                f"The gradients are not finite at step {step}, and {place}: lower optimizer.learning_rate, lengthen "
                "schedule.warm_up, or go on from an earlier checkpoint in fp32."
            )
        checkpoint = put_back(self.trainer, self, path)
        if self.average is not None:
            saved = checkpoint.get(AVERAGE)
            self.average = WeightAverage(self, self.trainer.strategy, self.average.decay, saved)
        rank_zero_info(
            f"The gradients are not finite at step {step}: it goes on with weights and moments of step "
            f"{checkpoint['global_step']} ({path}); {roll_backs.total} such so far."
        )

    # -- draws

    def generator_for(self, *parts: int | str) -> torch.Generator:
        """A generator on this device, seeded from `parts` alone."""
        if self.device not in self._generators:
            self._generators[self.device] = torch.Generator(device=self.device)
        return self._generators[self.device].manual_seed(derive_seed(*parts))

    def evaluation_generator(self, batch_index: int) -> torch.Generator:
        """The source of an evaluation batch's draws, seeded from its place among the batches of all processes.

        Alone, a process has the same batches (`EpochBatchSampler`), and so the same draws and figures.
        """
        place = batch_index * self.trainer.world_size + self.trainer.global_rank
        return self.generator_for("evaluation", place, 0)

    def draw_parts(self, batch_index: int) -> tuple[int, int, int, int]:
        """What a step's draws are a function of: seed, global step, batch, rank."""
        return (self.seed, self.trainer.global_step, batch_index, self.trainer.global_rank)

    def step_parts(self, batch_index: int) -> tuple[int, int, int, int]:
        """As `draw_parts`; dropout is seeded with them here."""
        parts = self.draw_parts(batch_index)
        seed = derive_seed("dropout", *parts)
        if self.device.type == "cpu":
            # `torch.manual_seed` writes down the stack for each kind of device that is not there, a tenth of a step.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        return parts

    # -- evaluation

    def on_validation_model_eval(self) -> None:
        """As Lightning's; before callbacks begin, so that what they do does not count as time of training."""
        self.clock.pause()
        super().on_validation_model_eval()

    def on_validation_start(self) -> None:
        """Take the averages of a training, and gather what FSDP shards, see `gathered`; collective."""
        # A validation's tensors are of other sizes than a step's, and would fill none of the holes that this leaves.
        give_back()
        sparse_embeddings.settle(self)
        if self.average is not None:
            self.average.apply()
        self._gather()

    def on_validation_end(self) -> None:
        """Shard it again, and take what is trained; collective."""
        give_back()
        self.shard_again()
        if self.average is not None:
            self.average.restore()
        self.clock.go_on()

    def on_test_start(self) -> None:
        """As `on_validation_start`."""
        self._gather()

    def on_test_end(self) -> None:
        """As `on_validation_end`."""
        self.shard_again()

    def on_predict_start(self) -> None:
        """As `on_validation_start`."""
        self._gather()

    def on_predict_end(self) -> None:
        """As `on_validation_end`."""
        self.shard_again()

    def _gather(self) -> None:
        self._gathered.enter_context(gathered(required(self.trainer.strategy.model)))

    def shard_again(self) -> None:
        """End what an evaluation has gathered; before a checkpoint is saved too, which callbacks do within it."""
        self._gathered.close()

    # -- means

    @property
    def fields_ahead(self) -> tuple[str, ...]:
        """Fields of accumulated batches that must be known at the first of a step, for `count_terms`; none for none."""
        return ()

    def count_terms(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """How many terms the loss's means have on a training batch, which has `fields_ahead` only, by name."""
        raise NotImplementedError

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        """Report the means since the last report, at the optimiser steps at which the trainer writes its logs."""
        if self._report_is_due():
            self._reported_step = self.trainer.global_step
            self.report("train")
            self.log_dict(self._beside_means())

    def on_train_start(self) -> None:
        """Count from here, or from the sums of the training that is resumed."""
        self._reported_step = self.trainer.global_step
        for stage in self._training_stages():
            del self._statistics[stage]
        # What the data was prepared with.
        give_back()
        self.begin_average()
        if self.trainer.ckpt_path is not None:
            self.roll_backs.note_checkpoint(str(self.trainer.ckpt_path))
        self._varying = [part for part in self.modules() if isinstance(part, Objective) and part.varies]
        self.clock.start()

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Tell objectives that change over the training how much of it is over; the same for all batches of a step."""
        self.make_room(batch)
        for objective in self._varying:
            objective.training_share = training_share(self.trainer)

    def on_validation_batch_start(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Make room for a longer batch than all before."""
        self.make_room(batch)

    def on_test_batch_start(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """As `on_validation_batch_start`."""
        self.make_room(batch)

    def make_room(self, batch: Batch) -> None:
        """Give free memory back before a batch that is larger than those before, whose tensors fit none of its holes.

        Of texts in any order that is one batch in seventeen, of equal sizes none.
        """
        size = max((value.numel() for value in batch.values() if isinstance(value, Tensor)), default=0)
        if size > max(self._batch_sizes, default=0):
            give_back()
        self._batch_sizes.append(size)

    def begin_average(self) -> None:
        """Average from here, or go on with the averages of the training that is resumed; collective."""
        decay, saved, resumed = self.average_config.decay, self._saved_average, self.trainer.ckpt_path is not None
        if decay is not None:
            self.average = WeightAverage(self, self.trainer.strategy, decay, saved)
            if resumed and saved is None:
                rank_zero_info(
                    "The checkpoint has no averages of the weights (model.average): they begin at step "
                    f"{self.trainer.global_step}."
                )
        elif saved is not None:
            rank_zero_info(
                "The checkpoint has averages of the weights, which end here: set model.average.decay to go on with "
                "them."
            )
        self._saved_average = None

    def on_train_end(self) -> None:
        """Look at the last step's loss too, and report the steps since the last report.

        They stay counted: if the training is gone on with, the next report is the one that it would have had unbroken.
        """
        self.stop_if_not_finite()
        if self.trainer.global_step != self._reported_step:
            self._write_report()

    def _beside_means(self) -> dict[str, float]:
        """What is reported with the means: the learning rates, and how many steps were left out or undone."""
        if self.non_finite == "stop":
            return self._used_rates
        if self.non_finite == "skip":
            return self._used_rates | {"train/skipped_steps": float(self.skipped.total)}
        return self._used_rates | {"train/roll_backs": float(self.roll_backs.total)}

    def _report_is_due(self) -> bool:
        step, every = self.trainer.global_step, log_interval_of(self.trainer)  # 0 in barebones trainings
        return every > 0 and step % every == 0 and step != self._reported_step

    def _write_report(self) -> None:
        """Give the loggers the means since the last report, where Lightning writes nothing; collective."""
        means: dict[str, Tensor] = {}
        for stage in self._training_stages():
            means |= self.means(stage)
        if not means:
            return
        self.trainer.callback_metrics.update(means)
        metrics = {name: float(value) for name, value in means.items()}
        # Not the trainer's count of epochs, in which the last one is over when a training ends.
        epoch = self.trainer.fit_loop.epoch_progress.current.ready - 1
        metrics |= self._beside_means() | {"epoch": epoch}
        # Lightning's logs count steps from 0.
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step - 1)
        # What Lightning has of the report before it would write as this step's, a moment from now.
        for logged in self.trainer.fit_loop.epoch_loop._results.values():
            if logged.meta.name in metrics:
                logged._forward_cache = None

    def _training_stages(self) -> list[str]:
        return [stage for stage in self._statistics if stage.split("/")[0] == "train"]

    def statistics_for(self, stage: str, names: Iterable[str]) -> MeanStatistics:
        """The running means of a stage, made at its first batch."""
        if stage not in self._statistics:
            self._statistics[stage] = MeanStatistics(list(names)).to(self.device)
            earlier = self._earlier_sums.pop(stage, None)
            if earlier is not None and self.trainer.is_global_zero:
                self._statistics[stage].add_sums(earlier)
        return self._statistics[stage]

    def count_training(self, stage: str, statistics: Statistics) -> None:
        """Add a training batch's statistics to its stage's; none of a batch that is left out."""
        if self.non_finite != "stop":
            statistics = without_broken(statistics)
        self.statistics_for(stage, statistics).update(statistics)

    def count(self, stage: str, batch: Batch, statistics: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Add an evaluation batch's statistics to its stage's, unless it is there for the number alone."""
        if batch.get(SURPLUS):
            statistics = without_any(statistics)
        self.statistics_for(stage, statistics).update(statistics)

    def means(self, stage: str) -> dict[str, Tensor]:
        """A stage's means by the names that they are logged by; collective."""
        means = self._statistics[stage].compute()
        means |= self.derived(means)
        return {f"{stage}/{name}": value.float() for name, value in means.items()}

    def report(self, stage: str) -> None:
        """Log a stage's means and start them anew."""
        if stage not in self._statistics:
            return
        self.log_dict(self.means(stage))
        self._statistics[stage].reset()

    def derived(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Metrics that follow from a stage's means."""
        return {}

    def chance(self) -> dict[str, float]:
        """What figures are without learning, by their names without the stage; those that are known.

        Called after an evaluation, on any rank alone.
        """
        return {}

    def on_validation_epoch_end(self) -> None:
        """Report the means over the whole validation set."""
        self.report("validation")

    def on_test_epoch_end(self) -> None:
        """Report the means over the whole test set."""
        self.report("test")

    def note_learning_rate(self) -> None:
        """Keep the learning rates that this step uses, for the logs; the schedule moves on before they are written."""
        self._used_rates = rates_of(self.trainer.optimizers[0])

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums since the last report; weights that a loss has spoilt are not saved over good ones; collective.

        Callbacks save as a step ends, before its report, and may end the training by that. A report that is due is
        written before, so that no resumed training has to guess whether it was.
        """
        self.stop_if_not_finite()
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        stages = self._training_stages()
        if self._report_is_due():
            self._reported_step = self.trainer.global_step
            self._write_report()
            for stage in stages:
                self._statistics[stage].reset()
        checkpoint[SUMS] = {stage: self._statistics[stage].total_sums() for stage in stages}
        checkpoint[CLOCK] = {"seconds": self.clock.seconds}
        if self.skipped.total:
            checkpoint[SKIPPED] = {"total": self.skipped.total, "in_a_row": self.skipped.in_a_row}
        if self.roll_backs.total:
            checkpoint[ROLL_BACKS] = self.roll_backs.state()
        if self.average is not None:
            checkpoint[AVERAGE] = self.average.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the sums since the last report and the averages, if a training is resumed; else only the latter.

        Collective where the strategy has loaded the weights already, as FSDP's does.
        """
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._earlier_sums = dict(checkpoint.get(SUMS, {}))
            self._saved_average = checkpoint.get(AVERAGE)
            self._take_time(checkpoint.get(CLOCK))
            vars(self.skipped).update(checkpoint.get(SKIPPED, {}))
            vars(self.roll_backs).update(checkpoint.get(ROLL_BACKS, {}))
        elif "state_dict" in checkpoint:
            checkpoint["state_dict"] = with_averages(checkpoint)["state_dict"]
        elif AVERAGE in checkpoint:
            load_averages(self, self.trainer.strategy, checkpoint[AVERAGE])

    def _take_time(self, saved: dict[str, float] | None) -> None:
        """Count on from the time of the training that is resumed.

        Raises:
            UserError: If none is left.
        """
        self.clock.seconds = 0.0 if saved is None else saved["seconds"]
        if self.clock.budget is None:
            return
        if saved is None:
            rank_zero_info("The checkpoint does not tell how long it was trained: schedule.budget counts from here.")
        if self.clock.is_over:
            raise UserError(
                f"The run has trained for {self.clock.seconds:.0f} seconds, and model.schedule.budget "
                f"{self.schedule_config.budget} allows no more: raise it to go on."
            )

    # -- the watch over the loss

    def watch_losses(self, loss: Tensor, parts: dict[str, Tensor], batch: Batch) -> None:
        """Stop at a loss that is not finite: at once on a CPU, one step later elsewhere, so as not to wait for it.

        Args:
            loss: What is minimised.
            parts: The losses it is made of, by name.
            batch: Whose `sample_id` is written down.
        """
        self.stop_if_not_finite()
        self._watched = WatchedLosses(loss, parts, batch.get("sample_id", []), self.trainer.global_step)
        if loss.device.type == "cpu":
            self.stop_if_not_finite()

    def stop_if_not_finite(self) -> None:
        """Raise `NonFiniteLossError`, with the sample ids of its batch saved, if the watched loss is not finite.

        Where such steps are left out or undone, their batches are written down alone.
        """
        watched, self._watched = self._watched, None
        if watched is None:
            return
        total, *values = watched.values()
        if math.isfinite(total):
            return
        step, ids = watched.step, torch.as_tensor(watched.sample_ids).tolist()
        broken = [name for name, value in zip(watched.names, values, strict=True) if not math.isfinite(value)]
        directory = Path(getattr(self.logger, "run_directory", None) or self.trainer.default_root_dir)
        path = directory / f"non-finite-loss-step-{step}-rank-{self.trainer.global_rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"step": step, "epoch": self.trainer.current_epoch, "objectives": broken, "sample_ids": ids}
        path.write_text(json.dumps(record) + "\n")
        if self.non_finite != "stop":
            return
        raise NonFiniteLossError(
            f"The loss of {' and '.join(broken) or 'the sum'} is {total} at step {step}; the sample ids of its "
            f"batch are in {path}: lower optimizer.learning_rate, lengthen schedule.warm_up, or go on from the last "
            "checkpoint in fp32."
        )
