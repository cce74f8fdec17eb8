"""`doctor --gradients`: is a contrastive training, as it is arranged, that of one process with the whole batch?

One step of a config is taken by its own trainer (processes, chunks, precision), and its loss and the gradient of every
parameter are compared with those of all pairs in one process without chunks. The pairs and their variations are the
same; dropout is off, whose draws differ between arrangements, and what is replayed is left out, whose loss is a mean
over samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed

from lit_pretrain.cli import lightning_cli
from lit_pretrain.cli.arguments import CONFIG_OPTIONS, values_of
from lit_pretrain.commands.checks import FAIL, OK, Row
from lit_pretrain.data.pairs.joint_data_module import PAIRS
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining
from lit_pretrain.modules.contrastive.data_checks import parts_of
from lit_pretrain.modules.contrastive.replay import Replay
from lit_pretrain.objectives.contrastive import Pairs
from lit_pretrain.objectives.gathering import together
from lit_pretrain.objectives.objective import Batch
from lit_pretrain.trainer_state import callbacks_of, data_module_of

# Pairs of the batch unless `--pairs` says otherwise: the reference holds the activations of all of them.
MOST_PAIRS = 256
# Largest difference that rounding explains: in float32 as a share of the loss and of a parameter's largest gradient.
TOLERANCE = 1e-5
# In lower precision a difference may be twice what the precision itself makes, and never more than this.
LOW_PRECISION_TOLERANCE = 0.1
# Parameters whose gradients are smaller than this share of the largest of all are compared with that share of it: what
# should be zero (an attention's key bias) is nothing but rounding.
SMALL_SHARE = 0.1
# What one step needs nothing of. The training keeps its length, which its schedule is laid over, and is stopped.
ONE_STEP = {
    "min_steps": "null",
    "min_epochs": "null",
    "logger": "false",
    "enable_checkpointing": "false",
    "enable_progress_bar": "false",
    "limit_val_batches": "0",
    "num_sanity_val_steps": "0",
    "fast_dev_run": "false",
}


@dataclass
class Found:
    """A loss and the gradients of what is trained, by name."""

    loss: Tensor
    gradients: dict[str, Tensor]


class OneStep(Callback):
    """Keeps what a training step comes to, and what it should come to.

    Args:
        pairs: Of all processes; null takes the config's batch, at most `MOST_PAIRS`.
    """

    def __init__(self, pairs: int | None) -> None:
        self.pairs = pairs
        self.arrangement = ""
        self.rows: list[Row] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave out the data of what is replayed, and fit the batch and its chunks to the number of pairs."""
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise UserError(
                "doctor --gradients compares whole gradients, and this strategy shards them: check with "
                "--trainer.strategy ddp, which gathers embeddings and takes chunks alike."
            )
        # By now captions have the tokenizer that they share with texts.
        parts, processes = parts_of(data_module_of(trainer)), trainer.world_size
        for name in [*parts]:
            if name != PAIRS:
                del parts[name]
        data = parts[PAIRS]
        pairs = self.pairs or min(data.batch_size, max(2, MOST_PAIRS // processes)) * processes
        if pairs % processes or pairs < 2 * processes:
            raise UserError(
                f"--pairs {pairs} cannot be shared out among {processes} processes: give a multiple of {processes}, at "
                f"least {2 * processes}."
            )
        data.batch_size = pairs // processes
        if pl_module.chunk_size is not None:
            # Else a batch smaller than the config's might be one chunk only.
            pl_module.chunk_size = min(pl_module.chunk_size, (data.batch_size + 1) // 2)
        chunks = "" if pl_module.chunk_size is None else f" in chunks of {pl_module.chunk_size}"
        self.arrangement = (
            f"{processes} x {data.batch_size} pairs{chunks}, {type(trainer.strategy).__name__}, "
            f"{trainer.precision}, on {trainer.strategy.root_device.type}"
        )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Take the reference, in this precision and in float32, before anything moves."""
        pl_module.eval()
        batches = gather_values(batch.get(PAIRS, batch))
        with trainer.precision_plugin.forward_context():
            self.expected = reference(pl_module, batches, batch_idx)
        with torch.autocast(pl_module.device.type, enabled=False):
            self.exact = reference(pl_module, batches, batch_idx) if "mixed" in trainer.precision else None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Keep the gradients as the optimiser gets them, before they are clipped."""
        self.gradients = {name: gradient_of(parameter) for name, parameter in trained(pl_module).items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Compare, and end the training."""
        trainer.should_stop = True
        losses = [loss.cpu() for loss in gather_values(outputs["loss"].detach())]
        result = Found(torch.stack(losses).mean(), self.gradients)
        low = trainer.precision not in ("32-true", "64-true")
        limit = LOW_PRECISION_TOLERANCE if low else TOLERANCE
        self.rows = compare(self.arrangement, result, self.expected, self.exact, limit)


class GradientCommandLine(lightning_cli.CommandLine):
    """Runs the check in the place of a training."""

    pairs: ClassVar[int | None] = None

    def before_fit(self) -> None:
        """Leave out what is replayed, and refuse what is not contrastive."""
        if not isinstance(self.model, ContrastivePretraining):
            raise UserError(
                f"doctor --gradients checks ContrastivePretraining, and this config trains "
                f"{type(self.model).__name__}, whose loss is a mean over samples: give it a config of contrastive "
                "pretraining."
            )
        self.model.replays = cast(Mapping[str, Replay], torch.nn.ModuleDict())
        self.check = OneStep(self.pairs)
        callbacks_of(self.trainer)[:] = [self.check]


def run(arguments: list[str], pairs: int | None) -> tuple[list[Row], bool]:
    """Check a config.

    Args:
        arguments: As for `fit`.
        pairs: As of `OneStep`.

    Returns:
        What was found, and whether this process is the one to tell it.

    Raises:
        UserError: If the config is wrong, or is none that can be checked.
    """
    if pairs is not None and pairs < 2:
        raise UserError(f"--pairs is {pairs}, and there is nothing to compare with: give at least 2.")
    if not values_of(arguments, *CONFIG_OPTIONS):
        raise UserError("doctor --gradients checks a config: add --config FILE, and what else fit would be given.")
    for name, value in ONE_STEP.items():
        arguments = [*arguments, f"--trainer.{name}", value]
    GradientCommandLine.pairs = pairs
    line = cast(GradientCommandLine, lightning_cli.command_line(["fit", *arguments], GradientCommandLine))
    if line.check.rows is None:
        raise UserError(
            "The step was taken in processes that cannot be asked for its gradients: set --trainer.strategy ddp."
        )
    return line.check.rows, line.trainer.is_global_zero


def trained(module: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that a gradient is wanted of."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def gradient_of(parameter: Tensor) -> Tensor:
    """A copy on the CPU, zero where there is none."""
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
    return gradient.detach().float().cpu().clone()


def gather_values(own: Any) -> list[Any]:
    """What each process holds, in the order of their ranks."""
    if not together():
        return [own]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, move_data_to_device(own, torch.device("cpu")))
    return values


def reference(module: ContrastivePretraining, batches: list[Batch], batch_index: int) -> Found:
    """Loss and gradients of all pairs in this process, without chunks."""
    chunk_size, module.chunk_size = module.chunk_size, None
    try:
        texts, pictures, keys = [], [], []
        for rank, batch in enumerate(batches):
            pairs = move_data_to_device(batch, module.device)
            generator = module.generator_for("augmentation", module.seed, module.global_step, batch_index, rank)
            draws = module.augmentation.draw(pairs["images"], module.vision_encoder.image_size, generator)
            texts.append(module.embed_texts(pairs))
            pictures.append(module.embed_pictures(pairs["images"], draws))
            keys.append(torch.stack([pairs["caption_key"], pairs["picture_key"]]))
        whole = Pairs(torch.cat(texts), torch.cat(pictures), *torch.cat(keys, dim=1))
        loss = module.objective.compute(whole, across_processes=False).loss
        parameters = trained(module)
        raw_gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
    finally:
        module.chunk_size = chunk_size
    gradients = {
        name: (torch.zeros_like(one) if gradient is None else gradient).float().cpu()
        for (name, one), gradient in zip(parameters.items(), raw_gradients, strict=True)
    }
    return Found(loss.detach().float().cpu(), gradients)


def difference(measured: Found, expected: Found) -> dict[str, float]:
    """How far apart two are: of the loss, and of each gradient as a share of its largest value."""
    largest = max(float(gradient.abs().max()) for gradient in expected.gradients.values())
    result = {"loss": float((measured.loss - expected.loss).abs() / expected.loss.abs().clamp_min(1e-12))}
    for name, gradient in expected.gradients.items():
        scale = max(float(gradient.abs().max()), SMALL_SHARE * largest, 1e-30)
        result[name] = float((measured.gradients[name] - gradient).abs().max()) / scale
    # NaN is larger than anything.
    return {name: value if value == value else float("inf") for name, value in result.items()}


def compare(arrangement: str, measured: Found, expected: Found, exact: Found | None, largest: float) -> list[Row]:
    """Rows of what was found in all processes; the same in each.

    Args:
        arrangement: In words.
        measured: This process's.
        expected: The reference.
        exact: The reference in float32, for mixed precision.
        largest: Difference that is never explained by rounding.
    """
    ranks = gather_values(difference(measured, expected))
    apart = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
    own = difference(expected, exact) if exact is not None else None
    rows = [Row("arrangement", OK, f"{arrangement}; compared with all pairs in one process without chunks")]
    for label, names in groups_of(apart).items():
        name = max(names, key=apart.__getitem__)
        limit = largest
        if own is not None:
            limit = min(limit, max(TOLERANCE, 2 * max(own[name] for name in names)))
        text = f"{apart[name]:.1e} apart (at most {limit:.1e} is rounding)"
        if len(names) > 1:
            text += f", the furthest of {len(names)}: {name}"
        wrong = apart[name] > limit
        advice = "what is trained is not the whole batch's loss: look at what is your own in it" if wrong else ""
        rows.append(Row(label, FAIL if wrong else OK, text, advice))
    if own is not None:
        rows.append(Row("precision", OK, f"float32 is {own['loss']:.1e} (loss) and {max(own.values()):.1e} away"))
    return rows


def groups_of(apart: dict[str, float]) -> dict[str, list[str]]:
    """What is told in a row each: the loss, the temperature (with siglip's bias), all other gradients."""
    temperature = [name for name in apart if name.startswith("objective.")]
    others = [name for name in apart if name != "loss" and name not in temperature]
    groups = {"loss": ["loss"], "temperature's gradient": temperature, "gradients": others}
    return {label: names for label, names in groups.items() if names}
