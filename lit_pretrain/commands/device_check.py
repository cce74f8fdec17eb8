"""`doctor --device`: does the accelerator compute what the CPU does, in every precision, and how fast is it?

Every objective and every module is trained for two steps on made-up samples, in fp32, bf16 and fp16; its loss is
compared with the CPU's in fp32 for the same weights and the same draws, which are made on the CPU, for generators of
different devices draw different numbers. Then what surrounds a training: checkpointed gradients, compiled blocks, a
checkpoint that is written and loaded, an export; and tokens and pictures a second beside the peak of matrix products as
measured here. Without an accelerator all of it runs on the CPU.
"""

import contextlib
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any, cast

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

import lit_pretrain.objectives
from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.backbone.ngram_embeddings import ngram_keys
from lit_pretrain.callbacks.peak import dtype_of_precision, measured_peak
from lit_pretrain.commands.checks import FAIL, OK, WARN, Row
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, from_pieces
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.modules.base import BaseModule
from lit_pretrain.objectives import Contrastive, Objective, VisionObjective
from lit_pretrain.objectives.objective import Batch, EncoderPass, arrange_batch, clean_inputs
from lit_pretrain.precision import resolve_precision
from lit_pretrain.quiet import quieten

# What Lightning calls them, and how far a loss may be from the CPU's in fp32, as a share of it.
PRECISIONS = {"fp32": ("32-true", 1e-4), "bf16": ("bf16-mixed", 0.05), "fp16": ("16-mixed", 0.02)}
# All of it takes less; what has not begun by then is left out, and said so. Compilation cannot be interrupted.
SECONDS, SECONDS_TO_COMPILE = 95.0, 40.0
SAMPLES, LENGTH, PIECES, IMAGE, STORED = 8, 16, 64, 24, 28
# Centred and unmirrored, so that nothing is drawn.
AS_STORED = ImageAugmentation(crop="center", flip=0.0)
TRANSFORMER: dict[str, Any] = {"depth": 2, "width": 32, "heads": 2}
# Of the measurement of speed on an accelerator, and on a CPU.
SIZES = {"cuda": (512, 8, 128, 64, 224, 16), "cpu": (128, 2, 64, 16, 64, 8)}
SPEED_SECONDS = 3.0


@dataclass(frozen=True)
class Case:
    """Something that is trained.

    Attributes:
        name: What stands in its row.
        make: Makes the module, its heads too.
        draws: Whether its steps draw at random, so that its losses are compared by passes that the CPU has made.
    """

    name: str
    make: Callable[..., BaseModule]
    draws: bool = True


def objective_kinds() -> list[type[Objective]]:
    """Every objective that the suite brings."""
    names = lit_pretrain.objectives.__all__
    kinds = [getattr(lit_pretrain.objectives, name) for name in names]
    return [
        kind
        for kind in kinds
        if isinstance(kind, type) and issubclass(kind, Objective) and kind not in (Objective, VisionObjective)
    ]


def tokenizer() -> WordPieceTokenizer:
    """Of made-up pieces."""
    letters = [f"{mark}{letter}" for mark in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]
    return WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, *letters][:PIECES], lowercase=True))


def text_encoder(**settings: Any) -> TextEncoder:
    """A small one."""
    given: dict[str, Any] = {"max_positions": LENGTH, "transformer": TransformerConfig(**TRANSFORMER)} | settings
    return TextEncoder(tokenizer().vocabulary_size, **given)


def vision_encoder(**settings: Any) -> VisionEncoder:
    """A small one."""
    given: dict[str, Any] = {
        "image_size": IMAGE,
        "patch_size": 4,
        "transformer": VisionTransformerConfig(**TRANSFORMER),
    } | settings
    return VisionEncoder(**given)


def pretraining(kind: type[Objective], teacher: str, **settings: Any) -> BaseModule:
    """A pretraining by one objective with its defaults."""
    if issubclass(kind, VisionObjective):
        return VisionPretraining(vision_encoder(), [kind()], AS_STORED, **settings)
    own: dict[str, Any] = {"causal": True} if kind.__name__ == "CausalLanguageModeling" else {}
    pieces = torch.arange(tokenizer().vocabulary_size)
    own |= {"ngrams": 2, "ngram_rows": len(pieces) ** 2} if kind.__name__ == "BagOfNgrams" else {}
    arguments = {"teacher": teacher} if kind.__name__ == "FeatureDistillation" else {}
    module = TextPretraining(text_encoder(**own), [kind(**arguments)], **settings)
    if module.encoder.lacks_ngrams:
        # Which ones are frequent the data would say; here all pairs.
        keys = ngram_keys(torch.cartesian_prod(pieces, pieces), 2)[0][:, 1].sort().values
        cast(Any, module.encoder.embeddings).ngrams.set_keys(keys)
    module.tokenizer = tokenizer()
    return module


def contrastive(loss: Any, **settings: Any) -> BaseModule:
    """Two towers."""
    objective = Contrastive(loss=loss)
    objective.fit_to(SAMPLES)
    module = ContrastivePretraining(
        text_encoder(), vision_encoder(), objective=objective, embedding_width=16, augmentation=AS_STORED, **settings
    )
    module.tokenizer = tokenizer()
    return module


def fine_tuning(encoder: Any, **settings: Any) -> BaseModule:
    """To three classes."""
    augmentation: dict[str, Any] = {"augmentation": AS_STORED} if isinstance(encoder, VisionEncoder) else {}
    module = FineTuning(encoder, **augmentation, **settings)
    module.facts = LabelFacts("single_label", ["a", "b", "c"], [3, 3, 2], SAMPLES)
    module.tokenizer = tokenizer() if isinstance(encoder, TextEncoder) else None
    return module


def cases(teacher: str) -> list[Case]:
    """All that is trained, each with its row."""
    found = [
        Case(kind.name.replace("_", " "), lambda kind=kind, **settings: pretraining(kind, teacher, **settings))
        for kind in objective_kinds()
    ]
    found += [
        Case(f"contrastive, {loss}", lambda loss=loss, **settings: contrastive(loss, **settings), draws=False)
        for loss in ("clip", "siglip")
    ]
    return [
        *found,
        Case("fine-tuning on texts", lambda **settings: fine_tuning(text_encoder(), **settings), draws=False),
        Case("fine-tuning on pictures", lambda **settings: fine_tuning(vision_encoder(), **settings), draws=False),
    ]


def made_up_batch() -> Batch:
    """What any module may ask for, on the CPU."""
    ids = torch.randint(len(SPECIAL_TOKENS), tokenizer().vocabulary_size, (SAMPLES, LENGTH))
    ids[:, 0], ids[:, LENGTH // 2], ids[:, -1] = tokenizer().cls_id, tokenizer().sep_id, tokenizer().sep_id
    order = torch.arange(SAMPLES)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones(SAMPLES, LENGTH, dtype=torch.bool),
        "token_type_ids": (torch.arange(LENGTH) > LENGTH // 2).long().expand(SAMPLES, -1).contiguous(),
        "next_sentence_label": order % 2,
        "label": order % 3,
        "images": torch.randint(0, 256, (SAMPLES, 3, STORED, STORED), dtype=torch.uint8),
        "caption_key": order,
        "picture_key": order,
        "sample_id": order,
    }


def batch_for(module: Any, batch: Batch) -> Batch:
    """What a module is given of the made-up batch: of texts no pictures, and the reverse."""
    if isinstance(module, ContrastivePretraining):
        return batch
    of_pictures = isinstance(module.encoder, VisionEncoder)
    given = ("images", "label", "sample_id")
    return {name: value for name, value in batch.items() if (name in given if of_pictures else name != "images")}


# -- steps and losses


def train(module: BaseModule, batch: Batch, device: torch.device, precision: str, steps: int = 2) -> list[float]:
    """Losses of some steps by Lightning's Trainer; the trainer stays the module's."""
    losses: list[float] = []
    step = module.training_step

    def training_step(self: Any, given: Any, index: int) -> Any:
        loss = step(given, index)
        losses.append(float("nan") if loss is None else float(cast(Any, loss)))
        return loss

    # A method, of which Lightning counts the arguments.
    object.__setattr__(module, "training_step", MethodType(training_step, module))
    try:
        trainer = lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1,
            precision=cast(Any, precision),
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        batches: Any = [dict(batch) for _ in range(steps)]
        trainer.fit(module, train_dataloaders=DataLoader(batches, batch_size=None))
    finally:
        object.__delattr__(module, "training_step")
    return losses


def passes_of(module: Any, batch: Batch) -> tuple[Batch, dict[str, EncoderPass | None]]:
    """What the objectives make of a batch on the CPU."""
    generator = torch.Generator().manual_seed(0)
    batch = module.prepare(dict(batch), None)
    batch = arrange_batch(module.objectives, batch, generator)
    return batch, {one.name: one.make_pass(batch, module.encoder, generator) for one in module.objectives}


@torch.no_grad()
def loss_by_passes(
    module: Any, batch: Batch, passes: dict[str, EncoderPass | None], device: torch.device, dtype: torch.dtype
) -> float:
    """The sum of the objectives' losses of passes that are made already."""
    module = module.to(device)
    batch = move_data_to_device(batch, device)
    total = 0.0
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for objective in module.objectives:
            made = passes[objective.name] or EncoderPass(clean_inputs(batch, module.encoder))
            inputs, targets = (move_data_to_device(part, device) for part in (made.inputs, made.targets))
            features = module.encoder.forward_features(**inputs)
            total += float(objective.compute(features, targets, batch, module.encoder).loss)
    return total


class Check:
    """The whole check on one device.

    Args:
        device: The accelerator, or the CPU.
        seconds: After which nothing is begun any more.
    """

    def __init__(self, device: torch.device, seconds: float = SECONDS) -> None:
        self.device = device
        self.ends = time.monotonic() + seconds
        self.precisions = dict(PRECISIONS)
        self.left_out: list[str] = []

    def in_time(self, name: str, needed: float = 0.0) -> bool:
        """Whether there is time for something; else it is noted."""
        if time.monotonic() + needed < self.ends:
            return True
        self.left_out.append(name)
        return False

    def rows(self, directory: Path) -> Iterator[Row]:
        """Every finding, as it is made."""
        yield from self.about_precisions()
        batch = made_up_batch()
        teacher = directory / "teacher"
        text_encoder().save_pretrained(teacher)
        tokenizer().save(teacher)
        every = cases(str(teacher))
        for case in every:
            if self.in_time(case.name):
                yield self.guarded(case.name, partial(self.case_row, case, batch))
        for kind, name in ((TextPretraining, "masked language modeling"), (VisionPretraining, "rotation")):
            case = next(one for one in every if one.name == name)
            words = "texts" if kind is TextPretraining else "pictures"
            yield self.guarded(f"gradient checkpointing, {words}", partial(self.checkpointing_row, case, batch))
            yield self.guarded(
                f"checkpoint and export, {words}",
                partial(self.files_row, case, kind, batch, directory),
            )
        for kind, words in ((TextPretraining, "tokens"), (VisionPretraining, "samples")):
            if self.in_time(f"speed in {words}", 2 * SPEED_SECONDS):
                yield from self.speed_rows(kind, words)
        for name in ("masked language modeling", "rotation"):
            label = f"compiled, {name}"
            if self.in_time(label, SECONDS_TO_COMPILE):
                case = next(one for one in every if one.name == name)
                yield self.guarded(label, partial(self.compiled_row, case, batch), WARN)
        if self.left_out:
            yield Row("time", WARN, f"not begun: {', '.join(self.left_out)}", "run it again while nothing else runs")

    def guarded(self, name: str, look: Callable[[], Row], status: str = FAIL) -> Row:
        """A row; what it did not foresee is a finding too."""
        try:
            row = look()
        except Exception as error:
            sentence = " ".join(str(error).split())[:200]
            return Row(name, status, f"{type(error).__name__}: {sentence}", "mend what the message names")
        return Row(name, row.status, row.found, row.advice)

    def about_precisions(self) -> list[Row]:
        """Which precisions the device can do."""
        found = []
        if self.device.type == "cpu":
            del self.precisions["fp16"]
            found.append(
                Row("fp16", WARN, "cannot be done on a CPU: 16-mixed needs an accelerator", "take bf16 or fp32")
            )
        elif self.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            del self.precisions["bf16"]
            found.append(Row("bf16", WARN, "this GPU has none in hardware", "take 16-mixed or fp32"))
        return found

    def case_row(self, case: Case, batch: Batch) -> Row:
        """Two steps in every precision, and how far the losses are from the CPU's in fp32."""
        made = self.made(case)
        batch = batch_for(made, batch)
        reference = deepcopy(made).eval()
        if case.draws:
            arranged, passes = passes_of(reference, batch)
            exact = loss_by_passes(reference, arranged, passes, torch.device("cpu"), torch.float32)
        else:
            exact = train(deepcopy(made), batch, torch.device("cpu"), "32-true", 1)[0]
        told, wrong = [], []
        for name, (precision, tolerance) in self.precisions.items():
            losses = train(deepcopy(made), batch, self.device, precision)
            loss = losses[0]
            if case.draws:
                # The precision's own type may be the other one's emulation; autocast decides.
                loss = loss_by_passes(
                    deepcopy(made).eval(), arranged, passes, self.device, dtype_of_precision(precision)
                )
            apart = abs(loss - exact) / max(abs(exact), 1e-6)
            told.append(f"{name} {apart:.1e}")
            if not (apart <= tolerance and all(one == one and abs(one) != float("inf") for one in losses)):
                wrong.append(f"{name} ({', '.join(f'{one:.4g}' for one in losses)})")
        found = f"2 steps; loss apart from the CPU's {exact:.4f}: {', '.join(told)}"
        if wrong:
            advice = "train in another precision, then try another version of torch"
            return Row(case.name, FAIL, f"{found}; wrong: {', '.join(wrong)}", advice)
        return Row(case.name, OK, found)

    def made(self, case: Case, **settings: Any) -> BaseModule:
        """A case's module, the same whenever it is asked for."""
        torch.manual_seed(0)
        module = case.make(**settings)
        module.configure_model()
        return module

    def both(self, case: Case, batch: Batch, setting: str) -> list[list[float]]:
        """Losses in fp32 without a setting and with it."""
        modules = [self.made(case, **{setting: on}) for on in (False, True)]
        return [train(module, batch_for(module, batch), self.device, "32-true") for module in modules]

    def checkpointing_row(self, case: Case, batch: Batch) -> Row:
        """Losses with activations that are computed again are those without."""
        losses = self.both(case, batch, "gradient_checkpointing")
        apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
        status = OK if apart <= 1e-4 * max(1.0, abs(losses[0][0])) else FAIL
        return Row("", status, f"losses of 2 steps are {apart:.1e} apart from those without it")

    def files_row(self, case: Case, kind: Any, batch: Batch, directory: Path) -> Row:
        """A checkpoint that is written by a training on the device is loaded, computes the same, and is exported."""
        module: Any = self.made(case)
        batch = batch_for(module, batch)
        train(module, batch, self.device, "32-true")
        path = directory / f"{kind.__name__}.ckpt"
        module.trainer.save_checkpoint(path)
        loaded = kind.from_checkpoint(path).to(self.device)
        module = module.to(self.device).eval()
        inputs = move_data_to_device(batch, self.device)
        if kind is VisionPretraining:
            given = {"images": module.encoder.normalize(module.encoder.frame(inputs["images"]))}
        else:
            given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            before, after = (one.encoder.forward_features(**given) for one in (module, loaded))
        if not torch.equal(before, after):
            return Row("", FAIL, f"what was loaded computes {float((before - after).abs().max()):.1e} apart")
        found = f"{path.stat().st_size / 2**20:.1f} MiB written and loaded, outputs are equal"
        from lit_pretrain.commands.exports.export_directory import make_export

        try:
            export = make_export(str(path), directory / f"export-{kind.__name__}")
        except UserError as error:
            return Row("", WARN, f"{found}; no export: {error}", "see the message")
        return Row("", OK, f"{found}; {export.sentence}")

    def compiled_row(self, case: Case, batch: Batch) -> Row:
        """Compiled blocks give the losses of those that are not."""
        before = time.monotonic()
        losses = self.both(case, batch, "compile_blocks")
        apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
        status = OK if apart <= 1e-3 * max(1.0, abs(losses[0][0])) else FAIL
        seconds = time.monotonic() - before
        return Row("", status, f"losses of 2 steps are {apart:.1e} apart from eager ones; {seconds:.0f} s to compile")

    def speed_rows(self, kind: Any, words: str) -> Iterator[Row]:
        """How many tokens or pictures a second a step of a larger model takes in each precision."""
        width, depth, length, samples, image, patch = SIZES.get(self.device.type, SIZES["cpu"])
        names = {"tokens": "tokens", "samples": "pictures"}
        transformer: dict[str, Any] = {"depth": depth, "width": width}
        for name, (precision, _) in self.precisions.items():
            if self.device.type == "cpu" and precision != resolve_precision("auto") and name != "fp32":
                # Emulated: it would be measured for minutes.
                continue
            label = f"{names[words]} a second, {name}"
            if not self.in_time(label, SPEED_SECONDS):
                continue
            torch.manual_seed(0)
            if kind is TextPretraining:
                vocabulary = 8192
                encoder: Any = TextEncoder(
                    vocabulary, max_positions=length, transformer=TransformerConfig(**transformer)
                )
                module: Any = TextPretraining(encoder, [lit_pretrain.objectives.MaskedLanguageModeling()])
                module.tokenizer = SimpleNamespace(
                    vocabulary_size=vocabulary,
                    mask_id=4,
                    special_ids=[0, 1, 2, 3, 4],
                    continuation_mask=[False] * vocabulary,
                )
                batch: Batch = {"input_ids": torch.randint(5, vocabulary, (samples, length))}
                batch["attention_mask"] = torch.ones(samples, length, dtype=torch.bool)
            else:
                vit = VisionTransformerConfig(**transformer)
                encoder = VisionEncoder(image_size=image, patch_size=patch, transformer=vit)
                module = VisionPretraining(encoder, [lit_pretrain.objectives.Rotation(views="random")], AS_STORED)
                batch = {"images": torch.randint(0, 256, (samples, 3, image, image), dtype=torch.uint8)}
            yield self.guarded(label, partial(self.speed_row, module, batch, precision, words), WARN)

    def speed_row(self, module: Any, batch: Batch, precision: str, words: str) -> Row:
        """One precision's."""
        from lit_pretrain.commands.benchmarks.step import our_step

        dtype = dtype_of_precision(precision)
        peak = measured_peak(self.device.type, dtype)
        batch = move_data_to_device(module.prepare(batch, None), self.device)
        contestant = our_step(module, batch, dtype)
        for _ in range(3):
            contestant.step()
        seconds: list[float] = []
        while sum(seconds) < SPEED_SECONDS / 2 and len(seconds) < 50 or len(seconds) < 3:
            start = time.perf_counter()
            contestant.step()
            seconds.append(time.perf_counter() - start)
        median = sorted(seconds)[len(seconds) // 2]
        cost = module.step_cost(batch)
        share = cost["flops"] / median / peak
        found = f"{cost[words] / median:,.0f}; {100 * share:.0f} % of the {peak / 1e12:.3g} TFLOP/s of matrix products"
        return Row("", OK, f"{found} measured here")


def run() -> list[Row]:
    """Check the accelerator, or the CPU if there is none; what was found."""
    quieten()
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        device = torch.device(cast(Any, torch.accelerator.current_accelerator()).type)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    matmul = torch.get_float32_matmul_precision()
    with tempfile.TemporaryDirectory(prefix="lit-pretrain-device-") as directory, contextlib.ExitStack() as stack:
        # Each of a hundred trainers would tell what it has found.
        lightning_logger = logging.getLogger("lightning.pytorch")
        stack.callback(lightning_logger.setLevel, lightning_logger.level)
        lightning_logger.setLevel(logging.ERROR)
        stack.enter_context(torch.random.fork_rng(devices=[0] if device.type == "cuda" else []))
        # What is in fp32 is exact, not TF32.
        torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_float32_matmul_precision, matmul)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        rows = [*Check(device).rows(Path(directory))]
    without = "" if device.type != "cpu" else " (there is no accelerator)"
    return [Row("device", OK, f"{name}{without}"), *rows]
