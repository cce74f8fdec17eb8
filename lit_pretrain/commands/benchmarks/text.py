"""BERT pretraining steps: ours beside transformers' `BertForPreTraining`, eager and compiled.

Both have the same shape, start from the same weights and see the same tokens in the same precision; both use fused
AdamW and clip at norm 1. Ours masks inside the step; the peer is handed masked input and labels made beforehand, which
favours it.
"""

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.callbacks.peak import measured_peak
from lit_pretrain.commands.benchmarks.contest import Contestant, hold, ratio
from lit_pretrain.modules import TextPretraining
from lit_pretrain.modules.optimization import AdamWConfig, make_optimizer
from lit_pretrain.objectives import MaskedLanguageModeling, NextSentencePrediction, compute_objectives
from lit_pretrain.precision import resolve_precision

PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


def made_up_vocabulary(size: int) -> SimpleNamespace:
    """What masking asks of a tokenizer, for random tokens: five special ids first, no pieces inside words."""
    return SimpleNamespace(
        vocabulary_size=size, mask_id=4, special_ids=[0, 1, 2, 3, 4], continuation_mask=[False] * size
    )


def random_batch(arguments: argparse.Namespace, device: torch.device) -> dict[str, torch.Tensor]:
    """Full-length sentence pairs of random word pieces."""
    shape = (arguments.batch_size, arguments.sequence_length)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, arguments.vocabulary_size, shape, generator=generator)
    half = arguments.sequence_length // 2
    input_ids[:, 0], input_ids[:, half], input_ids[:, -1] = 2, 3, 3
    segments = (torch.arange(shape[1]) > half).long().expand(shape).contiguous()
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones(shape, dtype=torch.bool),
        "token_type_ids": segments,
        "next_sentence_label": torch.randint(0, 2, shape[:1], generator=generator),
    }
    return {name: value.to(device) for name, value in batch.items()}


def our_step(
    arguments: argparse.Namespace, size: str, batch: dict, dtype: torch.dtype, compiled: bool
) -> tuple[Contestant, TextPretraining]:
    """Our training step, and the module it trains."""
    device = batch["input_ids"].device
    dropout = arguments.dropout
    encoder = TextEncoder(
        arguments.vocabulary_size,
        size,
        TransformerConfig(dropout=dropout, attention_dropout=dropout),
        max_positions=max(512, arguments.sequence_length),
    )
    module = TextPretraining(encoder, [MaskedLanguageModeling(), NextSentencePrediction()])
    vocabulary = made_up_vocabulary(arguments.vocabulary_size)
    for objective in module.objectives:
        objective.build(encoder, vocabulary)
    module.to(device).train()
    if compiled:
        encoder.compile_blocks()
    optimizer = make_optimizer([module], AdamWConfig(learning_rate=1e-4))
    generator = torch.Generator(device=device)
    parameters = list(module.parameters())

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = module.sum_losses(compute_objectives(encoder, module.objectives, batch, generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)

    return Contestant("ours, compiled" if compiled else "ours, eager", step), module


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


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(arguments: argparse.Namespace, size: str, peer: bool) -> list[dict[str, str | float]]:
    """Rows of one size: a contestant each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(arguments.precision)
    dtype = PRECISIONS[precision]
    batch = random_batch(arguments, device)
    eager, module = our_step(arguments, size, batch, dtype, compiled=False)
    contestants = [eager]
    if not arguments.no_compile:
        contestants.append(our_step(arguments, size, batch, dtype, compiled=True)[0])
    if peer:
        contestants.append(peer_step(arguments, module, batch, dtype, compiled=False))
        if not arguments.no_compile:
            contestants.append(peer_step(arguments, module, batch, dtype, compiled=True))
    hold(contestants, arguments.rounds, arguments.seconds)
    ours = contestants[0] if arguments.no_compile else contestants[1]
    cost = module.step_cost(batch)
    peak = measured_peak(device.type, dtype)
    rows = []
    for contestant in contestants:
        # Operations that the loss needs, not those that were done: a peer that computes more does not look busier.
        speed = cost["flops"] / contestant.median
        rows.append(
            {
                "size": size,
                "contestant": contestant.name,
                "precision": precision,
                "milliseconds_per_step": contestant.median * 1e3,
                "tokens_per_second": cost["tokens"] / contestant.median,
                "ours_is_faster_by": ratio(contestant, ours),
                "needed_teraflops": speed / 1e12,
                "share_of_peak": speed / peak,
            }
        )
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Measure every size and print the table."""
    console = Console()
    peer = find_spec("transformers") is not None
    if not peer:
        console.print("transformers is not installed, so ours is measured alone: pip install 'lit_pretrain[peers]'.")
    rows: list[dict[str, str | float]] = []
    for size in arguments.sizes:
        rows += measure(arguments, size, peer)
    table = Table(
        title=f"Training steps, {arguments.batch_size} x {arguments.sequence_length} tokens, "
        f"{arguments.vocabulary_size:,} word pieces, dropout {arguments.dropout:g}, {rows[0]['precision']}"
    )
    for heading in ("size", "contestant", "ms/step", "tokens/s", "ours is faster by", "TFLOP/s needed", "of peak"):
        table.add_column(heading, justify="left" if heading in ("size", "contestant") else "right")
    for row in rows:
        table.add_row(
            str(row["size"]),
            str(row["contestant"]),
            f"{row['milliseconds_per_step']:.1f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ours_is_faster_by']:.2f} x",
            f"{row['needed_teraflops']:.3f}",
            f"{row['share_of_peak']:.0%}",
        )
    console.print(table)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")
    return 0
