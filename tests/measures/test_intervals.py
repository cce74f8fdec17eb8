"""Statistics of few numbers, by hand."""

import math

import numpy
import pytest

from lit_pretrain.measures.intervals import Mean, PowerLaw, crossing, fit_power_law, labels_saved, mean_of


def test_a_mean_has_students_interval():
    mean = mean_of([0.5, 0.6, 0.7])
    # Deviation 0.1, and 4.3027 is the table's t of 2 degrees of freedom.
    assert mean.value == pytest.approx(0.6) and mean.count == 3
    assert mean.half_width == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert mean.low == pytest.approx(0.6 - mean.half_width) and mean.high == pytest.approx(0.6 + mean.half_width)
    one = mean_of([0.5])
    assert (one.value, one.low, one.high, one.count) == (0.5, None, None, 1)


def test_a_curve_is_crossed_linearly_in_log_labels():
    labels, heights = [10, 100, 1000], [0.2, 0.4, 0.3]
    assert crossing(labels, heights, 0.3) == pytest.approx(10 * math.sqrt(10))
    assert crossing(labels, heights, 0.2) == 10 and crossing(labels, heights, 0.4) == pytest.approx(100)
    # Beyond the ends nothing is known; the fall at the end is noise.
    assert crossing(labels, heights, 0.41) == math.inf and crossing(labels, heights, 0.1) == 0.0


def test_labels_saved_by_hand():
    def plain(value):
        return Mean(value, None, None, 1)

    reference = [(10, plain(0.2)), (100, plain(0.4)), (1000, plain(0.6))]
    saved = labels_saved(10, plain(0.5), reference)
    assert saved.value == pytest.approx(10**2.5 / 10) and str(saved) == "31.6" and saved.low is None
    assert str(labels_saved(10, plain(0.7), reference)) == "more than 100"
    assert str(labels_saved(100, plain(0.1), reference)) == "less than 0.1"
    # A loss: the same upside down.
    falling = [(number, plain(1 - mean.value)) for number, mean in reference]
    assert labels_saved(10, plain(0.5), falling, higher_is_better=False).value == pytest.approx(10**2.5 / 10)


def test_labels_saved_has_an_interval_that_knows_its_ends():
    generator = numpy.random.default_rng(1)
    reference = [
        (number, mean_of(0.2 * math.log10(number) + generator.normal(0, 0.01, 5))) for number in (10, 100, 1000)
    ]
    saved = labels_saved(10, mean_of(0.4 + generator.normal(0, 0.01, 5)), reference)
    assert 4 < saved.low < saved.value < saved.high < 25 and saved.low < 10 < saved.high
    highest = labels_saved(100, mean_of(0.59 + generator.normal(0, 0.02, 5)), reference)
    assert highest.high == math.inf and highest.low < 10


def test_a_known_power_law_is_found_again():
    sizes = numpy.geomspace(1e4, 1e8, 9)
    law = fit_power_law(sizes, 1.7 + 40 * sizes**-0.3)
    assert (law.floor, law.factor, law.exponent) == pytest.approx((1.7, 40, 0.3), rel=1e-3)
    assert law.half_width < 1e-3 and law(1e6) == pytest.approx(1.7 + 40 * 1e6**-0.3)
    noise = numpy.random.default_rng(0).normal(0, 0.01, 9)
    noisy = fit_power_law(sizes, 1.7 + 40 * sizes**-0.3 + noise)
    assert 0 < noisy.half_width < 0.2 and abs(noisy.exponent - 0.3) < noisy.half_width


def test_too_little_for_a_power_law_is_said():
    assert "at least 4 different sizes; here are 3" in fit_power_law([1, 2, 4, 4.01], [3, 2, 1.5, 1.5])
    assert "does not fall" in fit_power_law([1, 2, 4, 8], [1, 2, 3, 4])
    assert isinstance(fit_power_law([1, 2, 4, 8], [4, 3, 2.5, 2.25]), PowerLaw)


def test_a_law_that_the_points_do_not_decide_on_is_called_so():
    sizes = numpy.geomspace(1e4, 1e6, 5)
    noisy = fit_power_law(sizes, 4.0 + numpy.array([0.02, -0.01, 0.015, -0.02, -0.012]))
    assert isinstance(noisy, PowerLaw) and not noisy.determined and str(noisy).startswith("undetermined (exponent ")
    clear = fit_power_law(sizes, 1.7 + 40 * sizes**-0.3)
    assert clear.determined and str(clear).startswith("1.7 + 40 x^-0.3 (exponent 0.3 +- ")
