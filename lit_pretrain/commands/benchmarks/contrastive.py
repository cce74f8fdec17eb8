"""CLIP's training steps: ours beside `open_clip`'s, eager and compiled.

Both have the same shape, start from the same weights and see the same pairs in the same precision; both use fused
AdamW, clip at norm 1 and clamp the temperature. Ours reads pictures as bytes and normalises them inside the step,
counts how often pictures and captions find each other, and pads captions to the longest of the batch, as
`PairDataModule` does; the peer is handed normalised pictures, and captions padded to its context of 77, as its loader
does. How long captions are decides much, so it is varied. Augmentation is no part of it.
"""

import argparse
from importlib.util import find_spec
from typing import Any

from lit_pretrain.commands.benchmarks.clip_step import (
    CONTEXT,
    ClipShape,
    clamped,
    open_clip_loss,
    open_clip_model,
    our_loss,
    our_module,
    our_step,
    random_pairs,
)
from lit_pretrain.commands.benchmarks.contest import Contestant, Race, hold_all
from lit_pretrain.commands.benchmarks.kept_memory import bytes_kept
from lit_pretrain.commands.benchmarks.setting import Setting
from lit_pretrain.commands.benchmarks.step import peer_step
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
from lit_pretrain.data import PairDataModule
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining

COLUMNS = (
    MILLISECONDS,
    Column("pairs/s", "pairs_per_second"),
    SPEED[1],
    *RATIOS,
    Column("MB/pair", "megabytes_kept_per_pair", "{:.2f}"),
)
KEPT_EXPLAINED = (
    "MB/pair: what is kept from the forward to the backward pass, without what does not grow with the batch."
)
# Of the fit on the bundled emoji.
FIT_VOCABULARY = 1200


def line_up(
    arguments: argparse.Namespace, shape: ClipShape, mean_length: int, setting: Setting, peer: bool
) -> tuple[Race, list[float]]:
    """Make the contestants of one shape and one length of captions, and count the megabytes a pair of each."""
    pairs, words = arguments.batch_size, arguments.vocabulary_size
    batch = random_pairs(shape, pairs, mean_length, words, setting.device)
    manners = [False] if arguments.no_compile else [False, True]
    models: list[Any] = [open_clip_model(shape, words) if peer else None for _ in manners]
    if peer:
        for model in models[1:]:
            model.load_state_dict(models[0].state_dict())
    modules = [our_module(shape, words, compiled, models[0]) for compiled in manners]
    contestants, kept = [], []
    for module in modules:
        loss = our_loss(module, batch)
        contestants.append(our_step(module, loss, setting.dtype))
        kept.append(bytes_kept(loss, module, setting.dtype))
    for compiled, model in zip(manners, models, strict=True):
        if model is not None:
            loss = open_clip_loss(model, modules[0], batch, compiled)
            contestants.append(peer_step("open_clip", model, loss, compiled, setting.dtype, clamped(model)))
            kept.append(bytes_kept(loss, model, setting.dtype))
    cost = modules[0].step_cost(batch)
    name = f"{shape.name}, {mean_length}"
    race = Race("shape", name, contestants, "pairs", cost["samples"], cost["flops"])
    return race, [pair / pairs / 1e6 for pair in kept]


def fit_of(arguments: argparse.Namespace, shape: ClipShape) -> tuple[ContrastivePretraining, PairDataModule]:
    """A training on the bundled emoji and their names."""
    data = PairDataModule(
        caption_columns=["name"],
        vocabulary_size=FIT_VOCABULARY,
        maximum_length=32,
        stored_size=shape.image_size,
        batch_size=arguments.batch_size,
    )
    module = our_module(shape, FIT_VOCABULARY, compiled=not arguments.no_compile)
    module.tokenizer = None  # the data's
    return module, data


def fit_row(arguments: argparse.Namespace, shape: ClipShape, setting: Setting) -> Row:
    """A whole fit of one shape beside its bare step."""

    def bare(batch: dict) -> Contestant:
        module = our_module(shape, FIT_VOCABULARY, compiled=not arguments.no_compile)
        return our_step(module, our_loss(module, batch), setting.dtype)

    return {"shape": shape.name} | measure_fit(
        arguments, setting, lambda: fit_of(arguments, shape), bare, arguments.batch_size, "pairs"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure every shape with captions of every length and print the tables."""
    shapes = [ClipShape.of(text) for text in arguments.shapes]
    for length in arguments.caption_tokens:
        if not 3 <= length <= CONTEXT:
            raise UserError(f"--caption-tokens is {length}: give lengths from 3 to {CONTEXT}, the peer's context.")
    if arguments.batch_size < 2:
        raise UserError("--batch-size is 1, and a pair is compared with the others of its batch: give at least 2.")
    setting = Setting.of(arguments)
    peer = find_spec("open_clip") is not None
    if not peer:
        setting.console.print(
            "open_clip is not installed, so ours is measured alone: pip install 'lit_pretrain[peers]'.",
            markup=False,
        )
    lines = [line_up(arguments, shape, one, setting, peer) for shape in shapes for one in arguments.caption_tokens]
    hold_all([race for race, _ in lines], arguments.rounds, arguments.seconds)
    rows = [
        row | {"megabytes_kept_per_pair": megabytes}
        for race, kept in lines
        for row, megabytes in zip(rows_of(race, setting.precision, setting.peak), kept, strict=True)
    ]
    title = (
        f"Training steps of {arguments.batch_size} pairs, by shape and mean tokens of a caption, "
        f"{arguments.vocabulary_size:,} word pieces, {setting.precision} (peak {setting.peak / 1e9:,.0f} GFLOP/s)"
    )
    setting.console.print(table_of(title, ["shape", "contestant"], COLUMNS, rows))
    if peer:
        setting.console.print(RATIOS_EXPLAINED.format(peer="open_clip"))
    setting.console.print(KEPT_EXPLAINED)
    if arguments.fit:
        fits = [fit_row(arguments, shape, setting) for shape in shapes]
        setting.console.print(table_of_fits("the bundled emoji", "shape", "pairs", fits))
        rows += fits
    setting.write(rows)
    return 0
