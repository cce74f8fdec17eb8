"""Which values of metrics a run in MLflow's store has already, so that no step is there twice.

A training that was killed goes on from its last checkpoint and logs again what it had logged since. MLflow keeps
whatever is sent, and its charts would have two points a step.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

# A metric's name, value, time and step.
Row = list[Any]
# Measured by a clock, so another value of the same step says nothing new.
TIMED = "throughput/"


class MetricPoints:
    """What a run has of each metric.

    Args:
        latest: Name -> last value, its step, its time.
        history: Gives a metric's values and times by their steps; asked once for each that comes again, and may raise.
    """

    def __init__(
        self,
        latest: Mapping[str, tuple[float, int, int]],
        history: Callable[[str], dict[int, tuple[float, int]]],
    ) -> None:
        self._history = history
        # Step -> value and time: the last of each metric, and all of those that are behind what the store has.
        self._latest = {name: (step, (value, time)) for name, (value, step, time) in latest.items()}
        self._known: dict[str, dict[int, tuple[float, int]]] = {}

    def new(self, rows: list[Row]) -> list[Row]:
        """Those of the rows that the store does not have, each once."""
        found: list[Row] = []
        taken: dict[tuple[str, int], tuple[float, int]] = {}
        for row in rows:
            name, value, time, step = row
            known = taken.get((name, step), self._point(name, step))
            if known is None or not (name.startswith(TIMED) or is_same(known[0], value)):
                taken[name, step] = value, time
                found.append(row)
        return found

    def add(self, rows: list[Row]) -> None:
        """The store has these rows too."""
        for name, value, time, step in rows:
            if name not in self._latest or step >= self._latest[name][0]:
                self._latest[name] = step, (value, time)
                self._known.pop(name, None)
            elif name in self._known:
                self._known[name][step] = value, time

    def with_times(self, rows: list[Row]) -> list[Row]:
        """Rows with the times that the store has of them, by which it sees that they are the same."""
        found = []
        for name, value, time, step, *rest in rows:
            known = self._point(name, step)
            found.append([name, value, known[1] if known and is_same(known[0], value) else time, step, *rest])
        return found

    def _point(self, name: str, step: int) -> tuple[float, int] | None:
        """What the store has of a step; null for nothing."""
        if name not in self._latest or step > self._latest[name][0]:
            return None
        last, point = self._latest[name]
        if step == last:
            return point
        if name not in self._known:
            self._known[name] = self._history(name)
        return self._known[name].get(step)


def is_same(one: float, other: float) -> bool:
    """Whether two values are equal, or neither is a number."""
    return one == other or math.isnan(one) and math.isnan(other)
