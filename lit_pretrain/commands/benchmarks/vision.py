"""Pretraining on pictures: ours beside timm and torchvision, and the objectives beside each other.

The step is that of rotation prediction by all four angles. timm's model is given the shape and the weights of ours, and
sees the same pictures in the same precision; both use fused AdamW and clip at norm 1. Augmentation is no part of it.
Ours counts the accuracy of each angle too, which timm is spared.
"""

import argparse
import contextlib
from pathlib import Path

from lit_pretrain.commands.benchmarks.contest import Race, hold_all
from lit_pretrain.commands.benchmarks.objective_costs import COLUMNS as COST_COLUMNS
from lit_pretrain.commands.benchmarks.objective_costs import measure_objectives
from lit_pretrain.commands.benchmarks.picture_input import COLUMNS as INPUT_COLUMNS
from lit_pretrain.commands.benchmarks.picture_input import picture_input
from lit_pretrain.commands.benchmarks.setting import Setting
from lit_pretrain.commands.benchmarks.step import our_step, peer_step
from lit_pretrain.commands.benchmarks.tables import (
    MILLISECONDS,
    RATIOS,
    RATIOS_EXPLAINED,
    SPEED,
    Column,
    Row,
    rows_of,
    table_of,
    table_of_fits,
)
from lit_pretrain.commands.benchmarks.vit_step import Shape, our_module, random_pictures, timm_loss
from lit_pretrain.commands.benchmarks.whole_fit import measure_fit
from lit_pretrain.data import ImageDataModule
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.modules import VisionPretraining

PARTS = ("step", "input", "objectives")
STEP_COLUMNS = (MILLISECONDS, Column("pictures/s", "pictures_per_second"), *SPEED, *RATIOS)


def line_up_step(arguments: argparse.Namespace, shape: Shape, setting: Setting) -> Race:
    """The contestants of the training step of one shape."""
    batch = random_pictures(shape, arguments.batch_size, setting.device)
    manners = [False] if arguments.no_compile else [False, True]
    modules = [our_module(shape, compiled) for compiled in manners]
    contestants = [our_step(module, batch, setting.dtype) for module in modules]
    for compiled in manners:
        model, loss = timm_loss(modules[0], batch, compiled)
        contestants.append(peer_step("timm", model, loss, compiled, setting.dtype))
    cost = modules[0].step_cost(batch)
    return Race("shape", shape.name, contestants, "pictures", cost["samples"], cost["flops"])


def fit_of(arguments: argparse.Namespace, shape: Shape) -> tuple[VisionPretraining, ImageDataModule]:
    """A training by rotation, with cropping and flipping."""
    data = ImageDataModule(path=arguments.images, stored_size=shape.image_size, batch_size=arguments.batch_size)
    return our_module(shape, compiled=not arguments.no_compile), data


def fit_row(arguments: argparse.Namespace, shape: Shape, setting: Setting) -> Row:
    """A whole fit of one shape beside its bare step."""
    return {"shape": shape.name} | measure_fit(
        arguments,
        setting,
        lambda: fit_of(arguments, shape),
        lambda batch: our_step(our_module(shape, compiled=not arguments.no_compile), batch, setting.dtype),
        arguments.batch_size,
        "pictures",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure what was asked for and print the tables."""
    for part in arguments.parts:
        if part not in PARTS:
            raise UserError(f"There is no part '{part}'{nearest(part, PARTS)}: give some of {', '.join(PARTS)}.")
    shapes = [Shape.of(text) for text in arguments.shapes]
    if arguments.images is not None and not Path(arguments.images).exists():
        raise UserError(f"There is no file or directory {arguments.images}: check --images.")
    setting = Setting.of(arguments)
    steps = [line_up_step(arguments, shape, setting) for shape in shapes] if "step" in arguments.parts else []
    rows = []
    with contextlib.ExitStack() as stack:
        inputs = [stack.enter_context(picture_input(arguments))] if "input" in arguments.parts else []
        hold_all([*steps, *(measured_input.race for measured_input in inputs)], arguments.rounds, arguments.seconds)
    if steps:
        rows += [row for race in steps for row in rows_of(race, setting.precision, setting.peak)]
        title = (
            f"Training steps of rotation, {arguments.batch_size} pictures turned four ways, {setting.precision} "
            f"(peak {setting.peak / 1e9:,.0f} GFLOP/s)"
        )
        setting.console.print(table_of(title, ["shape", "contestant"], STEP_COLUMNS, rows))
        setting.console.print(RATIOS_EXPLAINED.format(peer="timm"))
    for measured_input in inputs:
        setting.console.print(
            table_of(measured_input.title, ["input", "contestant"], INPUT_COLUMNS, measured_input.rows)
        )
        setting.console.print(measured_input.remark)
        rows += measured_input.rows
    if "objectives" in arguments.parts:
        costs = measure_objectives(shapes, arguments.batch_size, setting, arguments.rounds, arguments.seconds)
        title = f"Steps of each objective, {arguments.batch_size} pictures, eager, {setting.precision}"
        setting.console.print(table_of(title, ["shape", "objective"], COST_COLUMNS, costs))
        setting.console.print("A pass is a whole picture's tokens through the encoder; times are beside rotation's.")
        rows += costs
    if arguments.fit:
        fits = [fit_row(arguments, shape, setting) for shape in shapes]
        setting.console.print(table_of_fits(arguments.images or "the bundled emoji", "shape", "pictures", fits))
        rows += fits
    setting.write(rows)
    return 0
