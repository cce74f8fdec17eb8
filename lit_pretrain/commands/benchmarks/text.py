"""BERT pretraining steps: ours beside transformers' `BertForPreTraining`, eager and compiled.

Both have the same shape, start from the same weights and see the same tokens in the same precision; both use fused
AdamW and clip at norm 1. Ours masks inside the step; the peer is handed masked input and labels made beforehand, which
favours it.
"""

import argparse
from importlib.util import find_spec

from lit_pretrain.backbone.config import BERT_SIZES
from lit_pretrain.commands.benchmarks.bert_step import our_module, random_batch, transformers_loss
from lit_pretrain.commands.benchmarks.contest import Race, hold_all
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
from lit_pretrain.commands.benchmarks.whole_fit import measure_fit
from lit_pretrain.data import DocumentDataModule
from lit_pretrain.errors import UserError, nearest
from lit_pretrain.modules import TextPretraining


def line_up(arguments: argparse.Namespace, size: str, setting: Setting, peer: bool) -> Race:
    """Make the contestants of one size."""
    batch = random_batch(arguments, setting.device)
    manners = [False] if arguments.no_compile else [False, True]
    modules = [our_module(arguments, size, compiled) for compiled in manners]
    contestants = [our_step(module, batch, setting.dtype) for module in modules]
    if peer:
        for compiled in manners:
            model, loss = transformers_loss(modules[0], batch, compiled)
            contestants.append(peer_step("transformers", model, loss, compiled, setting.dtype))
    cost = modules[0].step_cost(batch)
    return Race("size", size, contestants, "tokens", cost["tokens"], cost["flops"])


def fit_of(arguments: argparse.Namespace, size: str) -> tuple[TextPretraining, DocumentDataModule]:
    """A training on the bundled speeches."""
    data = DocumentDataModule(
        vocabulary_size=arguments.vocabulary_size,
        sequence_length=arguments.sequence_length,
        batch_size=arguments.batch_size,
        max_documents=arguments.max_documents,
    )
    module = our_module(arguments, size, compiled=not arguments.no_compile)
    module.tokenizer = None  # the data's
    return module, data


def fit_row(arguments: argparse.Namespace, size: str, setting: Setting) -> Row:
    """A whole fit of one size beside its bare step."""
    compiled = not arguments.no_compile
    return {"size": size} | measure_fit(
        arguments,
        setting,
        lambda: fit_of(arguments, size),
        lambda batch: our_step(our_module(arguments, size, compiled), batch, setting.dtype),
        arguments.batch_size * arguments.sequence_length,
        "tokens",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure every size and print the tables."""
    for size in arguments.sizes:
        if size not in BERT_SIZES:
            raise UserError(
                f"There is no size '{size}'{nearest(size, BERT_SIZES)}: give some of {', '.join(BERT_SIZES)}."
            )
    setting = Setting.of(arguments)
    peer = find_spec("transformers") is not None
    if peer:
        import transformers

        transformers.utils.logging.disable_progress_bar()
    else:
        setting.console.print(
            "transformers is not installed, so ours is measured alone: pip install 'lit_pretrain[peers]'.",
            markup=False,
        )
    races = [line_up(arguments, size, setting, peer) for size in arguments.sizes]
    hold_all(races, arguments.rounds, arguments.seconds)
    rows = [row for race in races for row in rows_of(race, setting.precision, setting.peak)]
    title = (
        f"Training steps of {arguments.batch_size} x {arguments.sequence_length} tokens, "
        f"{arguments.vocabulary_size:,} word pieces, {setting.precision} (peak {setting.peak / 1e9:,.0f} GFLOP/s)"
    )
    columns = [MILLISECONDS, Column("tokens/s", "tokens_per_second"), *SPEED, *RATIOS]
    setting.console.print(table_of(title, ["size", "contestant"], columns, rows))
    if peer:
        setting.console.print(RATIOS_EXPLAINED.format(peer="transformers"))
    if arguments.fit:
        fits = [fit_row(arguments, size, setting) for size in arguments.sizes]
        setting.console.print(table_of_fits("the bundled speeches", "size", "tokens", fits))
        rows += fits
    setting.write(rows)
    return 0
