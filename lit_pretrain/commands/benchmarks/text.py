"""BERT pretraining steps: ours beside transformers' `BertForPreTraining`, eager and compiled.

Both have the same shape, start from the same weights and see the same tokens in the same precision; both use fused
AdamW and clip at norm 1. Ours masks inside the step; the peer is handed masked input and labels made beforehand, which
favours it.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from lit_pretrain.backbone.config import BERT_SIZES
from lit_pretrain.callbacks.peak import measured_peak
from lit_pretrain.commands.benchmarks.contest import Contestant, hold, ratio
from lit_pretrain.commands.benchmarks.step import our_step, random_batch, synchronize
from lit_pretrain.commands.benchmarks.whole_fit import measure_fit
from lit_pretrain.commands.output import check_writable
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.memory import keep_memory
from lit_pretrain.modules import TextPretraining
from lit_pretrain.precision import resolve_precision
from lit_pretrain.quiet import quieten

PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


def peer_step(
    arguments: argparse.Namespace, module: TextPretraining, batch: dict, dtype: torch.dtype, compiled: bool
) -> Contestant:
    """The step of transformers' model of the same shape and weights, on masked input made beforehand."""
    from transformers import BertForPreTraining

    device = batch["input_ids"].device
    with tempfile.TemporaryDirectory() as directory:
        module.encoder.save_pretrained(directory, tuple(module.objectives))
        model = BertForPreTraining.from_pretrained(directory).to(device).train()
    masking = module.objectives[0].make_pass(batch, module.encoder, torch.Generator(device=device))
    labels = torch.full_like(batch["input_ids"], -100)
    positions = masking.targets["indices"]
    labels.scatter_(1, positions, batch["input_ids"].gather(1, positions))
    inputs = {
        "input_ids": masking.inputs["input_ids"],
        "attention_mask": batch["attention_mask"].long(),
        "token_type_ids": batch["token_type_ids"],
        "labels": labels,
        "next_sentence_label": batch["next_sentence_label"],
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if compiled else model
    parameters = list(model.parameters())

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = forward(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)

    return Contestant("transformers, compiled" if compiled else "transformers, eager", step)


@dataclass
class Race:
    """The contestants of one size.

    Attributes:
        size: BERT's name of it.
        contestants: Ours first.
        cost: Tokens and floating-point operations of a step.
    """

    size: str
    contestants: list[Contestant]
    cost: dict[str, float]

    @property
    def ours(self) -> Contestant:
        """What the others are measured by: ours as `fit` runs it, compiled if that was asked for."""
        return next((one for one in self.contestants if one.name == "ours, compiled"), self.contestants[0])


def line_up(arguments: argparse.Namespace, size: str, dtype: torch.dtype, device: torch.device, peer: bool) -> Race:
    """Make the contestants of one size."""
    batch = random_batch(arguments, device)
    eager, module = our_step(arguments, size, batch, dtype, compiled=False)
    contestants = [eager]
    if not arguments.no_compile:
        contestants.append(our_step(arguments, size, batch, dtype, compiled=True)[0])
    if peer:
        contestants.append(peer_step(arguments, module, batch, dtype, compiled=False))
        if not arguments.no_compile:
            contestants.append(peer_step(arguments, module, batch, dtype, compiled=True))
    return Race(size, contestants, module.step_cost(batch))


def rows_of(race: Race, precision: str, peak: float) -> list[dict[str, str | float]]:
    """A row for each contestant; ours is timed as `fit` runs it, a peer as its users do."""
    rows = []
    best = race.ours.kept_seconds
    for contestant in race.contestants:
        seconds = contestant.kept_seconds if contestant.name.startswith("ours") else contestant.seconds
        median = statistics.median(seconds)
        # Operations that the loss needs, not those that were done: a peer that computes more does not look busier.
        speed = race.cost["flops"] / median
        rows.append(
            {
                "size": race.size,
                "contestant": contestant.name,
                "precision": precision,
                "milliseconds_per_step": median * 1e3,
                "tokens_per_second": race.cost["tokens"] / median,
                # Not in the same rounds, so by the medians.
                "ours_is_faster_by": median / statistics.median(best),
                "ours_is_faster_by_with_memory_kept_for_all": ratio(contestant.kept_seconds, best),
                "milliseconds_per_step_memory_not_kept": statistics.median(contestant.seconds) * 1e3,
                "milliseconds_per_step_memory_kept": statistics.median(contestant.kept_seconds) * 1e3,
                "needed_teraflops": speed / 1e12,
                "share_of_peak": speed / peak,
            }
        )
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Measure every size and print the table."""
    for size in arguments.sizes:
        if size not in BERT_SIZES:
            raise UserError(
                f"There is no size '{size}'{nearest(size, BERT_SIZES)}: give some of {', '.join(BERT_SIZES)}."
            )
    if arguments.json:
        check_writable(Path(arguments.json))
    quieten()
    console = Console()
    # The table is not broken up in a narrow window.
    console.width = max(console.width, 100)
    peer = find_spec("transformers") is not None
    if peer:
        import transformers

        transformers.utils.logging.disable_progress_bar()
    else:
        console.print("transformers is not installed, so ours is measured alone: pip install 'lit_pretrain[peers]'.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(arguments.precision)
    dtype = PRECISIONS[precision]
    peak = measured_peak(device.type, dtype)
    races = [line_up(arguments, size, dtype, device, peer) for size in arguments.sizes]
    # It cannot be undone, so all are measured without it first.
    for kept in (False, True):
        if kept:
            keep_memory()
        for race in races:
            hold(race.contestants, arguments.rounds, arguments.seconds, kept)
    rows = [row for race in races for row in rows_of(race, precision, peak)]
    console.print(table_of(rows, arguments, peak))
    if peer:
        console.print(
            "Ours keeps its memory from step to step, as fit does, transformers does as in its users' processes.\n"
            "Last column: how much faster ours is where transformers keeps its memory too."
        )
    if arguments.fit:
        fits = [measure_fit(arguments, size, precision, dtype) for size in arguments.sizes]
        console.print(table_of_fits(fits))
        rows += fits
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def table_of(rows: list[dict[str, str | float]], arguments: argparse.Namespace, peak: float) -> Table:
    """The table that is printed."""
    table = Table(
        title=f"Training steps of {arguments.batch_size} x {arguments.sequence_length} tokens, "
        f"{arguments.vocabulary_size:,} word pieces, {rows[0]['precision']} (peak {peak / 1e9:,.0f} GFLOP/s)",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for heading in ("size", "contestant", "ms", "tokens/s", "GFLOP/s", "of peak", "ours faster", "both kept"):
        table.add_column(heading, justify="left" if heading in ("size", "contestant") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["size"]),
            str(row["contestant"]),
            f"{row['milliseconds_per_step']:.0f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['needed_teraflops'] * 1e3:.0f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['ours_is_faster_by']:.2f} x",
            f"{row['ours_is_faster_by_with_memory_kept_for_all']:.2f} x",
        )
    return table


def table_of_fits(rows: list[dict[str, str | float]]) -> Table:
    """The table of whole fits."""
    table = Table(title="Whole fits on the bundled speeches", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("size", "ms a step of fit", "ms a bare step", "tokens/s", "of the bare step's speed"):
        table.add_column(heading, justify="left" if heading == "size" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["size"]),
            f"{row['milliseconds_per_step']:.0f}",
            f"{row['milliseconds_per_bare_step']:.0f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['share_of_bare_step']:.3f}",
        )
    return table
