"""Memory that a contrastive training step takes, by the size of its batch, with the same chunk for all.

With `chunk_size` a step should hold the activations of a chunk, however large the batch is; what grows is then no more
than the batch itself, as uint8 pictures and word pieces, and its embeddings. Each size is measured in a fresh process,
with memory kept from step to step as `fit` keeps it: the most that was ever held, less what a first step on two pairs
had taken for model, gradients and optimiser.
"""

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from rich.console import Console

from lit_pretrain.commands.benchmarks.step import training_step
from lit_pretrain.commands.benchmarks.tables import Column, Row, table_of
from lit_pretrain.commands.output import check_writable
from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from lit_pretrain.modules import ContrastivePretraining

STEPS = 2
VOCABULARY = 1000
COLUMNS = (
    Column("MiB", "mebibytes"),
    Column("of the smallest", "ratio", "{:.2f} x"),
    Column("MiB of the batch", "mebibytes_of_batch"),
)


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        batch_size: Pairs of a batch.
        chunk_size: Pairs whose activations are held at a time.
        width: Features of a token in both towers.
        depth: Blocks of each.
        image_size: Pixels of a side of a picture.
        patch_size: Of a patch.
        text_length: Tokens of a caption.
        duplicates: As `Contrastive`'s.
    """

    batch_size: int
    chunk_size: int
    width: int
    depth: int
    image_size: int
    patch_size: int
    text_length: int
    duplicates: Literal["ignore", "mask", "multi_positive"]


def run(arguments: argparse.Namespace) -> int:
    """Measure each size and print the table."""
    if sys.platform == "win32":
        raise UserError("Windows does not tell how much memory a process has held: measure on Linux or macOS.")
    if arguments.json:
        check_writable(Path(arguments.json))
    settings = {name: getattr(arguments, name) for name in Case.__dataclass_fields__ if name != "batch_size"}
    rows: list[Row] = []
    # All are forked from one process, since importing takes longer than measuring.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lit_pretrain.callbacks.throughput", "lit_pretrain.modules"])
    for batch_size in sorted(arguments.batch_sizes):
        case = Case(batch_size, **settings)
        with ProcessPoolExecutor(1, mp_context=context) as alone:
            rows.append(alone.submit(measure, case).result())
        rows[-1]["ratio"] = rows[-1]["mebibytes"] / rows[0]["mebibytes"]
    title = f"Memory of a step, {arguments.chunk_size} pairs at a time"
    Console().print(table_of(title, ["batch_size"], COLUMNS, rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def measure(case: Case) -> Row:
    """Steps of one case; for a process of its own."""
    # Imported late, as the command's own process needs none of it.
    from lit_pretrain.callbacks.throughput import peak_memory
    from lit_pretrain.memory import keep_memory

    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = make_module(case).to(device).train()
    generator = torch.Generator(device=device)
    optimizer = torch.optim.AdamW(module.parameters())
    take_steps(module, make_batch(case, 2, device), generator, optimizer, 1)
    before = peak_memory(device)
    batch = make_batch(case, case.batch_size, device)
    take_steps(module, batch, generator, optimizer, STEPS)
    row = asdict(case) | {"mebibytes": (peak_memory(device) - before) / 2**20}
    return row | {"mebibytes_of_batch": sum(value.numel() * value.element_size() for value in batch.values()) / 2**20}


def take_steps(
    module: "ContrastivePretraining",
    batch: dict[str, torch.Tensor],
    generator: torch.Generator,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> None:
    """Training steps on one batch."""
    device = next(iter(batch.values())).device

    def loss() -> torch.Tensor:
        return module.contrast(batch, generator).loss

    step = training_step(loss, module.parameters(), optimizer, device, torch.float32)
    for _ in range(steps):
        step()


def make_module(case: Case) -> "ContrastivePretraining":
    """Two towers of a case."""
    from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
    from lit_pretrain.modules import ContrastivePretraining
    from lit_pretrain.objectives import Contrastive

    text = TransformerConfig(depth=case.depth, width=case.width, norm_order="pre")
    vision = VisionTransformerConfig(depth=case.depth, width=case.width)
    return ContrastivePretraining(
        TextEncoder(VOCABULARY, transformer=text, max_positions=case.text_length),
        VisionEncoder(image_size=case.image_size, patch_size=case.patch_size, class_token=False, transformer=vision),
        objective=Contrastive(duplicates=case.duplicates),
        chunk_size=case.chunk_size,
        seed=0,
    )


def make_batch(case: Case, size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Pairs of noise, larger than the encoder's pictures, as for a random crop."""
    side = case.image_size * 9 // 8
    text = (size, case.text_length)
    keys = torch.arange(size, device=device)
    return {
        "images": torch.randint(256, (size, 3, side, side), dtype=torch.uint8, device=device),
        "input_ids": torch.randint(VOCABULARY, text, device=device),
        "attention_mask": torch.ones(text, dtype=torch.bool, device=device),
        "caption_key": keys,
        "picture_key": keys,
    }
