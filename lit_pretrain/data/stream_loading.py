"""From a stream's buffers to batches, and the loader whose state says where each lane stands.

A loader's state has, for every process and worker, where its buffer begins and how many samples of it are gone, as of
the last batch that was handed out; what workers have made ahead is made again.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lit_pretrain.data.loading import EpochDataset, ResumableDataLoader, as_it_is, place
from lit_pretrain.data.randomness import derive_seed, sample_generator
from lit_pretrain.data.stream_order import Lane, Place, StreamedRow
from lit_pretrain.data.stream_source import StreamedRows
from lit_pretrain.errors import UserError

# Place of a lane's buffer, and samples of it that are handed out: {"epoch", "index", "row", "samples"}.
State = dict[str, int]
BEGINNING: State = {"epoch": 0, "index": 0, "row": 0, "samples": 0}


class BufferContents(Protocol):
    """What makes samples of a buffer's rows."""

    @property
    def least(self) -> int:
        """Rows without which a buffer gives no samples."""

    def make(self, rows: Sequence[StreamedRow], seed: int) -> EpochDataset:
        """The samples of some rows; draws are made from the seed."""

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of the ends of two buffers."""

    def settings(self) -> dict[str, Any]:
        """What the samples of a buffer depend on beside its rows, by the settings' names."""


class StreamedBatches(IterableDataset):
    """Batches of this process, without end; each worker of a loader makes those of a lane.

    Args:
        rows: The source.
        contents: Makes samples of rows.
        batch_size: Samples of a batch.
        buffer: Rows that are held.
        seed: Source of the order.
        held_out: Shards and rows that are left out.
    """

    def __init__(
        self,
        rows: StreamedRows,
        contents: BufferContents,
        batch_size: int,
        buffer: int,
        seed: int,
        held_out: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        self.rows, self.contents, self.batch_size, self.buffer = rows, contents, batch_size, buffer
        self.seed, self.held_out = seed, held_out
        # Set by the loader before it begins: this process, how many there are, and where each of its lanes stands, the
        # next one first.
        self.rank, self.processes = 0, 1
        self.standing: list[tuple[int, State]] = [(0, dict(BEGINNING))]

    def settings(self) -> dict[str, Any]:
        """What a place in the stream depends on, by the settings' names."""
        own = {"shuffle_buffer": self.buffer, "seed": self.seed, "validation rows": len(self.held_out)}
        return {"source": self.rows.fingerprint, "shards": self.rows.shards, **own, **self.contents.settings()}

    def __iter__(self) -> Iterator[tuple[dict[str, Any], int, State] | UserError]:
        """Batches with the lane that they are of and where it stands after them; or what is wrong, as a value."""
        worker = get_worker_info()
        lane, state = self.standing[0 if worker is None else worker.id]
        try:
            for batch, after in self.batches(lane, state):
                yield batch, lane, after
        except UserError as error:
            yield error

    def batches(self, lane: int, state: State) -> Iterator[tuple[dict[str, Any], State]]:
        """A lane's batches from a place on, with the place after each."""
        number, lanes = self.rank * len(self.standing) + lane, self.processes * len(self.standing)
        own = Lane(self.rows, number, lanes, self.seed, self.held_out)
        begin = Place(state["epoch"], state["index"], state["row"])
        handed_out, parts, needed = state["samples"], [], self.batch_size
        for buffer in own.buffers(begin, self.buffer, self.contents.least):
            at = buffer.place
            seed = derive_seed(self.seed, "buffer", number, at.epoch, at.index, at.row)
            samples = self.contents.make(buffer.rows, seed)
            order = sample_generator(seed, "order").permutation(len(samples)).tolist()
            while handed_out < len(order):
                chosen = order[handed_out : handed_out + needed]
                parts.append(samples.__getitems__([(0, index) for index in chosen]))
                handed_out, needed = handed_out + len(chosen), needed - len(chosen)
                if needed == 0:
                    after = {"epoch": at.epoch, "index": at.index, "row": at.row, "samples": handed_out}
                    yield parts[0] if len(parts) == 1 else self.contents.join(parts), after
                    parts, needed = [], self.batch_size
            handed_out = 0


class StreamingDataLoader(ResumableDataLoader):
    """Batches of a stream, as many as a training asks for; an iteration goes on where the one before has ended.

    It has a length, without which Lightning would fetch a batch ahead of the one that is trained on, and a loader's
    state would be that of a batch that nothing has learned from.

    Args:
        batches: The stream.
        workers: Processes that make batches ahead; 0 makes them in this one.
        length: Tells how many batches are an epoch of the trainer's.
        ahead: As for `ResumableDataLoader`.
    """

    def __init__(
        self,
        batches: StreamedBatches,
        workers: int,
        length: Callable[[], int],
        ahead: Callable[[], tuple[int, Sequence[str]]] | None = None,
    ) -> None:
        self.batches = batches
        self.lanes = max(1, workers)
        self.length = length
        self.ahead = ahead or (lambda: (1, ()))
        self.loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            collate_fn=as_it_is,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=one_core,
        )
        self._handed_out = 0
        self._states: list[State] = [dict(BEGINNING) for _ in range(self.lanes)]
        self._pending: deque[tuple[int, State]] = deque()
        self._loaded: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        """Batches of an epoch of the trainer's."""
        return self.length()

    def __iter__(self) -> Iterator[Any]:
        """Hand out batches from where the last one stood."""
        batches, (rank, processes) = self.batches, place()
        if self._loaded is not None:
            self._go_on(self._loaded, rank, processes)
            self._loaded = None
        batches.rank, batches.processes = rank, processes
        # Torch begins with its first worker, wherever the last iteration has ended.
        first = self._handed_out % self.lanes
        lanes = [(first + number) % self.lanes for number in range(self.lanes)]
        batches.standing = [(lane, dict(self._states[lane])) for lane in lanes]
        self._pending.clear()
        for batch in self._with_following():
            lane, self._states[lane] = self._pending.popleft()
            self._handed_out += 1
            yield batch

    def _batches(self) -> Iterator[Any]:
        for made in self.loader:
            if isinstance(made, UserError):
                raise made
            batch, lane, after = made
            self._pending.append((lane, after))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch stands, in every process: a collective call where there are several."""
        if self._loaded is not None:
            return dict(self._loaded)
        lanes = self._states
        processes = place()[1]
        if processes > 1:
            gathered: list[list[State]] = [[] for _ in range(processes)]
            torch.distributed.all_gather_object(gathered, lanes)
            lanes = [state for states in gathered for state in states]
        facts = {"processes": processes, "workers": self.lanes, "settings": self.batches.settings()}
        return {"batches": self._handed_out, "lanes": [dict(state) for state in lanes], **facts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; compared with what is set now when the next iteration begins."""
        self._loaded = dict(state)

    def _go_on(self, state: Mapping[str, Any], rank: int, processes: int) -> None:
        """Take a state over.

        Raises:
            UserError: If it is of another stream, or was split otherwise.
        """
        if "lanes" not in state:
            raise UserError(
                "The checkpoint's training did not stream its data, so its place within an epoch is none in a stream: "
                "set data.streaming to false, or begin a new training from it by model.init_from."
            )
        now = {"trainer.devices": processes, "data.workers": self.lanes, **self.batches.settings()}
        then = {"trainer.devices": state["processes"], "data.workers": state["workers"], **state["settings"]}
        for name in now:
            if now[name] != then.get(name):
                raise UserError(
                    f"The checkpoint's place in the stream is one of {name} {then.get(name)}, and it is {now[name]} "
                    "now: set it as it was, or begin a new training from the checkpoint by model.init_from."
                )
        self._handed_out = state["batches"]
        self._states = [dict(lane) for lane in state["lanes"][rank * self.lanes : (rank + 1) * self.lanes]]


def one_core(worker: int) -> None:
    """Let a worker's tokenizer take one core: each of several would else take them all, and warn of being forked."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
