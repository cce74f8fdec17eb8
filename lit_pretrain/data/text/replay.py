"""A general corpus beside one's own, so that what was learned before is not forgotten.

Continuing on other texts costs what was known; some of the former texts, or texts like them, in every batch keep it
(rehearsal: Robins 1995, doi:10.1080/09540099550039318; for language models that go on, 1 to 50 % of them: Ibrahim et
al. 2024, arXiv:2403.08763). An epoch is one of the own corpus. The general one has epochs of its own, which go on from
one of these to the next, so that a large one is gone through before anything of it comes again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy
import torch

from lit_pretrain.data.loading import REPLAYED, EpochBatchSampler, EpochDataset, Key
from lit_pretrain.errors import UserError


@dataclass(frozen=True)
class ReplayConfig:
    """A general corpus, and how much of it.

    Args:
        path: As `path` of DocumentDataModule; null, without `data_files`, for no such corpus.
        share: Share of its sequences among all of an epoch, above 0 and below 1.
        name: As there.
        data_files: As there.
        split: As there.
        text_column: As there.
        document_separator: As there.
        max_documents: As there.
    """

    path: str | None = None
    share: float = 0.2
    name: str | None = None
    data_files: str | list[str] | None = None
    split: str = "train"
    text_column: str = "text"
    document_separator: Literal["file", "blank_line"] | None = None
    max_documents: int | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0.0 < self.share < 1.0:
            raise UserError(
                f"data.replay.share is {self.share}: give the share of the general corpus's sequences, above 0 and "
                "below 1, or leave data.replay.path out for none."
            )
        if not self.is_given and any(getattr(self, each.name) != each.default for each in fields(self)):
            raise UserError("data.replay has settings and no corpus: give data.replay.path or data.replay.data_files.")

    @property
    def is_given(self) -> bool:
        """Whether there is such a corpus."""
        return self.path is not None or self.data_files is not None

    def source(self) -> dict[str, Any]:
        """Where it is, as arguments of DocumentDataModule."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "share"}


@contextmanager
def settings_of_replay() -> Iterator[None]:
    """Within this, what is wrong is said of data.replay's settings."""
    try:
        yield
    except UserError as error:
        sentence = str(error)
        for each in fields(ReplayConfig):
            sentence = sentence.replace(f"data.{each.name}", f"data.replay.{each.name}")
        raise UserError(f"data.replay: {sentence}") from error


class MixedDataset:
    """Sequences of two corpora in a ratio.

    Args:
        own: The corpus that epochs are of.
        general: The other one.
        share: Of its sequences among all.
        seed: Source of its order.
    """

    def __init__(self, own: EpochDataset, general: EpochDataset, share: float, seed: int) -> None:
        self.own = own
        self.size = len(general)
        self.replayed = max(1, round(len(own) * share / (1.0 - share)))
        # Two, as an epoch of the own corpus may have the end of one of its epochs and the beginning of the next, and
        # each keeps one plan.
        self.general = (general, copy(general))
        self.order = EpochBatchSampler(general, 1, seed, shuffle=True).order
        self._orders: dict[int, numpy.ndarray] = {}

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.own) + self.replayed

    def population(self, epoch: int) -> int:
        """Samples that an epoch is drawn from, the general corpus's last; it is planned for both."""
        for cycle in sorted({int(cycle) for cycle in self.places(epoch, numpy.array([0, self.replayed - 1]))[0]}):
            self.general[cycle % 2].population(cycle)
        return self.own.population(epoch) + self.replayed

    def places(self, epoch: int, numbers: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Where the general corpus's sequences of an epoch stand: which of its epochs, and which place in its order.

        Args:
            epoch: Of the own corpus.
            numbers: (N,) which of them, from 0.
        """
        if self.replayed > self.size:
            # It comes several times in each epoch.
            return numpy.full_like(numbers, epoch), numbers % self.size
        return numpy.divmod(epoch * self.replayed + numbers, self.size)

    def order_of(self, cycle: int) -> numpy.ndarray:
        """The order of one of the general corpus's epochs; the last two are kept."""
        if cycle not in self._orders:
            for earlier in sorted(self._orders)[:-1]:
                del self._orders[earlier]
            self._orders[cycle] = self.order(cycle)
        return self._orders[cycle]

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """A batch of (epoch, index) keys, in their order."""
        epoch = keys[0][0]
        indices = numpy.array([index for _, index in keys])
        first = self.own.population(epoch)
        rows = [numpy.flatnonzero(indices < first)]
        parts = [self.own.__getitems__([(epoch, int(index)) for index in indices[rows[0]]])] if len(rows[0]) else []
        others = numpy.flatnonzero(indices >= first)
        cycles, places = self.places(epoch, indices[others] - first)
        for cycle in sorted(set(cycles.tolist())):
            here = cycles == cycle
            chosen = self.order_of(cycle)[places[here]]
            parts.append(self.general[cycle % 2].__getitems__([(cycle, int(index)) for index in chosen]))
            rows.append(others[here])
        position = torch.from_numpy(numpy.argsort(numpy.concatenate(rows)))
        batch = {
            name: torch.cat([part[name] for part in parts])[position]
            if isinstance(value, torch.Tensor)
            else any(part[name] for part in parts)
            for name, value in parts[0].items()
        }
        return batch | {"sample_id": torch.from_numpy(indices)}


class ReplayedDataset:
    """Evaluation batches of the general corpus, marked as such.

    Args:
        dataset: Its validation sequences.
    """

    def __init__(self, dataset: EpochDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.dataset)

    def population(self, epoch: int) -> int:
        """Number of sequences."""
        return self.dataset.population(epoch)

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """A batch."""
        return {**self.dataset.__getitems__(keys), REPLAYED: True}
