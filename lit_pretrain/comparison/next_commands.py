"""What a person would type next, given how a run is and how it ended."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from lit_pretrain.comparison.runs import Run
from lit_pretrain.tracking.find import RunRecord, holds_shards
from lit_pretrain.tracking.paths import shown_path

PROGRAM = "python -m lit_pretrain"
# The format of an export, where its own kind's does not hold the encoder.
FORMAT_FACT = "model_facts.export_format"


def reference_of(run: Run, records: Sequence[RunRecord]) -> str:
    """The shortest that a run can be called by: its name if no other is called so, else the beginning of its id."""
    alike = [record for record in records if record.run_name == run.name and record.run_id != run.run_id]
    return shlex.quote(run.name) if not alike else run.run_id[:8]


def next_commands(run: Run, reference: str, former: str | None) -> dict[str, str]:
    """Commands by what they do, the most useful first.

    Args:
        run: Which.
        reference: What it is called.
        former: What the run is called that it started from; null if it is none of ours.
    """
    commands: dict[str, str] = {}
    kind = run.tags.get("model", run.parameters.get("model", ""))
    text, pictures = run.fact("tokenizer_hash") is not None, run.fact("stored_size") is not None
    if run.status in ("KILLED", "FAILED"):
        commands["go on where it stopped"] = f"{PROGRAM} fit --ckpt_path {reference}"
    best = f"{reference}:best" if "checkpoint.best" in run.tags else reference
    if (shards := run.tags.get("checkpoint.best")) and holds_shards(shards):
        # Only a training under the same strategy takes them as they are.
        best = shlex.quote(shown_path(Path(shards).with_name(f"{Path(shards).stem}-whole.ckpt")))
        commands["make one file of its shards"] = (
            "python -m lightning.fabric.utilities.consolidate_checkpoint "
            f"{shlex.quote(shown_path(shards))} --output_file {best}"
        )
    if kind == "FineTuning":
        commands["measure it on the test data"] = f"{PROGRAM} test --ckpt_path {best}"
        new = "new_texts.txt" if text else "new_pictures/"
        commands["label new samples"] = f"{PROGRAM} predict --ckpt_path {best} --data.path {new}"
    elif text and pictures:
        commands["find pictures for a text"] = f'{PROGRAM} search --ckpt {best} --images my_pictures/ --query "a word"'
        labelled = "--data.path my_pictures/ --data.label_column label"
        commands["measure it without training"] = f"{PROGRAM} evaluate {best} {labelled}"
    elif text or pictures:
        config = f"configs/finetune/own_{'text' if text else 'pictures'}.yaml"
        data = "--data.path reviews.csv" if text else "--data.path my_pictures/ --data.label_column label"
        commands["fine-tune it"] = f"{PROGRAM} fit --config {config} --model.init_from {best} {data}"
        config = f"--config {config} " if text else ""
        commands["measure its frozen features"] = f"{PROGRAM} evaluate {best} {config}{data}"
    form = f" --format {run.parameters[FORMAT_FACT]}" if FORMAT_FACT in run.parameters else ""
    commands["write it for other libraries"] = f"{PROGRAM} export --ckpt {best} --to my-model{form}"
    # What it started from is no rival.
    rivals = f"{PROGRAM} compare --experiment {shlex.quote(run.experiment)}"
    commands["put it beside others"] = rivals
    tower = " --tower image" if text and pictures else ""
    commands["register it, to be served"] = f"{PROGRAM} register {best} --name my-model{tower}"
    if former is not None:
        commands["see what it started from"] = f"{PROGRAM} report {former}"
    commands["look at all runs"] = f"{PROGRAM} ui"
    return commands
