"""Make a step of a training again: what was in its batch, and which sample caused its loss."""

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.commands.output import check_writable, write_json
from lit_pretrain.errors import UserError, counted

if TYPE_CHECKING:
    from lit_pretrain.commands.inspection.samples import SampleFigures
    from lit_pretrain.commands.inspection.step import SeenBatch, StepAgain

# Where `__main__` puts the arguments that are fit's.
TRAINING_ARGUMENTS = "training"
# What the step needs nothing of; one process stands for that which is asked about.
ALONE = {
    "min_steps": "null",
    "min_epochs": "null",
    "fast_dev_run": "false",
    "devices": "1",
    "num_nodes": "1",
    "strategy": "auto",
    "limit_val_batches": "0",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.add_argument("run_name", metavar="RUN", help="run by name, id, directory, or last")
    parser.add_argument(
        "--step", type=int, required=True, metavar="N", help="optimiser step as charts count it, 1 being the first"
    )
    parser.add_argument("--rank", type=int, default=0, metavar="K", help="process whose batch is meant, from 0 (0)")
    parser.add_argument("--samples", type=int, default=8, metavar="S", help="samples that are shown (8)")
    parser.add_argument("--output", metavar="FILE", help="PNG of the pictures (default: why-step-N.png)")
    parser.add_argument("--no-losses", action="store_true", help="show the batch only")
    parser.add_argument("--json", metavar="FILE", help="write ids, losses and gradients to this file too")
    parser.add_argument("--runs", metavar="DIR", help="runs directory (default: $LIT_PRETRAIN_RUNS, else ./runs)")


def run(arguments: argparse.Namespace) -> int:
    """Make the step again and show it.

    Raises:
        UserError: If there is no such run, step or rank, or the run's settings or data are gone.
    """
    for name, least in (("step", 1), ("rank", 0), ("samples", 1)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} is {getattr(arguments, name)}: give at least {least}.")
    if arguments.json:
        check_writable(Path(arguments.json))
    picture = Path(arguments.output or f"why-step-{arguments.step}.png")
    if arguments.output:
        check_writable(picture, "--output")
    line = step_again(arguments)
    told = [tell(line, seen, arguments, place) for place, seen in enumerate(line.seen)]
    from lit_pretrain.commands.inspection.showing import picture_of
    from lit_pretrain.tracking.paths import shown_path

    for place, (seen, (figures, order)) in enumerate(zip(line.seen, told, strict=True)):
        panel = picture_of(line.model, seen, figures, order)
        if panel is not None:
            path = picture if len(told) == 1 else picture.with_stem(f"{picture.stem}-{place + 1}")
            check_writable(path, "--output")
            panel.save(path, format="PNG")
            print(f"The pictures are in {shown_path(path)}")
    if arguments.json:
        write_json(arguments.json, as_dictionary(line, [figures for figures, _ in told]))
    return 0


def step_again(arguments: argparse.Namespace) -> "StepAgain":
    """Build the run's training at the step.

    Raises:
        UserError: As `run`.
    """
    from lit_pretrain.cli import lightning_cli
    from lit_pretrain.commands.inspection.place import nearest, saved_of
    from lit_pretrain.commands.inspection.samples import figures_of
    from lit_pretrain.commands.inspection.step import StepAgain
    from lit_pretrain.tracking.find import checkpoints_of, find_run, list_runs
    from lit_pretrain.tracking.paths import shown_path

    # What measures a run's checkpoint is a run without any.
    trainings = (
        [one for one in list_runs(arguments.runs) if checkpoints_of(one)] if arguments.run_name == "last" else []
    )
    record = trainings[0] if trainings else find_run(arguments.run_name, arguments.runs, with_checkpoints=True)
    configs = sorted(record.directory.glob("config-resumed-*.yaml"), key=lambda path: path.stat().st_mtime_ns)
    config = [*configs[-1:], record.directory / "config.yaml"][0]
    if not config.is_file():
        raise UserError(
            f"{shown_path(record.directory)} has no config.yaml, of which the training could be built again: name a "
            "run that was trained by fit."
        )
    saved = saved_of(record, started_from(config))
    StepAgain.run_record, StepAgain.saved, StepAgain.step = record, saved, arguments.step - 1
    StepAgain.rank, StepAgain.before = arguments.rank, nearest(saved, arguments.step - 1)

    def look(line: Any) -> list[Any]:
        return [[] if arguments.no_losses else figures_of(line.model, seen) for seen in line.seen]

    StepAgain.look = staticmethod(look)
    command = ["fit", "--config", str(config)]
    before = StepAgain.before
    command += ["--ckpt_path", str(before.path) if before is not None else "null"]
    for name, value in ALONE.items():
        command += [f"--trainer.{name}", value]
    with tempfile.TemporaryDirectory(prefix="lit-pretrain-why-") as StepAgain.scratch, warnings.catch_warnings():
        # Nothing of the run's callbacks is needed here.
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
        return lightning_cli.command_line([*command, *arguments.training], StepAgain)  # type: ignore[return-value]


def started_from(config: Path) -> Path | None:
    """The checkpoint that a run went on from, which need not be its own; null if it began anew, or that is gone."""
    from lit_pretrain.yaml_files import read_yaml

    content = read_yaml(str(config), "config")
    path = content.get("ckpt_path") if isinstance(content, dict) else None
    return Path(path) if path and Path(path).is_file() else None


def weights_told(line: "StepAgain") -> str:
    """Of which weights losses and gradients are, in a sentence."""
    from lit_pretrain.tracking.paths import shown_path

    before, step = line.before, line.step
    if before is None:
        first = f" (the first one is of step {line.saved[0].step:,})" if line.saved else ""
        return (
            f"No checkpoint before this step is kept{first}: losses and gradients are of the weights that the run "
            "began with."
        )
    name = shown_path(before.path)
    if before.step == step:
        return f"Losses and gradients are of the weights with which the step was made, those of {name}."
    steps = counted(step - before.step, "step")
    return f"Losses and gradients are of the weights of {name}, {steps} before: the nearest that are kept."


def tell(
    line: "StepAgain", seen: "SeenBatch", arguments: argparse.Namespace, place: int
) -> tuple[list["SampleFigures"], list[int]]:
    """Print a batch: where it stands, its samples by what they cause, and their texts.

    Returns:
        What is known of the samples, and the places of those that are shown.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lit_pretrain.commands.inspection.showing import marked, text_rows
    from lit_pretrain.commands.inspection.step import ids_of

    console, module = Console(highlight=False), line.model
    figures: list[SampleFigures] = line.found[place]
    where = line.place
    rank = f", process {line.rank} of {line.world_size}" if line.world_size > 1 else ""
    of_step = f", {place + 1} of the step's {len(line.seen)}" if len(line.seen) > 1 else ""
    console.print(
        f"Step {line.step + 1:,} of {line.run_record.run_name}: epoch {where.epoch + 1}, batch {seen.index + 1}"
        f"{of_step}{rank}; its loss is {seen.loss:.4f} by the weights at hand.",
        markup=False,
        style="bold",
    )
    if place == 0:
        console.print(weights_told(line), markup=False)
        here = line.trainer.strategy.root_device.type
        if line.drawn_on != here:
            console.print(
                f"The run drew on {line.drawn_on} and this is {here}, whose generators differ: the samples are the "
                "step's own, and masks, crops and the like are others.",
                markup=False,
                style="bold",
            )
    ids = ids_of(seen.trained)
    order = figures[0].order() if figures else list(range(len(ids)))
    order = order[: arguments.samples]
    for found in figures:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("sample", justify="right")
        for name in found.losses:
            table.add_column(name, justify="right")
        if found.gradients:
            table.add_column("gradient norm", justify="right")
            table.add_column("of the largest", justify="right")
        largest = max(found.gradients, default=0.0) or 1.0
        for sample in found.order()[: arguments.samples]:
            cells = [str(found.ids[sample]), *(f"{losses[sample]:.4f}" for losses in found.losses.values())]
            if found.gradients:
                gradient = found.gradients[sample]
                cells += [f"{gradient:.3g}", f"{100 * gradient / largest:.0f} %"]
            table.add_row(*cells)
        console.print(table)
        if found.without:
            console.print(f"Samples have no loss of their own in {', '.join(found.without)}.", markup=False)
    tokenizer = getattr(module, "tokenizer", None)
    for sample in order:
        lines = []
        if seen.captions is not None and tokenizer is not None:
            ids_here, mask = seen.captions["input_ids"][sample], seen.captions["attention_mask"][sample]
            lines.append(("caption", marked(ids_here, None, mask, set(), tokenizer)))
        for shown in seen.shown:
            if "input_ids" in shown.batch and tokenizer is not None and sample < len(shown.batch["input_ids"]):
                lines += text_rows(shown, sample, len(shown.batch["input_ids"]), tokenizer)
        for name, words in lines:
            console.print(Text.assemble((f"sample {ids[sample]} {name}: ", "dim"), words))
    return figures, order


def as_dictionary(line: "StepAgain", figures: list[list["SampleFigures"]]) -> dict[str, Any]:
    """Plain keys, for JSON."""
    from lit_pretrain.commands.inspection.step import ids_of

    return {
        "run": line.run_record.run_name,
        "step": line.step + 1,
        "epoch": line.place.epoch,
        "rank": line.rank,
        "weights_of_step": line.before.step if line.before is not None else 0,
        "batches": [
            {
                "batch": seen.index,
                "loss": seen.loss,
                "sample_ids": ids_of(seen.trained),
                "kinds": [
                    {"sample_ids": one.ids, "losses": one.losses, "gradient_norms": one.gradients} for one in found
                ],
            }
            for seen, found in zip(line.seen, figures, strict=True)
        ],
    }
