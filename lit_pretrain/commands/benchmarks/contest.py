"""Time several contestants fairly in one process: in turn, round by round, median over rounds."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lit_pretrain.memory import keep_memory


@dataclass
class Contestant:
    """One way to do a piece of work, such as a training step.

    Attributes:
        name: For the table: whose, a comma, and in which manner.
        step: Does the whole work once, and waits for the device.
        seconds: Seconds a step, one value a round, as a process is that does nothing about its memory.
        kept_seconds: The same with `lit_pretrain.memory.keep_memory`, as `fit` sets it.
    """

    name: str
    step: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    kept_seconds: list[float] = field(default_factory=list)

    @property
    def timed(self) -> list[float]:
        """Ours is timed as `fit` runs it, a peer as its users do."""
        return self.kept_seconds if self.name.startswith("ours") else self.seconds


@dataclass
class Race:
    """Contestants that do the same work.

    Attributes:
        kind: What tells races apart ("size"), as the table and the rows call it.
        name: Which one this is ("tiny").
        contestants: Ours first.
        unit: What is worked off ("tokens").
        amount: How many of it a step works off.
        flops: Floating-point operations that a step needs; 0 if they say nothing.
        threads: Threads of the processor that may work; null for all.
    """

    kind: str
    name: str
    contestants: list[Contestant]
    unit: str
    amount: float
    flops: float = 0.0
    threads: int | None = None

    @property
    def ours(self) -> Contestant:
        """What the others are measured by: ours, compiled if that takes part."""
        return next(
            (contestant for contestant in self.contestants if contestant.name == "ours, compiled"), self.contestants[0]
        )

    def ours_like(self, contestant: Contestant) -> Contestant:
        """Ours in the same manner as another."""
        name = f"ours, {contestant.name.partition(', ')[2]}"
        return next(contestant for contestant in self.contestants if contestant.name == name)


def ratio(slower: list[float], faster: list[float]) -> float:
    """How many times faster the second is: the median of the rounds' own ratios, which a drifting machine cancels."""
    return statistics.median(slow / fast for slow, fast in zip(slower, faster, strict=True))


def hold_all(races: Sequence[Race], rounds: int, seconds: float) -> None:
    """Hold every race without kept memory, then again with it; this process keeps its memory from then on."""
    # It cannot be undone, so all are measured without it first.
    for kept in (False, True):
        if kept:
            keep_memory()
        for race in races:
            with limited_threads(race.threads):
                hold(race.contestants, rounds, seconds, kept)


def hold(contestants: list[Contestant], rounds: int, seconds: float, kept: bool, warm_up_steps: int = 3) -> None:
    """Warm every contestant up, then time each once a round for about `seconds`, at least one step.

    Args:
        contestants: Who takes part.
        rounds: How often.
        seconds: How long at a time.
        kept: Whether this process keeps its memory by now.
        warm_up_steps: Steps before the first round.
    """
    for contestant in contestants:
        for _ in range(warm_up_steps):
            contestant.step()
    for _ in range(rounds):
        for contestant in contestants:
            steps, start = 0, time.perf_counter()
            while steps == 0 or time.perf_counter() - start < seconds:
                contestant.step()
                steps += 1
            measured = contestant.kept_seconds if kept else contestant.seconds
            measured.append((time.perf_counter() - start) / steps)


@contextlib.contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Let so many threads work for a while; null changes nothing."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
