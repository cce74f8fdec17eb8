"""Probe a training on this machine for a minute: its steps, time, memory, disk, and whether it can be done at all."""

import argparse
import datetime
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pretrain.commands.output import check_writable, write_json
from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from lit_pretrain.commands.planning.estimate import Course, Estimate
    from lit_pretrain.commands.planning.probe import Measured
    from lit_pretrain.commands.planning.training import PlanCommandLine

# Where `__main__` puts the arguments that are fit's.
TRAINING_ARGUMENTS = "training"
# Least time of a probe, and share of a machine's memory above which a training is warned of.
LEAST_SECONDS, MUCH_MEMORY = 1.0, 0.9
NAMES = {"start": "start and preparation", "epochs": "begin of epochs", "validation": "validations"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options; all others are as for fit."""
    parser.usage = f"{parser.prog} --config FILE [--KEY VALUE ... as for fit] [--budget TIME | --steps N]"
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--budget", metavar="TIME", help="the time that there is, such as 90s, 30m or 2h")
    length.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default: as the config says)")
    parser.add_argument(
        "--seconds", type=float, default=45.0, metavar="S", help="about how long to probe, beside preparing data (45)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the plan to this file too")


def run(arguments: argparse.Namespace) -> int:
    """Probe and tell; 1 if the training cannot be done as it is.

    Raises:
        UserError: If the config is wrong, or a step does not fit into the memory.
    """
    began, wall = time.perf_counter(), time.time()
    if arguments.steps is not None and arguments.steps < 1:
        raise UserError(f"--steps is {arguments.steps}: give at least 1.")
    if not (math.isfinite(arguments.seconds) and arguments.seconds >= LEAST_SECONDS):
        raise UserError(f"--seconds is {arguments.seconds:g}: give at least {LEAST_SECONDS:g}.")
    if arguments.json:
        check_writable(Path(arguments.json))
    from lit_pretrain.commands.planning.estimate import as_dictionary, estimate, steps_of_clock, steps_within
    from lit_pretrain.commands.planning.training import probed
    from lit_pretrain.modules.clock import seconds_of

    budget = None if arguments.budget is None else seconds_of(arguments.budget, "--budget")
    line = probed(arguments.training, arguments.seconds, arguments.steps, budget is not None, began, wall)
    if not line.trainer.is_global_zero:
        # Another process of this training tells it.
        return 0
    measured, course = line.probe.measured, line.course
    steps = steps_of_clock(measured) if math.isinf(measured.steps) else int(measured.steps)
    within = None
    if budget is not None:
        within = steps_within(measured, course, budget)
        if line.has_no_end:
            steps = within
    found = estimate(measured, course, steps)
    troubles, notes = judged(line, found, steps, budget)
    show(line, found, steps, notes)
    for trouble in troubles:
        print(f"This training cannot be done as it is: {trouble}")
    if arguments.json:
        content = as_dictionary(found, measured) | {"impossible": troubles, "notes": notes}
        if within is not None:
            content["steps_within_budget"] = within
        write_json(arguments.json, content)
    return 1 if troubles else 0


def judged(line: "PlanCommandLine", found: "Estimate", steps: int, budget: float | None) -> tuple[list[str], list[str]]:
    """What makes a training impossible, and what is to be known beside it; a sentence each."""
    from lit_pretrain.commands.planning.estimate import is_rough, steps_within, warm_up_steps

    measured, course = line.probe.measured, line.course
    troubles, notes = [], []
    held, memory = measured.memory + measured.workers_memory, line.memory
    if held > memory:
        troubles.append(
            f"it holds {size(held)}, and {size(memory)} is all there is: lower data.batch_size, or set "
            "model.gradient_checkpointing."
        )
    elif held > MUCH_MEMORY * memory:
        notes.append(f"It holds {size(held)} of {size(memory)}: whatever else runs there may end it.")
    needed = checkpoints_bytes(measured, course)
    if needed > line.free_disk:
        troubles.append(
            f"its checkpoints take {size(needed)}, and {size(line.free_disk)} are free in {line.place}: free some, or "
            "set LIT_PRETRAIN_RUNS to another disk."
        )
    limits: list[tuple[str, float | None]] = [("--budget", budget), ("trainer.max_time", course.most_seconds)]
    for name, seconds in limits:
        if seconds is None:
            continue
        if found.seconds["start"] + sum(found.step.values()) >= seconds:
            troubles.append(
                f"{name} of {duration(seconds)} is over before the first step, {duration(found.seconds['start'])} are "
                "for starting: give it more."
            )
            continue
        most = steps_within(measured, course, seconds)
        warm_up = warm_up_steps(course, steps)
        if warm_up >= most and course.warm_up:
            troubles.append(
                f"{name} of {duration(seconds)} permits {most:,} steps, and the learning rate still rises for "
                f"{warm_up:,}: lower model.schedule.warm_up or the steps, or give it more time."
            )
        elif most < steps and not line.has_no_end:
            troubles.append(
                f"{name} of {duration(seconds)} permits {most:,} of {steps:,} steps: set trainer.max_steps to {most}, "
                "or model.schedule.budget to the time."
            )
    if is_rough(measured):
        notes.append("Hardly a step could be measured: take this as a guess, or probe longer by --seconds.")
    if measured.prepared_anew and measured.preparation > 1.0:
        notes.append(
            f"Preparing the data took {duration(measured.preparation)}; it is kept, and fit will find it, so it is "
            "not counted."
        )
    if line.is_stopped_early:
        notes.append("EarlyStopping may end it before.")
    return troubles, notes


def checkpoints_bytes(measured: "Measured", course: "Course") -> float:
    """What checkpoints take at most: those that are kept, and one that is being written beside them."""
    return measured.checkpoint_bytes * (course.kept + 1 if course.kept else 0)


def size(number: float) -> str:
    """Bytes as a person reads them."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= least:
            return f"{number / least:,.1f} {unit}"
    return f"{number / 1024:,.0f} KiB"


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 1.0:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 100.0:
        return f"{seconds:.3g} s"
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    if not days and not hours:
        return f"{rest // 60} min {rest % 60} s"
    return (f"{days} d " if days else "") + f"{hours} h {rest // 60} min"


def show(line: "PlanCommandLine", found: "Estimate", steps: int, notes: list[str]) -> None:
    """Print what is planned, and where the time goes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lit_pretrain.commands.planning.estimate import measured_steps

    measured, course = line.probe.measured, line.course
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, title=f"Plan of {line.config_name}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    done = f", {measured.steps_done:,} of {steps:,} are done" if measured.steps_done else ""
    table.add_row("steps", f"{found.steps:,}{done}")
    seen = f"{found.samples:,.0f} samples" + (f", {found.tokens:,.0f} tokens" if found.tokens else "")
    table.add_row("seen", f"{seen}, {found.epochs:,.3g} epochs")
    ends = datetime.datetime.now() + datetime.timedelta(seconds=found.total)
    table.add_row("time", f"{duration(found.total)}; begun now, it ends on {ends:%Y-%m-%d at %H:%M}")
    held = size(measured.memory) + (f", workers {size(measured.workers_memory)}" if measured.workers_memory else "")
    each = " for each process" if measured.processes > 1 else ""
    of_all = "" if math.isinf(line.memory) else f" of {size(line.memory)}"
    table.add_row("memory", f"{held}{of_all} ({measured.device}{each})")
    kept = f"{course.kept} checkpoints of {size(measured.checkpoint_bytes)}" if course.kept else "no checkpoints"
    table.add_row("disk", f"{kept}, {size(line.cache_bytes)} of caches; {size(line.free_disk)} are free")
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD, title="Where the time goes", title_justify="left")
    table.add_column("part", no_wrap=True)
    for name in ("a step", "in all", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for part, seconds in found.seconds.items():
        number = {"validation": found.validations, "checkpoints": found.checkpoints}.get(part)
        name = NAMES.get(part, part) + ("" if number is None else f" ({number:,})")
        a_step = duration(found.step[part]) if part in found.step else ""
        table.add_row(name, a_step, duration(seconds), f"{100 * seconds / max(found.total, 1e-9):.1f} %")
    console.print(table)
    print(f"{measured_steps(measured)} steps were measured.")
    for note in notes:
        print(note)
    sys.stdout.flush()
