"""A step made again: its batches as the loader gave them, and what every objective and both towers made of them.

The run's own config is built, by the trainer that it is set up for, and the training step itself is called with the
seeds of the step in question; what it hands to the encoders is kept on its way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_pretrain.callbacks.resuming import facts_of
from lit_pretrain.cli import lightning_cli
from lit_pretrain.commands.inspection.place import Saved, check_same, nearest, place_of
from lit_pretrain.data.loading import FOLLOWING, EpochDataModule, overfits
from lit_pretrain.data.pairs.joint_data_module import PAIRS, JointDataModule
from lit_pretrain.errors import UserError
from lit_pretrain.modules.base import BaseModule
from lit_pretrain.objectives.objective import Batch, EncoderPass, Objective
from lit_pretrain.tracking.find import RunRecord
from lit_pretrain.trainer_state import callbacks_of, set_root_directory


@dataclass
class Shown:
    """What one mix of objectives was given of a batch.

    Attributes:
        encoder: That is trained on it.
        batch: As the objectives read it: arranged, pictures varied.
        objectives: In their order.
        passes: What each has made, by its name; null where it reads another's pass.
    """

    encoder: Any
    batch: Batch
    objectives: list[Objective] = field(default_factory=list)
    passes: dict[str, EncoderPass | None] = field(default_factory=dict)


@dataclass
class SeenBatch:
    """One batch of a step.

    Attributes:
        index: Within the epoch.
        loaded: As the loader gave it, on the device.
        trained: The same as the training step is given it (sequences may be cut).
        shown: What objectives were given, in the order in which they were run.
        captions: Of pairs, `input_ids` and `attention_mask`; null else.
        views: Of pairs, the pictures as they were varied (B, C, S, S) in [0, 1]; null else.
        draws: Of pairs, what was drawn for each picture.
        loss: As the training computes it, with the weights at hand.
    """

    index: int
    loaded: Batch
    trained: Batch
    shown: list[Shown] = field(default_factory=list)
    captions: Batch | None = None
    views: Tensor | None = None
    draws: dict[str, Tensor] | None = None
    loss: float = float("nan")


class StepAgain(lightning_cli.CommandLine):
    """Builds a run's training and, in the place of training, makes one of its steps again.

    Attributes:
        place: Where the step stands.
        seen: Its batches.
        world_size: Processes of the run.
        drawn_on: Kind of device that the run's draws were made on.
    """

    run_record: ClassVar[RunRecord]
    saved: ClassVar[list[Saved]] = []
    before: ClassVar[Saved | None] = None
    step: ClassVar[int] = 0
    rank: ClassVar[int] = 0
    scratch: ClassVar[str] = ""
    look: ClassVar[Any] = None

    def checkpoint_of_job(self, settings: Any) -> None:
        """None: a job that was queued anew has nothing to do with this."""

    def before_fit(self) -> None:
        """Leave out all that a training writes, and step in where it would begin."""
        trainer: Any = self.trainer
        if 0 <= trainer.max_steps <= self.step:
            raise self.too_late()
        trainer.loggers = []
        callbacks_of(self.trainer)[:] = []
        set_root_directory(self.trainer, self.scratch)
        trainer.num_sanity_val_steps = 0
        module, data = self.model, self.datamodule
        if not isinstance(module, BaseModule) or not isinstance(data, EpochDataModule | JointDataModule):
            raise UserError(
                f"why makes batches of the suite's own modules and data again, and {self.run_record.run_name} was "
                f"{type(module).__name__} on {type(data).__name__}: look at the sample ids in its logs instead."
            )
        begin: Any = module.on_train_start

        def on_train_start() -> None:
            begin()
            trainer.should_stop = True
            self.find()
            self.seen = [self.see(index) for index in self.place.batches]
            if self.look is not None:
                with trainer.precision_plugin.forward_context():
                    self.found = type(self).look(self)

        beginning: Any = module
        beginning.on_train_start = on_train_start

    def after_fit(self) -> None:
        """See that there was something to make again: a training that is over does not begin."""
        if not hasattr(self, "seen"):
            raise self.too_late()

    def too_late(self) -> UserError:
        """What is said of a step that the training never came to."""
        return UserError(
            f"--step is {self.step + 1}, and {self.run_record.run_name} was to make fewer: look at its charts for the "
            "last one."
        )

    # -- which batches

    def find(self) -> None:
        """Find the step's place, and put the trainer and the module there.

        Raises:
            UserError: If the run has no such step or rank, or its data or settings are others by now.
        """
        trainer, module, data = self.trainer, self.model, self.datamodule
        facts = facts_of(trainer, module)
        check_same(self.saved, facts["seed"], facts["orders"], self.run_record)
        known = [one.facts["devices"] for one in self.saved if "devices" in one.facts]
        self.world_size = known[-1] if known else self.rank + 1
        if self.rank >= self.world_size:
            raise UserError(f"--rank is {self.rank}, and the run had {self.world_size} processes, counted from 0.")
        kinds = [one.facts["kind"] for one in self.saved if "kind" in one.facts]
        # Generators of different devices draw different numbers.
        self.drawn_on = kinds[-1] if kinds else facts["kind"]
        for one in self.saved:
            if one.fingerprint is not None and one.fingerprint != data.fingerprint:
                raise UserError(
                    f"The data of {self.run_record.run_name} had the fingerprint {one.fingerprint}, and have "
                    f"{data.fingerprint} now: give the data as they were, its batches cannot be made of others."
                )
        state: Any = trainer
        per_epoch = int(state.num_training_batches)
        if self.world_size > 1:
            every, limit_batches = data.batches_per_epoch(self.world_size), state.limit_train_batches
            per_epoch = min(every, limit_batches) if isinstance(limit_batches, int) else int(every * limit_batches)
        self.place = place_of(self.step, nearest(self.saved, self.step), per_epoch, trainer.accumulate_grad_batches)
        limit = trainer.max_epochs
        if limit is not None and 0 <= limit <= self.place.epoch:
            raise self.too_late()
        loop: Any = trainer.fit_loop
        optimizer = loop.epoch_loop.automatic_optimization.optim_progress.optimizer
        optimizer.step.total.completed = self.step
        loop.epoch_progress.current.processed = self.place.epoch
        rank = self.rank
        again: Any = module
        again.draw_parts = lambda batch_index: (module.seed, self.step, batch_index, rank)
        # A loss that is not finite is looked at here.
        again.watch_losses = lambda *arguments: None

    def load(self, index: int) -> Batch:
        """A batch as the loader gave it, on the device."""
        data: Any = self.datamodule
        epoch = 0 if overfits(data) else self.place.epoch
        batch = data.batch_at(epoch, index, self.rank, self.world_size)
        fields = getattr(self.model, "fields_ahead", ())
        if index == self.place.batches[0] and fields and len(self.place.batches) > 1:
            others = [data.batch_at(epoch, later, self.rank, self.world_size) for later in self.place.batches[1:]]
            batch = {**batch, FOLLOWING: [{name: other[name] for name in fields} for other in others]}
        return self.trainer.strategy.batch_to_device(batch)

    # -- what was made of them

    def see(self, index: int) -> SeenBatch:
        """Run the training step on a batch and keep what encoders are given."""
        module: Any = self.model
        batch = self.load(index)
        seen = SeenBatch(index, {name: value for name, value in batch.items() if name != FOLLOWING}, batch)
        module.on_train_batch_start(batch, index)
        module.train()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context(), kept(module, seen):
            seen.loss = float(module.training_step(batch, index))
        seen.trained = batch
        return seen


@contextmanager
def kept(module: Any, seen: SeenBatch) -> Iterator[None]:
    """Within this, what objectives make for their encoders, and towers are given, is kept."""
    objectives = [part for part in module.modules() if isinstance(part, Objective)]
    changed: list[tuple[Any, str]] = []

    def put(owner: Any, name: str, function: Any) -> None:
        object.__setattr__(owner, name, function)
        changed.append((owner, name))

    def recorder(objective: Objective) -> Any:
        make = objective.make_pass

        def make_pass(batch: Batch, encoder: Any, generator: torch.Generator) -> EncoderPass | None:
            made = make(batch, encoder, generator)
            if not seen.shown or seen.shown[-1].batch is not batch:
                seen.shown.append(Shown(encoder, batch))
            seen.shown[-1].objectives.append(objective)
            seen.shown[-1].passes[objective.name] = made
            return made

        return make_pass

    for objective in objectives:
        put(objective, "make_pass", recorder(objective))
    count = getattr(module, "count_terms", None)
    if count is not None:

        def count_terms(*arguments: Any) -> Any:
            # Of accumulated batches ahead, which are not trained on yet.
            before = len(seen.shown)
            counted = count(*arguments)
            del seen.shown[before:]
            return counted

        put(module, "count_terms", count_terms)
    if hasattr(module, "embed_pictures"):
        embed_pictures, embed_texts = module.embed_pictures, module.embed_texts

        def pictures(images: Tensor, draws: dict[str, Tensor] | None = None) -> Tensor:
            seen.draws, seen.views = draws, module.views(images, **(draws or {}))
            return embed_pictures(images, draws)

        def texts(batch: Batch) -> Tensor:
            seen.captions = {name: batch[name] for name in ("input_ids", "attention_mask")}
            return embed_texts(batch)

        put(module, "embed_pictures", pictures)
        put(module, "embed_texts", texts)
    try:
        yield
    finally:
        for owner, name in changed:
            object.__delattr__(owner, name)


def pairs_of(batch: Batch) -> Batch:
    """The pairs of a batch, which may have texts and pictures alone beside them."""
    return batch.get(PAIRS, batch)


def ids_of(batch: Batch) -> list[int]:
    """Sample ids of a loader's batch, by their places; places where it has none."""
    part = pairs_of(batch)
    if "sample_id" in part:
        return torch.as_tensor(part["sample_id"]).tolist()
    return list(range(len(next(value for value in part.values() if isinstance(value, Tensor)))))
