"""Scaling: what width, depth and data buy under one budget, with a power law through it.

After Kaplan et al. (2020, arXiv:2001.08361), who count the parameters of the blocks alone, and Hoffmann et al. (2022,
arXiv:2203.15556), who compare under equal operations.
"""

from dataclasses import dataclass, field
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.measures.intervals import Mean, PowerLaw, fit_power_law, mean_of
from lit_pretrain.required import required
from lit_pretrain.studies.cells import Cell, CellStore, Outcome
from lit_pretrain.studies.plan import Prepared, make_cell, prepare_all
from lit_pretrain.studies.scheduler import Runner
from lit_pretrain.studies.settings import ScalingSettings

# What leaves training data out and the validation data alone, by the data modules that have it.
SIZE_KEYS = ("document_budget", "label_budget")


@dataclass
class Point:
    """A shape with an amount of data, over the seeds.

    Attributes:
        width: Of the Transformer.
        depth: Of the Transformer.
        size: Training data as the study's file gives it, null for all.
        data: Training sequences or pictures; null until a cell has finished.
        parameters: All that is trained.
        transformer_parameters: Those of the blocks.
        steps: Optimiser steps.
        flops: Floating-point operations of the training.
        cells: The cells of all seeds, with what came of them.
        mean: Of the metric over the finished ones; null if there are none.
    """

    width: int
    depth: int
    size: int | float | None
    data: int | None
    parameters: int
    transformer_parameters: int
    steps: int
    flops: float
    cells: list[tuple[Cell, Outcome | None]] = field(default_factory=list)
    mean: Mean | None = None


@dataclass(frozen=True)
class Law:
    """A power law through some points, or why there is none.

    Attributes:
        over: Attribute of the points that the loss is a function of.
        among: Which points, in words.
        fit: The law, or a sentence.
    """

    over: str
    among: str
    fit: PowerLaw | str


class Scaling:
    """The study.

    Args:
        settings: What was asked for.
    """

    def __init__(self, settings: ScalingSettings) -> None:
        self.settings = settings
        self.shapes = [(width, depth) for width in settings.widths for depth in settings.depths]
        variants = {
            f"width {width}, depth {depth}": {
                "model.encoder.transformer.width": width,
                "model.encoder.transformer.depth": depth,
            }
            for width, depth in self.shapes
        }
        prepared = list(prepare_all(settings, variants).values())
        self.prepared: dict[tuple[int, int], Prepared] = dict(zip(self.shapes, prepared, strict=True))
        self.size_key = self.find_size_key(prepared[0])
        for config, _ in prepared:
            self.check_shape(config)

    def find_size_key(self, prepared: Prepared) -> str | None:
        """The data module's setting for fewer training data, if it is needed."""
        data = prepared[0]["data"]
        if self.settings.sizes == [None]:
            return None
        for key in SIZE_KEYS:
            if key in data["init_args"]:
                return key
        kind = data["class_path"].rpartition(".")[2]
        raise UserError(
            f"{kind} has none of {', '.join(SIZE_KEYS)}, by which data_sizes are set: leave data_sizes out."
        )

    def check_shape(self, config: dict) -> None:
        """A named size would win over widths and depths."""
        size = config["model"]["init_args"]["encoder"]["init_args"].get("size")
        if size is not None:
            raise UserError(
                f"The config sets model.encoder.size to {size}, which wins over widths and depths: add "
                "model.encoder.size: null to the study's overrides."
            )

    # -- cells

    def cell(self, shape: tuple[int, int], size: int | float | None, seed: int, cost: dict[str, float] | None) -> Cell:
        """The training of a shape with an amount of data.

        Args:
            shape: Width and depth.
            size: Training data, null for all.
            seed: Of all its draws.
            cost: Of one step; null for a rehearsal, whose length does not matter.
        """
        changes = {f"data.init_args.{self.size_key}": size} if self.size_key else {}
        labels = {"width": shape[0], "depth": shape[1], "data": "all" if size is None else size}
        steps = 1 if cost is None else self.steps(cost)
        return make_cell(self.settings, self.prepared[shape], labels, seed, steps, changes)

    def steps(self, cost: dict[str, float]) -> int:
        """Steps that the budget allows at a step's cost."""
        ((kind, amount),) = self.settings.budget.items()
        if kind == "steps":
            return int(amount)
        if not cost.get(kind):
            raise UserError(f"The training does not count {kind}: give budget in one of {', '.join(cost) or 'steps'}.")
        return max(1, round(amount / cost[kind]))

    def rehearsals(self) -> list[Cell]:
        """A cell of one step for each shape, which are rehearsed before the study for their costs and sizes."""
        smallest = min(self.settings.sizes, key=lambda size: size or float("inf"))
        return [self.cell(shape, smallest, self.settings.seeds[0], None) for shape in self.shapes]

    def cells(self, facts: dict[tuple[int, int], dict]) -> list[Cell]:
        """All trainings, the small shapes first."""
        shapes = sorted(self.shapes, key=lambda shape: facts[shape]["parameters"])
        return [
            self.cell(shape, size, seed, facts[shape]["cost"])
            for seed in self.settings.seeds
            for size in self.settings.sizes
            for shape in shapes
        ]

    @property
    def total(self) -> int:
        """Cells of the whole study."""
        return len(self.shapes) * len(self.settings.sizes) * len(self.settings.seeds)

    # -- doing

    def measured(self, store: CellStore) -> dict[tuple[int, int], dict[str, Any]] | None:
        """Cost and sizes of each shape, as the rehearsals told; null if not all have been done."""
        found = {shape: store.rehearsal(cell) for shape, cell in zip(self.shapes, self.rehearsals(), strict=True)}
        facts = {shape: point for shape, point in found.items() if point is not None}
        return facts if len(facts) == len(found) else None

    def run(self, runner: Runner) -> None:
        """Train all cells; the shapes have been rehearsed."""
        cells = self.cells(required(self.measured(runner.store)))
        runner.total = self.total
        runner.run(cells)

    # -- telling

    def points(self, store: CellStore, facts: dict[tuple[int, int], dict]) -> list[Point]:
        """What has come of it so far."""
        points = []
        for size in self.settings.sizes:
            for shape in self.shapes:
                fact = facts[shape]
                cells = [self.cell(shape, size, seed, fact["cost"]) for seed in self.settings.seeds]
                outcomes = [(cell, store.outcome(cell)) for cell in cells]
                finished = [outcome for _, outcome in outcomes if outcome is not None and outcome.status == "finished"]
                steps = cells[0].steps
                points.append(
                    Point(
                        *shape,
                        size,
                        training_data(finished[0]) if finished else None,
                        fact["parameters"],
                        fact["transformer_parameters"],
                        steps,
                        steps * fact["cost"].get("flops", 0.0),
                        outcomes,
                        mean_of([point.metrics[self.settings.metric] for point in finished]) if finished else None,
                    )
                )
        return points

    def laws(self, points: list[Point]) -> list[Law]:
        """Power laws over parameters and operations with all the data, and over data with the largest shape."""
        done = [point for point in points if point.mean is not None]
        if not done:
            return []
        most = max(point.data or 0 for point in done)
        fullest = [point for point in done if (point.data or 0) == most]
        largest = max(point.parameters for point in done)
        by_data = [point for point in done if point.parameters == largest and point.data]
        metric = self.settings.metric
        laws = [law("transformer_parameters", "all shapes, most data", fullest, metric)]
        laws.append(law("flops", "all shapes, most data", fullest, metric))
        if len(self.settings.sizes) > 1:
            laws.append(law("data", "the largest shape", by_data, metric))
        return laws


def law(over: str, among: str, points: list[Point], metric: str) -> Law:
    """A law through some points, each seed's value for itself."""
    pairs = [
        (getattr(point, over), outcome.metrics[metric])
        for point in points
        for _, outcome in point.cells
        if getattr(point, over) and outcome is not None and outcome.status == "finished"
    ]
    return Law(over, among, fit_power_law([x for x, _ in pairs], [y for _, y in pairs]))


def training_data(outcome: Outcome) -> int | None:
    """Training sequences or pictures, as the data told."""
    for key, value in outcome.parameters.items():
        if key.startswith("data_facts.training_") and value.isdecimal():
            return int(value)
    return None
