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
        seconds: Seconds a step, one value a round.
    """

    name: str
    step: Callable[[], object]
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds of a step over the rounds."""
        return statistics.median(self.seconds)


def ratio(slower: Contestant, faster: Contestant) -> float:
    """How many times faster the second is: the median of the rounds' own ratios, which a drifting machine cancels."""
    return statistics.median(one / other for one, other in zip(slower.seconds, faster.seconds, strict=True))


def hold(contestants: list[Contestant], rounds: int, seconds: float, warm_up_steps: int = 3) -> None:
    """Warm every contestant up, then time each once a round for about `seconds`, at least one step."""
    for contestant in contestants:
        for _ in range(warm_up_steps):
            contestant.step()
    for _ in range(rounds):
        for contestant in contestants:
            steps, start = 0, time.perf_counter()
            while steps == 0 or time.perf_counter() - start < seconds:
                contestant.step()
                steps += 1
            contestant.seconds.append((time.perf_counter() - start) / steps)
