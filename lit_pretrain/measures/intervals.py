"""What few numbers say: a mean with its interval, where a curve reaches a height, a power law."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy import optimize, stats

LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True)
class Mean:
    """A mean of some seeds.

    Attributes:
        value: The mean.
        half_width: Half of its interval by Student's t; null with a single value.
        deviation: The values' standard deviation; null with a single value.
        count: How many values.
    """

    value: float
    half_width: float | None
    deviation: float | None
    count: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.value - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.value + self.half_width


def mean_of(values: Sequence[float], level: float = LEVEL) -> Mean:
    """The mean of independent values and its interval.

    Args:
        values: At least one.
        level: Share of studies whose interval holds the true mean.
    """
    count = len(values)
    mean = float(numpy.mean(values))
    if count < 2:
        return Mean(mean, None, None, count)
    deviation = float(numpy.std(values, ddof=1))
    half = float(stats.t.ppf(0.5 + level / 2, count - 1)) * deviation / math.sqrt(count)
    return Mean(mean, half, deviation, count)


def crossing(labels: Sequence[float], heights: Sequence[float], target: float) -> float:
    """Labels at which a rising curve first reaches a height, linear in log labels.

    Args:
        labels: Rising numbers of labels.
        heights: The curve there; where noise lets it fall it is taken to stay level.
        target: The height.

    Returns:
        The labels; infinity if it is not reached, 0 if the curve begins higher.
    """
    rising = numpy.maximum.accumulate(numpy.asarray(heights, dtype=float))
    if target > rising[-1]:
        return math.inf
    after = int(numpy.argmax(rising >= target))
    if after == 0:
        return float(labels[0]) if rising[0] == target else 0.0
    share = (target - rising[after - 1]) / (rising[after] - rising[after - 1])
    low, high = math.log(labels[after - 1]), math.log(labels[after])
    return math.exp(low + share * (high - low))


@dataclass(frozen=True)
class Factor:
    """How many times the labels another encoder needs for the same.

    Attributes:
        value: The factor; infinity or 0 if it is beyond what was measured.
        low: Lower end of its interval; null where a mean has none.
        high: Upper end.
        most: The factor at the other's largest budget: it is more than this if `value` is infinite.
        least: The factor at the other's smallest budget: it is less than this if `value` is 0.
    """

    value: float
    low: float | None
    high: float | None
    most: float
    least: float

    def __str__(self) -> str:
        if self.value == math.inf:
            return f"more than {self.most:.3g}"
        return f"less than {self.least:.3g}" if self.value == 0 else f"{self.value:.3g}"


def labels_saved(
    labels: float, mean: Mean, reference: Sequence[tuple[float, Mean]], higher_is_better: bool = True
) -> Factor:
    """How many times the labels a reference needs to be as good.

    The interval comes from draws of all means, each from the t distribution of its own values.

    Args:
        labels: Labels that were used.
        mean: What they gave.
        reference: (labels, mean) of the reference, by rising labels.
        higher_is_better: Whether a larger value is the better one.
    """
    sign = 1.0 if higher_is_better else -1.0
    numbers = [number for number, _ in reference]
    value = crossing(numbers, [sign * value.value for _, value in reference], sign * mean.value) / labels
    low: float | None = None
    high: float | None = None
    if mean.count > 1 and all(value.count > 1 for _, value in reference):
        generator = numpy.random.default_rng(0)
        drawn = sign * draws(mean, generator)
        curves = numpy.stack([sign * draws(value, generator) for _, value in reference], axis=1)
        crossings = [crossing(numbers, curve, height) for curve, height in zip(curves, drawn, strict=True)]
        # Not interpolated: between a number and infinity there is nothing.
        ends = numpy.quantile(crossings, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
        low, high = float(ends[0]) / labels, float(ends[1]) / labels
    return Factor(value, low, high, numbers[-1] / labels, numbers[0] / labels)


def draws(mean: Mean, generator: numpy.random.Generator) -> numpy.ndarray:
    """Means (DRAWS,) that the values make likely."""
    assert mean.deviation is not None  # of several values
    scale = mean.deviation / math.sqrt(mean.count)
    return mean.value + scale * generator.standard_t(mean.count - 1, DRAWS)


@dataclass(frozen=True)
class PowerLaw:
    """loss = floor + factor * x ** -exponent.

    Attributes:
        floor: The loss without end.
        factor: Of the power.
        exponent: Of x.
        half_width: Half of the exponent's interval; infinite where the points do not decide on the numbers.
    """

    floor: float
    factor: float
    exponent: float
    half_width: float

    def __call__(self, x: numpy.ndarray | float) -> numpy.ndarray | float:
        """The loss at x."""
        return self.floor + self.factor * numpy.power(x, -self.exponent)

    @property
    def determined(self) -> bool:
        """Whether the points say which way the loss goes: the interval of the exponent lies above 0."""
        return self.half_width < self.exponent

    def __str__(self) -> str:
        exponent = f"exponent {self.exponent:.2g} +- {self.half_width:.2g}, {LEVEL:.0%}"
        if not self.determined:
            return f"undetermined ({exponent}): more sizes, further apart, or more seeds would tell"
        return f"{self.floor:.3g} + {self.factor:.3g} x^-{self.exponent:.3g} ({exponent})"


def fit_power_law(x: Sequence[float], losses: Sequence[float]) -> PowerLaw | str:
    """Fit a power law with a floor (Hestness et al. 2017, arXiv:1712.00409) by least squares.

    Args:
        x: Sizes, above 0.
        losses: At them.

    Returns:
        The law, or a sentence that says why there is none.
    """
    sizes, heights = numpy.asarray(x, dtype=float), numpy.asarray(losses, dtype=float)
    # Budgets of operations are met to a step, so what differs by a percent does not count as different.
    different = len(numpy.unique(numpy.round(50 * numpy.log(sizes))))
    if different < 4:
        return f"three numbers are fitted, which takes at least 4 different sizes; here are {different}"
    if numpy.corrcoef(numpy.log(sizes), heights)[0, 1] >= 0:
        return "the loss does not fall with the size"
    # Centred, so that factor and exponent are found apart.
    middle = math.exp(float(numpy.log(sizes).mean()))

    def law(at: numpy.ndarray, floor: float, height: float, exponent: float) -> numpy.ndarray:
        return floor + height * numpy.power(at / middle, -exponent)

    best = None
    for exponent in (0.05, 0.1, 0.3, 0.6, 1.0):
        # With the exponent fixed, the other two are a straight line.
        slope, floor = numpy.polyfit(numpy.power(sizes / middle, -exponent), heights, 1)
        guess = [max(floor, 0.0), max(slope, 1e-6), exponent]
        try:
            parameters, covariance = optimize.curve_fit(
                law, sizes, heights, p0=guess, bounds=([0, 0, 1e-4], [numpy.inf, numpy.inf, 10]), max_nfev=20_000
            )
        except (RuntimeError, ValueError):
            continue
        error = float(((law(sizes, *parameters) - heights) ** 2).sum())
        if best is None or error < best[0]:
            best = error, parameters, covariance
    if best is None or not numpy.isfinite(best[2]).all():
        return "undetermined, the least squares found no law that the points decide on"
    _, (floor, height, exponent), covariance = best
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(sizes) - 3) * math.sqrt(covariance[2, 2]))
    return PowerLaw(float(floor), float(height * middle**exponent), float(exponent), half)
