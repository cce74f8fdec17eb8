"""What data modules that can read their training samples as a stream have in common; docs/streaming.md says how."""

import hashlib
from typing import Any

from torch import Tensor

from lit_pretrain.data.loading import EpochDataModule, ResumableDataLoader
from lit_pretrain.data.sources import Source, no_rows
from lit_pretrain.data.stream_loading import BufferContents, StreamedBatches, StreamingDataLoader
from lit_pretrain.data.stream_order import StreamedRow, find_head, split_head
from lit_pretrain.data.stream_source import StreamedRows, open_stream
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.trainer_state import overfit_batches_of

# Batches of a training that only the clock ends.
ENDLESS = 10**9


class StreamableDataModule(EpochDataModule):
    """Training samples from a cache, in an order of their own for every epoch, or from a stream.

    Args:
        batch_size: Samples of a batch of one device.
        streaming: Whether training samples are read as they are needed, from files, the hub or an address, and nothing
            but a buffer of them is held; `trainer.max_steps` ends the training. Validation has `validation_share` of
            the rows that are looked at first.
        shuffle_buffer: Documents, pictures or rows of pairs that a stream holds in each process and worker, to hand
            their samples out in a drawn order; as many are looked at before the first step.
        **settings: See `EpochDataModule`.
    """

    def __init__(self, batch_size: int, streaming: bool = False, shuffle_buffer: int = 1000, **settings: Any) -> None:
        super().__init__(batch_size, **settings)
        check_number("data.shuffle_buffer", shuffle_buffer, least=2)
        self.streaming = streaming
        self.shuffle_buffer = shuffle_buffer
        self.stream: StreamedBatches | None = None

    # -- opening

    def open_head(
        self, source: Source, least: int = 1, share: float | None = None
    ) -> tuple[StreamedRows, list[StreamedRow], list[StreamedRow]]:
        """The stream of a source, and the rows that are looked at first: for training, and those held out.

        Args:
            source: What to read.
            least: Rows that validation needs, if it has any.
            share: Of the rows that are held out; null is `validation_share`.

        Raises:
            UserError: If it cannot be read or has no rows.
        """
        rows = open_stream(source, self.cache_directory / "huggingface")
        head = find_head(rows, self.shuffle_buffer)
        if not head:
            raise no_rows(source)
        return rows, *split_head(head, self.validation_share if share is None else share, least)

    def open_batches(self, rows: StreamedRows, contents: BufferContents, held_out: list[StreamedRow]) -> None:
        """Make the stream of batches, and its fingerprint."""
        held = frozenset((row.shard, row.row) for row in held_out)
        self.stream = StreamedBatches(rows, contents, self.batch_size, self.shuffle_buffer, self.seed, held)
        self.fingerprint = hashlib.sha256(repr(self.stream.settings()).encode()).hexdigest()[:16]

    def refuse_in_stream(self, *settings: tuple[str, object, str]) -> None:
        """Refuse settings that need the whole of the data.

        Args:
            settings: The name of each, its value (false or null where it is not used), and what it needs.

        Raises:
            UserError: With the first that is used.
        """
        for name, value, reason in settings:
            if value is not None and value is not False:
                raise UserError(
                    f"data.streaming reads samples as they come, and data.{name} {reason}: leave one of the two out."
                )

    def check_end(self) -> None:
        """Refuse a training that a stream does not end.

        Raises:
            UserError: In one sentence.
        """
        self.streamed_batches()

    def streamed_batches(self) -> int:
        """Batches of an epoch of the trainer's: as its steps need, or as `trainer.limit_train_batches` says.

        Raises:
            UserError: If nothing says how many.
        """
        trainer: Any = self.trainer
        if trainer is None or not trainer.training and trainer.state.fn not in (None, "fit"):
            return ENDLESS
        limit, steps = trainer.limit_train_batches, trainer.max_steps
        if overfit_batches_of(trainer) > 0:
            raise UserError(
                "trainer.overfit_batches repeats the first batches of an epoch, and a stream has none that it could "
                "come back to: set data.streaming to false for it."
            )
        if isinstance(limit, int):
            return limit
        if limit != 1.0:
            raise UserError(
                f"trainer.limit_train_batches is a share ({limit}), and a stream has no length to take it of: give a "
                "number of batches."
            )
        if steps is not None and steps > 0:
            return steps * trainer.accumulate_grad_batches
        clock = getattr(getattr(trainer, "lightning_module", None), "clock", None)
        if trainer.max_epochs in (None, -1) or getattr(clock, "budget", None) is not None:
            return ENDLESS
        raise UserError(
            f"A stream has no length, so trainer.max_epochs {trainer.max_epochs} does not say when it ends: set "
            "trainer.max_steps, or say how many batches are an epoch by trainer.limit_train_batches."
        )

    # -- loaders

    @property
    def train_batches_per_epoch(self) -> int:
        """Training batches of this process in an epoch."""
        return self.streamed_batches() if self.streaming else super().train_batches_per_epoch

    def train_dataloader(self) -> ResumableDataLoader:
        """Shuffled batches: of an epoch in its order, or of the stream from where it stands."""
        if self.stream is None:
            return super().train_dataloader()
        return StreamingDataLoader(self.stream, self.workers, self.streamed_batches, self._ahead)

    def batch_at(self, epoch: int, batch_index: int, rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
        """As the base's; of a stream no batch can be had without those before it."""
        if self.streaming:
            raise UserError(
                "A batch of a stream cannot be made again by its number, without reading all that came before: look "
                "into a training on the same data with data.streaming false."
            )
        return super().batch_at(epoch, batch_index, rank, world_size)

    def batches_per_epoch(self, world_size: int) -> int:
        """Training batches of each of so many processes in an epoch."""
        return self.streamed_batches() if self.streaming else super().batches_per_epoch(world_size)
