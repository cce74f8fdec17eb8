"""Label efficiency: how good is a pretrained encoder after few labels, and how many does it save?

The protocol of Howard & Ruder (2018, arXiv:1801.06146, figure 3): the same fine-tuning from pretrained weights and from
scratch, with fewer and fewer labels. Each encoder may choose its own learning rate, on the validation data, so that one
from scratch is not measured with another's.
"""

import math
import statistics
from dataclasses import dataclass, field

from lit_pretrain.measures.intervals import Factor, Mean, labels_saved, mean_of
from lit_pretrain.required import required
from lit_pretrain.studies.cells import Cell, CellStore, Outcome
from lit_pretrain.studies.plan import Prepared, make_cell, prepare_all
from lit_pretrain.studies.scheduler import Runner
from lit_pretrain.studies.settings import LabelEfficiencySettings
from lit_pretrain.tracking.best import direction

RATE_KEY = "model.init_args.optimizer.learning_rate"
BUDGET_KEY = "data.init_args.label_budget"


@dataclass
class Group:
    """An encoder with a number of labels, over the seeds.

    Attributes:
        encoder: Its name.
        budget: The labels as the study's file gives them, null for all.
        labels: How many those are; null until a cell has finished.
        rate: The learning rate that was chosen; null for the config's.
        tried: Rate -> what it gave on the validation data, null where it did not finish.
        cells: The cells of all seeds, with what came of them.
        mean: Of the metric over the finished ones; null if there are none.
        steps_to_target: Median of the steps at which the target is reached, of those that reach it.
        seconds_to_target: The same in seconds of training and validation.
        reached: How many reach the target.
        saved: How many times the labels the reference needs.
    """

    encoder: str
    budget: int | float | None
    labels: int | None = None
    rate: float | None = None
    tried: dict[float, float | None] = field(default_factory=dict)
    cells: list[tuple[Cell, Outcome | None]] = field(default_factory=list)
    mean: Mean | None = None
    steps_to_target: float | None = None
    seconds_to_target: float | None = None
    reached: int | None = None
    saved: Factor | None = None

    @property
    def at_edge(self) -> str:
        """Which end of the list was chosen, "lowest" or "highest", beyond which a better one may lie; else empty."""
        if len(self.tried) < 2 or self.rate not in (min(self.tried), max(self.tried)):
            return ""
        return "lowest" if self.rate == min(self.tried) else "highest"


class LabelEfficiency:
    """The study.

    Args:
        settings: What was asked for.
    """

    def __init__(self, settings: LabelEfficiencySettings) -> None:
        self.settings = settings
        variants = {name: overrides or {} for name, overrides in settings.encoders.items()}
        self.prepared: dict[str, Prepared] = prepare_all(settings, variants)
        self.higher_is_better = direction(settings.metric) != "min"
        # Makes every kind of cell once, so that a key that is not there is said now.
        self.planned = self.cells_to_search() or self.cells_of_seeds(None)

    # -- cells

    def cell(self, encoder: str, place: int, rate: float | None, seed: int) -> Cell:
        """The training of an encoder at a budget's place in the list."""
        budget = self.settings.budgets[place]
        changes = {BUDGET_KEY: budget} | ({RATE_KEY: rate} if rate is not None else {})
        budget_name = "all" if budget is None else budget
        labels = {"encoder": encoder, "labels": budget_name, "learning_rate": rate}
        steps = self.settings.steps_of(place)
        return make_cell(self.settings, self.prepared[encoder], labels, seed, steps, changes)

    def pairs(self) -> list[tuple[str, int]]:
        """Every encoder at every budget, by budget, so that an early end leaves whole comparisons."""
        return [(encoder, place) for place in range(len(self.settings.budgets)) for encoder in self.settings.encoders]

    def cells_to_search(self) -> list[Cell]:
        """The trainings by which learning rates are chosen: the first seed's, where there is a choice."""
        settings, cells = self.settings, []
        for encoder, place in self.pairs():
            rates = settings.rates_of(encoder)
            if len(rates) > 1:
                cells += [self.cell(encoder, place, rate, settings.seeds[0]) for rate in rates]
        return cells

    def cells_of_seeds(self, store: CellStore | None) -> list[Cell]:
        """The trainings that are compared; those whose rate is not chosen yet are left out."""
        cells = []
        for encoder, place in self.pairs():
            rate, tried = self.choose(encoder, place, store)
            if rate is not None or len(tried) < 2:
                cells += [self.cell(encoder, place, rate, seed) for seed in self.settings.seeds]
        return cells

    def choose(
        self, encoder: str, place: int, store: CellStore | None
    ) -> tuple[float | None, dict[float, float | None]]:
        """The rate that is best on the validation data, and what each gave; null while none has finished."""
        rates = self.settings.rates_of(encoder)
        if len(rates) < 2:
            return rates[0], {}
        tried: dict[float, float | None] = {}
        for rate in rates:
            outcome = store.outcome(self.cell(encoder, place, rate, self.settings.seeds[0])) if store else None
            value = math.nan
            if outcome is not None and outcome.status == "finished":
                value = outcome.metrics[self.settings.validation_metric]
            # Not a number is neither better nor worse than any other.
            tried[required(rate)] = value if math.isfinite(value) else None
        values = {rate: value for rate, value in tried.items() if value is not None}
        if not values:
            return None, tried
        best = max if self.higher_is_better else min
        return best(values, key=values.__getitem__), tried

    @property
    def total(self) -> int:
        """Cells of the whole study."""
        chosen = {
            encoder: len(self.settings.rates_of(encoder)) + len(self.settings.seeds) - 1
            for encoder in self.settings.encoders
        }
        return sum(chosen.values()) * len(self.settings.budgets)

    # -- doing

    def rehearsals(self) -> list[Cell]:
        """What is rehearsed before the study: each encoder with the fewest labels."""
        budgets = self.settings.budgets
        # Shares and numbers do not compare; the data module says which is too small.
        fewest = min(range(len(budgets)), key=lambda place: budgets[place] or float("inf"))
        rates = {encoder: self.settings.rates_of(encoder)[0] for encoder in self.settings.encoders}
        return [self.cell(encoder, fewest, rate, self.settings.seeds[0]) for encoder, rate in rates.items()]

    def run(self, runner: Runner) -> None:
        """Choose the learning rates, train all."""
        runner.total = self.total
        search = self.cells_to_search()
        runner.run(search)
        searched = {cell.hash for cell in search}
        runner.run([cell for cell in self.cells_of_seeds(runner.store) if cell.hash not in searched])

    # -- telling

    def groups(self, store: CellStore) -> list[Group]:
        """What has come of it so far."""
        groups = []
        for encoder, place in self.pairs():
            group = Group(encoder, self.settings.budgets[place])
            group.rate, group.tried = self.choose(encoder, place, store)
            if group.rate is None and group.tried:
                cells = [self.cell(encoder, place, rate, self.settings.seeds[0]) for rate in group.tried]
            else:
                cells = [self.cell(encoder, place, group.rate, seed) for seed in self.settings.seeds]
            group.cells = [(cell, store.outcome(cell)) for cell in cells]
            self.summarise(group)
            groups.append(group)
        reference = self.settings.resolved_reference
        curve = [
            (group.labels, group.mean) for group in groups if group.encoder == reference and group.mean and group.labels
        ]
        curve.sort(key=lambda point: point[0])
        for group in groups:
            if group.encoder != reference and group.mean and group.labels and curve:
                group.saved = labels_saved(group.labels, group.mean, curve, self.higher_is_better)
        return groups

    def summarise(self, group: Group) -> None:
        """Fill in what follows from a group's finished cells."""
        finished = [(cell, outcome) for cell, outcome in group.cells if outcome and outcome.status == "finished"]
        if not finished:
            return
        group.mean = mean_of([outcome.metrics[self.settings.metric] for _, outcome in finished])
        group.labels = labels_of(group.budget, finished[0][1])
        if self.settings.target is None:
            return
        times = []
        for cell, outcome in finished:
            step = first_step(outcome.history, self.settings.target, self.higher_is_better)
            if step is not None:
                seconds = outcome.seconds * step / cell.steps if outcome.seconds and cell.steps > 0 else None
                times.append((step, seconds))
        group.reached = len(times)
        if times:
            group.steps_to_target = statistics.median(step for step, _ in times)
            known_seconds = [seconds for _, seconds in times if seconds is not None]
            group.seconds_to_target = statistics.median(known_seconds) if known_seconds else None


def labels_of(budget: int | float | None, outcome: Outcome) -> int | None:
    """How many labels a training had: what was asked for, or what the data says of its training part."""
    if isinstance(budget, int):
        return budget
    for key, value in outcome.parameters.items():
        if key.startswith("data_facts.training_") and value.isdecimal():
            return int(value)
    return None


def first_step(history: list[tuple[int, float]], target: float, higher_is_better: bool) -> int | None:
    """The first step at which a metric is as good as the target, or null."""
    good = (step for step, value in history if (value >= target if higher_is_better else value <= target))
    return next(good, None)
