"""Rows of figures computed by hand."""

import pytest

from lit_pretrain.commands.benchmarks.contest import Contestant, Race
from lit_pretrain.commands.benchmarks.tables import Column, rows_of, table_of


def timed(name, seconds, kept_seconds):
    return Contestant(name, print, seconds, kept_seconds)


def test_ratios_are_to_ours_compiled_and_to_ours_alike():
    race = Race(
        "size",
        "tiny",
        [
            timed("ours, eager", [4.0, 5.0, 6.0], [2.0, 2.0, 2.0]),
            timed("ours, compiled", [3.0, 3.0, 3.0], [1.0, 1.0, 2.0]),
            timed("peer, eager", [8.0, 8.0, 8.0], [6.0, 6.0, 8.0]),
            timed("peer, compiled", [7.0, 7.0, 7.0], [5.0, 5.0, 6.0]),
        ],
        "tokens",
        amount=12,
        flops=6e12,
    )
    rows = rows_of(race, "32-true", peak=1e13)
    # Ours keeps its memory, the peer does not, and ours compiled takes 1 second then.
    assert [row["ours_is_faster_by"] for row in rows] == [2.0, 1.0, 8.0, 7.0]
    # Medians of the rounds' own ratios: 6/1, 6/1, 8/2.
    assert [row["ours_is_faster_by_with_memory_kept_for_all"] for row in rows] == [2.0, 1.0, 6.0, 5.0]
    assert [row["ours_is_faster_by_with_memory_kept_and_compiled_alike"] for row in rows] == [1.0, 1.0, 3.0, 5.0]
    assert [row["milliseconds_per_step"] for row in rows] == [2000, 1000, 8000, 7000]
    assert [row["tokens_per_second"] for row in rows] == pytest.approx([6, 12, 1.5, 12 / 7])
    assert [row["needed_teraflops"] for row in rows] == pytest.approx([3, 6, 0.75, 6 / 7])
    assert rows[2]["share_of_peak"] == pytest.approx(0.075)
    assert {row["size"] for row in rows} == {"tiny"}


def test_without_operations_nothing_is_said_of_the_peak():
    race = Race("input", "all", [timed("ours, 1 thread", [2.0], [1.0])], "pictures", amount=4)
    (row,) = rows_of(race, "32-true", peak=1.0)
    assert row["pictures_per_second"] == 4 and "share_of_peak" not in row


def test_a_table_has_the_figures_in_their_units():
    table = table_of(
        "Speeds", ["name"], [Column("GFLOP/s", "teraflops", "{:.1f}", 1e3)], [{"name": "a", "teraflops": 2}]
    )
    assert [list(column.cells) for column in table.columns] == [["a"], ["2000.0"]]
