"""Time several contestants fairly in one process: in turn, round by round, median over rounds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Contestant:
    """One way to do a training step.

    Attributes:
        name: For the table.
        step: Does one whole training step, and waits for the device.
        seconds: Seconds a step, one value a round, as a process is that does nothing about its memory.
        kept_seconds: The same with `lit_pretrain.memory.keep_memory`, as `fit` sets it.
    """

    name: str
    step: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    kept_seconds: list[float] = field(default_factory=list)


def ratio(slower: list[float], faster: list[float]) -> float:
    """How many times faster the second is: the median of the rounds' own ratios, which a drifting machine cancels."""
    return statistics.median(one / other for one, other in zip(slower, faster, strict=True))


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
