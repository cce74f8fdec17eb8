"""What each objective on pictures costs a step, on the same clean pictures and encoder, eager as the configs are.

Beside the time for a clean picture stands that for a pass: as many tokens through the encoder as a whole picture has.
Rotation makes four passes of a picture, masked image modelling a fourth of one. Rotation's head is next to nothing, so
what a pass of another objective costs beyond one of rotation is that objective's own work.
"""

import statistics
from collections.abc import Sequence

from lit_pretrain.commands.benchmarks.contest import Contestant, hold, ratio
from lit_pretrain.commands.benchmarks.setting import Setting
from lit_pretrain.commands.benchmarks.step import our_step
from lit_pretrain.commands.benchmarks.tables import SPEED, Column, Row
from lit_pretrain.commands.benchmarks.vit_step import Shape, our_module, random_pictures
from lit_pretrain.errors import UserError
from lit_pretrain.memory import keep_memory
from lit_pretrain.modules import VisionPretraining
from lit_pretrain.objectives import (
    Colorization,
    MaskedImageModeling,
    PatchLocation,
    Rotation,
    VisionObjective,
)
from lit_pretrain.objectives.batch import DataFacts

COLUMNS = (
    Column("us/picture", "microseconds_per_picture"),
    Column("passes", "passes_per_picture", "{:.2f}"),
    Column("us/pass", "microseconds_per_pass"),
    Column("rotation's = 1", "pass_in_passes_of_rotation", "{:.2f}"),
    *SPEED,
)


def objectives() -> dict[str, VisionObjective]:
    """Every objective with its defaults, Rotation first, and variants that differ in cost."""
    return {
        "rotation": Rotation(),
        "rotation, one view": Rotation(views="random"),
        "patch location, crops": PatchLocation(),
        "patch location, tokens": PatchLocation(mode="tokens"),
        "colorization": Colorization(),
        "masked image modelling": MaskedImageModeling(),
    }


def measure_objectives(
    shapes: Sequence[Shape], batch_size: int, setting: Setting, rounds: int, seconds: float
) -> list[Row]:
    """A row for each shape and objective; what does not fit a shape is said and left out."""
    keep_memory()
    rows = []
    for shape in shapes:
        batch = random_pictures(shape, batch_size, setting.device)
        modules: dict[str, VisionPretraining] = {}
        contestants: list[Contestant] = []
        for name, objective in objectives().items():
            module = our_module(shape, compiled=False, objective=objective)
            try:
                objective.check_data(module.encoder, DataFacts(stored_size=shape.image_size))
            except UserError as error:
                setting.console.print(f"{shape.name} without {name}: {error}")
                continue
            modules[name] = module
            contestants.append(our_step(module, batch, setting.dtype))
        hold(contestants, rounds, seconds, kept=True)
        costs = [module.step_cost(batch) for module in modules.values()]
        passes = [passes_of(module) for module in modules.values()]
        for name, contestant, cost, one_picture in zip(modules, contestants, costs, passes, strict=True):
            median = statistics.median(contestant.kept_seconds)
            times = ratio(contestant.kept_seconds, contestants[0].kept_seconds)
            rows.append(
                {
                    "shape": shape.name,
                    "objective": name,
                    "precision": setting.precision,
                    "milliseconds_per_step": median * 1e3,
                    "microseconds_per_picture": median / batch_size * 1e6,
                    "passes_per_picture": one_picture,
                    "microseconds_per_pass": median / batch_size / one_picture * 1e6,
                    "pass_in_passes_of_rotation": times * passes[0] / one_picture,
                    "needed_teraflops": cost["flops"] / median / 1e12,
                    "share_of_peak": cost["flops"] / median / setting.peak,
                }
            )
    return rows


def passes_of(module: VisionPretraining) -> float:
    """Tokens that the objective sends through the encoder for a picture, in those of a whole picture."""
    encoder = module.encoder
    whole = encoder.prefix_tokens + encoder.patches
    sequences, tokens = module.objectives[0].pass_shape(encoder, 1, whole)
    return sequences * tokens / whole
