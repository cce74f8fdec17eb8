"""Which learning rate is chosen, and what is left to do, from outcomes that are known."""

import math
from pathlib import Path

import pytest

from lit_pretrain.studies.cells import Cell, CellStore, Outcome
from lit_pretrain.studies.label_efficiency import RATE_KEY, LabelEfficiency
from lit_pretrain.studies.scheduler import estimate
from lit_pretrain.studies.settings import LabelEfficiencySettings

CONFIG = {"trainer": {"max_steps": 10}, "data": {"init_args": {"label_budget": None}}}
CONFIG["model"] = {"init_args": {"optimizer": {"learning_rate": 0.1}}}


def study_of(**settings: object) -> LabelEfficiency:
    """A study whose config is given, rather than resolved by the command line."""
    study = object.__new__(LabelEfficiency)
    study.settings = LabelEfficiencySettings(
        name="x", fine_tuning="x.yaml", encoders={"scratch": None}, label_budgets=["all"], **settings
    )
    study.prepared, study.higher_is_better = {"scratch": (CONFIG, "")}, True
    return study


@pytest.mark.parametrize("order", [[0.01, 0.001, 0.1], [0.1, 0.001, 0.01]])
def test_a_rate_that_gives_no_number_is_never_chosen(tmp_path: Path, order: list[float]) -> None:
    """Wherever it stands in the list: a regression whose answers are constant has no correlation."""
    study = study_of(metric="test/pearson", learning_rates=order)
    store = CellStore(tmp_path, "test/pearson")
    store.directory.mkdir()
    given = {0.1: math.nan, 0.01: math.inf, 0.001: 0.7}
    for cell in study.cells_to_search():
        rate = cell.config["model"]["init_args"]["optimizer"]["learning_rate"]
        metrics = {"validation/pearson": given[rate], "test/pearson": 0.5}
        store.write(cell.hash, Outcome("finished", metrics=metrics))
    assert RATE_KEY.endswith("learning_rate")
    assert study.choose("scratch", 0, store) == (0.001, {0.1: None, 0.01: None, 0.001: 0.7})


def test_more_at_a_time_share_the_processors(tmp_path: Path) -> None:
    """Two cells that took 100 seconds side by side took 50 of the machine each."""
    cells = [Cell({"encoder": "scratch", "seed": seed}, CONFIG | {"seed_everything": seed}) for seed in range(4)]
    store = CellStore(tmp_path, "validation/accuracy")
    store.directory.mkdir()
    for cell in cells[:2]:
        store.write(cell.hash, Outcome("finished", metrics={"validation/accuracy": 0.5}, seconds=100.0, jobs=2))
    assert estimate(cells, store) == (2, pytest.approx(100.0))
