"""Texts of uneven length, several a row beside one a row: real tokens a second of a masked language modelling step.

Both train the same encoder on the same texts in rows of the same length; the padded ones are segments as `fit` cuts
them, the packed ones the same segments put together (`data.packing`). Padding counts as nothing.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.config import BERT_SIZES
from lit_pretrain.commands.benchmarks.contest import Contestant, hold, ratio
from lit_pretrain.commands.benchmarks.fine_tuning import write_paragraphs
from lit_pretrain.commands.benchmarks.setting import Setting
from lit_pretrain.commands.benchmarks.step import our_step
from lit_pretrain.commands.benchmarks.tables import Column, Row, table_of
from lit_pretrain.data import DocumentDataModule
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.modules import TextPretraining
from lit_pretrain.objectives import MaskedLanguageModeling

# Batches that a step goes through, drawn all over the texts.
BATCHES = 4


def data_of(arguments: argparse.Namespace, folder: Path, packing: bool) -> DocumentDataModule:
    """The texts in rows; without a path the paragraphs of the bundled speeches, which are written to a folder first."""
    path = arguments.texts
    if path is None:
        path = str(folder / "paragraphs.parquet")
        write_paragraphs(Path(path), arguments.max_documents)
    data = DocumentDataModule(
        path,
        max_documents=arguments.max_documents,
        cache_directory=str(folder),
        layout="segments",
        packing=packing,
        vocabulary_size=arguments.vocabulary_size,
        sequence_length=arguments.sequence_length,
        batch_size=arguments.batch_size,
    )
    data.setup("fit")
    return data


def batches_of(data: DocumentDataModule) -> list[dict[str, Any]]:
    """Some batches of different rows."""
    rows = numpy.random.default_rng(0).permutation(len(data.train_dataset))[: BATCHES * data.batch_size]
    size = data.batch_size
    chosen = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [data.train_dataset.__getitems__([(0, int(row)) for row in batch]) for batch in chosen]


def line_up(arguments: argparse.Namespace, setting: Setting, folder: Path, packing: bool) -> tuple[Contestant, Row]:
    """One way to arrange the texts, and what it holds."""
    data = data_of(arguments, folder, packing)
    encoder = TextEncoder(
        size=arguments.size, transformer=TransformerConfig(), positions="rotary", segments=0, max_positions=8
    )
    module = TextPretraining(encoder, [MaskedLanguageModeling()], compile_blocks=False)
    module.tokenizer = data.tokenizer
    batches = [
        {
            name: value.to(setting.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
            if name != "sample_id"
        }
        for batch in batches_of(data)
    ]
    current: dict[str, Any] = dict(batches[0])
    step: Callable[[], object] = our_step(module, current, setting.dtype).step

    def steps() -> None:
        for batch in batches:
            current.update(batch)
            step()

    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    places = sum(batch["attention_mask"].numel() for batch in batches)
    name = "packed" if packing else "padded"
    row: Row = {"rows": name, "number_of_rows": len(data.train_dataset), "filled": real / places, "tokens": real}
    return Contestant(f"ours, {name}", steps), row


def run(arguments: argparse.Namespace) -> int:
    """Measure both and print the table."""
    if arguments.size not in BERT_SIZES:
        raise UserError(
            f"There is no size '{arguments.size}'{nearest(arguments.size, BERT_SIZES)}: give one of "
            f"{', '.join(BERT_SIZES)}."
        )
    setting = Setting.of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        lined_up = [line_up(arguments, setting, Path(folder), packing) for packing in (False, True)]
    contestants, rows = zip(*lined_up, strict=True)
    hold(list(contestants), arguments.rounds, arguments.seconds, kept=False, warm_up_steps=1)
    by_token = [
        [seconds / row["tokens"] for seconds in contestant.seconds]
        for contestant, row in zip(contestants, rows, strict=True)
    ]
    for row, seconds in zip(rows, by_token, strict=True):
        row["tokens_per_second"] = 1.0 / statistics.median(seconds)
        row["ratio"] = ratio(by_token[0], seconds)
    columns = [
        Column("sequences", "number_of_rows"),
        Column("filled", "filled", "{:.1%}"),
        Column("real tokens/s", "tokens_per_second"),
        Column("times padded", "ratio", "{:.2f}"),
    ]
    title = f"Rows of {arguments.sequence_length} tokens, {arguments.size}, {setting.precision}"
    setting.console.print(table_of(title, ["rows"], columns, list(rows)))
    setting.write(list(rows))
    return 0
