"""AdamW with BERT's parameter groups, alone or beside Muon, and learning-rate schedules by the step or by the clock.

AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with epsilon 1e-6, decay 0.01 on matrices only and linear warm-up
then linear decay is BERT's recipe; cosine and constant-then-decay (Zhai et al. 2022, arXiv:2106.04560; as "warm-up,
stable, decay" Hu et al. 2024, arXiv:2404.06395) are the usual alternatives.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.backbone.row_look_up import has_sparse_gradient
from lit_pretrain.errors import UserError, check_length, check_number, counted, is_share
from lit_pretrain.modules import muon
from lit_pretrain.modules.bfloat16_moments import LEAST_ELEMENTS, Bfloat16MomentsAdamW, is_large
from lit_pretrain.modules.clock import TrainingClock, seconds_of
from lit_pretrain.modules.sparse_embeddings import ROW_MOMENT, SparseAdamW

# What FSDP and its activation checkpointing put into the names of what they wrap.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Groups that are not plainly AdamW's.
KINDS = ("sparse", "muon", "bfloat16_moments")
# What a parameter group holds beside AdamW's keys.
OWN_KEYS = ("rate_factor", "unfreeze_at", "label", *KINDS)


@dataclass(frozen=True)
class AdamWConfig:
    """Settings of the optimiser.

    Args:
        learning_rate: Highest learning rate of the schedule.
        weight_decay: Decay of matrices; layer norms, biases and other 1-d parameters never decay.
        beta1: Decay rate of the mean of gradients.
        beta2: Decay rate of the mean of squared gradients.
        epsilon: Added to the root of the mean of squares.
        algorithm: `adamw`, or `muon` for the matrices inside the blocks and AdamW for all else; one learning rate
            serves both (`lit_pretrain.modules.muon`). Not with strategies that shard parameters.
        momentum: Decay rate of Muon's mean of gradients; null for its authors' 0.95.
        sparse_embeddings: Update embedding tables only at the rows that a batch has read, with one mean of squares a
            row and no mean of gradients. Tables are those of n-grams, and of word pieces unless an objective predicts
            them by the same table; with `ngrams` of n-grams alone, as those of word pieces are small and frequent rows
            learn more by AdamW. Not with strategies that shard parameters.
        moments: What AdamW's two means of large matrices are kept in: `bfloat16` is half of the memory and of the
            checkpoint's share, rounded by chance so that small changes are not lost
            (`lit_pretrain.modules.bfloat16_moments`). Those of rows and Muon's stay in float32. Not with strategies
            that shard parameters.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    algorithm: Literal["adamw", "muon"] = "adamw"
    momentum: float | None = None
    sparse_embeddings: bool | Literal["ngrams"] = False
    moments: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        check_number("optimizer.learning_rate", self.learning_rate, above=0)
        check_number("optimizer.weight_decay", self.weight_decay, least=0)
        check_number("optimizer.beta1", self.beta1, least=0, below=1)
        check_number("optimizer.beta2", self.beta2, least=0, below=1)
        check_number("optimizer.epsilon", self.epsilon, above=0)
        if self.sparse_embeddings not in (True, False, "ngrams"):
            raise UserError(f"optimizer.sparse_embeddings is {self.sparse_embeddings}: give true, false or ngrams.")
        if self.moments not in ("float32", "bfloat16"):
            raise UserError(f"optimizer.moments is {self.moments}: give float32 or bfloat16.")
        check_number("optimizer.momentum", self.momentum, least=0, below=1)
        if self.momentum is not None and self.algorithm != "muon":
            raise UserError(
                "optimizer.momentum is Muon's, and optimizer.algorithm is adamw, whose own is optimizer.beta1: leave "
                "it out, or set optimizer.algorithm to muon."
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the training, as a factor of its highest value.

    Args:
        shape: After the warm-up `linear` or `cosine` decay to `final`, or `constant_then_decay`: warm-up, stable,
            decay.
        warm_up: Steps (an integer) or share of all steps (0.1; 1.0 is the whole training, 1 one step) to rise linearly
            from 0.
        decay: Steps or share, as of `warm_up`, of the final decay of `constant_then_decay`.
        final: Factor at the end, from 0 to 1.
        decay_shape: Of that decay: `linear`, or `sqrt`, 1 minus the root of its share that is over (Haegele et al.
            2024, arXiv:2405.18392).
        budget: Time to train for ("30m", "1h30m", "2d"; evaluation does not count), in the place of steps or epochs:
            when it is over the rate is `final`, and the training ends. `warm_up` and `decay` are shares of it.
    """

    shape: Literal["linear", "cosine", "constant_then_decay"] = "linear"
    warm_up: int | float = 0.1
    decay: int | float = 0.2
    final: float = 0.0
    decay_shape: Literal["linear", "sqrt"] = "linear"
    budget: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no length, and shares that are more than the whole."""
        check_length("schedule.warm_up", self.warm_up)
        check_length("schedule.decay", self.decay)
        check_number("schedule.final", self.final, least=0, most=1)
        decays = self.shape == "constant_then_decay"
        if decays and is_share(self.warm_up) and is_share(self.decay) and self.warm_up + self.decay > 1 + 1e-9:
            raise UserError(
                f"schedule.warm_up {self.warm_up} and schedule.decay {self.decay} are shares of one training: give two "
                "whose sum is at most 1."
            )
        if self.decay_shape != "linear" and not decays:
            raise UserError(
                f"schedule.decay_shape is {self.decay_shape}, and schedule.shape {self.shape} has no decay of its own: "
                "set it to constant_then_decay, or leave decay_shape out."
            )
        if self.seconds is None:
            return
        for name, length in {"warm_up": self.warm_up, **({"decay": self.decay} if decays else {})}.items():
            if length and not is_share(length):
                raise UserError(
                    f"schedule.{name} is {counted(int(length), 'step')}, and schedule.budget {self.budget} may be over "
                    "before: give a share of the time (0.1)."
                )

    @property
    def seconds(self) -> float | None:
        """The budget in seconds, or null.

        Raises:
            UserError: If it is no time.
        """
        return None if self.budget is None else seconds_of(str(self.budget), "schedule.budget")

    def check(self, total_steps: int) -> None:
        """Refuse a schedule that is longer than the training, and would end before its rate was reached.

        Args:
            total_steps: Optimiser steps of the whole training.

        Raises:
            UserError: In one sentence.
        """
        lengths = {"warm_up": self.warm_up}
        if self.shape == "constant_then_decay":
            lengths["decay"] = self.decay
        # Shares of few steps may round to one more than all.
        most = total_steps + all(is_share(length) for length in lengths.values())
        if sum(in_steps(length, total_steps) for length in lengths.values()) > most:
            settings = " and ".join(f"schedule.{name} is {length}" for name, length in lengths.items())
            raise UserError(
                f"{settings}, and the training ends at step {total_steps}: give a share of its steps (0.1), or raise "
                "trainer.max_steps."
            )

    def factor(self, step: int, total_steps: int) -> float:
        """Factor of the learning rate for the step that follows `step` finished ones.

        Args:
            step: Optimiser steps done.
            total_steps: Optimiser steps of the whole training.
        """
        warm_up = in_steps(self.warm_up, total_steps)
        if step < warm_up:
            # The first step already moves: 1 / warm_up rather than 0.
            return (step + 1) / warm_up
        decay = total_steps - warm_up
        if self.shape == "constant_then_decay":
            decay = min(in_steps(self.decay, total_steps), decay)
        return self._decayed((step - (total_steps - decay)) / max(1, decay))

    def factor_at(self, share: float) -> float:
        """Factor of the learning rate when so much of the budget is over, from 0 to 1."""
        if share < self.warm_up:
            return share / self.warm_up
        decay = 1.0 - self.warm_up
        if self.shape == "constant_then_decay":
            decay = min(self.decay, decay)
        return self._decayed((share - (1.0 - decay)) / decay if decay else float(share >= 1.0))

    def _decayed(self, progress: float) -> float:
        """Factor when so much of the decay is over; below 0 before it has begun."""
        progress = min(1.0, max(0.0, progress))
        if self.decay_shape == "sqrt":
            progress = math.sqrt(progress)
        remaining = 0.5 * (1 + math.cos(math.pi * progress)) if self.shape == "cosine" else 1.0 - progress
        return self.final + (1.0 - self.final) * remaining


def in_steps(length: int | float, total_steps: int | float) -> int:
    """A length given in steps or as a share of all steps, in steps; see `errors.is_share`.

    Raises:
        UserError: If it is a share of steps whose number nobody knows.
    """
    if is_share(length) and math.isinf(total_steps):
        raise UserError(
            f"The clock ends this training (model.schedule.budget), so that {length} of its steps cannot be told: give "
            "freeze.unfreeze_every and unlock_after as whole numbers of steps, or trainer.max_steps in the place of "
            "the budget."
        )
    return round(length * total_steps) if is_share(length) else int(length)


@dataclass(frozen=True)
class TrainedPart:
    """Parameters that are trained at a rate of their own.

    Attributes:
        module: Whose parameters. Its own `no_weight_decay()`, and that of any module inside, names parameters that must
            not decay although they are matrices.
        rate_factor: Of the learning rate.
        start: Optimiser step before which the rate is 0. A part waits so, rather than without gradients, so that
            processes agree on which gradients there are.
        names: Those of the module's parameters that belong to this part; None for all.
        label: What the logs call its rate.
    """

    module: nn.Module
    rate_factor: float = 1.0
    start: int = 0
    names: frozenset[str] | None = None
    label: str = ""


def make_optimizer(trained: Iterable[nn.Module | TrainedPart], config: AdamWConfig, fused: bool = True) -> AdamW:
    """AdamW over whatever is trained: each trainable parameter once, at the first part that has it.

    Every part makes a group that decays and one that does not (1-d parameters, and what `no_weight_decay()` names), and
    the same of tables that have sparse gradients, of what Muon trains and of what has moments in bfloat16, with the
    keys `rate_factor`, `unfreeze_at`, `label`, `sparse`, `muon` and `bfloat16_moments` beside the algorithm's own.

    Args:
        trained: Parts; modules are one part together, at the learning rate itself.
        config: AdamW's settings.
        fused: One kernel for all parameters; not with fp16's gradient scaler, which Lightning lets nobody clip then.

    Raises:
        UserError: If no parameter is trained, or none that `moments` is for.
    """
    trained = list(trained)
    modules = [part for part in trained if isinstance(part, nn.Module)]
    parts = [TrainedPart(nn.ModuleList(modules))] if modules else []
    parts += [part for part in trained if isinstance(part, TrainedPart)]
    groups: list[dict[str, Any]] = []
    muon_settings = muon.SETTINGS | ({} if config.momentum is None else {"momentum": config.momentum})
    seen: set[int] = set()
    for part in parts:
        exempt = undecayed_parameters(part.module)
        matrices = {id(matrix) for matrix in muon.block_matrices(part.module)} if config.algorithm == "muon" else ()
        kinds = [(decayed, kind) for kind in ("", *KINDS) for decayed in (True, False)]
        parameters_by_kind: dict[tuple[bool, str], list[nn.Parameter]] = {kind: [] for kind in kinds}
        for name, parameter in named_parameters(part.module):
            if not parameter.requires_grad or id(parameter) in seen or not (part.names is None or name in part.names):
                continue
            seen.add(id(parameter))
            decayed = dimensions_of(parameter) > 1 and id(parameter) not in exempt
            kind = "muon" if id(parameter) in matrices else "sparse" if has_sparse_gradient(parameter) else ""
            if not kind and config.moments == "bfloat16" and is_large(parameter):
                kind = "bfloat16_moments"
            parameters_by_kind[decayed, kind].append(parameter)
        groups += [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr": config.learning_rate * part.rate_factor,
                "rate_factor": part.rate_factor,
                "unfreeze_at": part.start,
                "label": part.label,
                **{name: kind == name for name in KINDS},
                **(muon_settings if kind == "muon" else {}),
            }
            for (decayed, kind), parameters in parameters_by_kind.items()
            if parameters
        ]
    if not groups:
        raise UserError(
            "Nothing is left to train: all of the encoder is frozen (model.freeze), and nothing else has parameters: "
            "freeze less of it, or add an objective that has a head."
        )
    betas = (config.beta1, config.beta2)
    kinds_of_groups = {name for group in groups for name in KINDS if group[name]}
    if config.moments == "bfloat16" and "bfloat16_moments" not in kinds_of_groups:
        raise UserError(
            f"optimizer.moments bfloat16 is for parameters of {LEAST_ELEMENTS:,} numbers and more that AdamW updates "
            "as a whole, and none is trained here: leave it out."
        )
    algorithms = {"muon": muon.MuonWithAdamW, "sparse": SparseAdamW, "bfloat16_moments": Bfloat16MomentsAdamW}
    # Each of them does what the next ones do too.
    algorithm = next((algorithms[name] for name in algorithms if name in kinds_of_groups), AdamW)
    optimizer = algorithm(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=fused)
    optimizer.register_load_state_dict_pre_hook(check_state)
    own = [{key: group[key] for key in OWN_KEYS} for group in groups]

    def keep_own_keys(loaded: Optimizer) -> None:
        # Loading replaces all keys of a group, and states of earlier versions lack these.
        for group, keys in zip(loaded.param_groups, own, strict=True):
            group.update(keys)

    optimizer.register_load_state_dict_post_hook(keep_own_keys)
    return optimizer


def check_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Refuse a state of other parameter groups: its moments would be taken for those of other parameters.

    Args:
        optimizer: That is about to load it.
        state: As `state_dict` returned it, perhaps of another version or another config.

    Raises:
        UserError: In one sentence.
    """
    for key, setting, values in (
        ("sparse", "optimizer.sparse_embeddings", ("false", "true")),
        ("muon", "optimizer.algorithm", ("adamw", "muon")),
        ("bfloat16_moments", "optimizer.moments", ("float32", "bfloat16")),
    ):
        had, has = (
            any(group.get(key) for group in groups) for groups in (state["param_groups"], optimizer.param_groups)
        )
        if had != has:
            raise UserError(
                f"The checkpoint's training had {setting} {values[had]}, whose moments are not this one's: resume with "
                f"{setting} {values[had]}, or start a new training from its weights (init_from)."
            )
    saved = [name for group in state["param_groups"] for name in group["params"]]
    sizes = [len(group["params"]) for group in state["param_groups"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fits = sizes == [len(group["params"]) for group in optimizer.param_groups]
    for name, parameter in zip(saved, parameters, strict=False):
        moment = state["state"].get(name, {}).get("exp_avg")
        row_moment = state["state"].get(name, {}).get(ROW_MOMENT)
        fits = fits and (moment is None or moment.numel() == parameter.numel())
        fits = fits and (row_moment is None or len(row_moment) == len(parameter))
    if not fits:
        raise UserError(
            "The checkpoint's optimiser state is of other parameter groups than this config's: resume with the "
            "config.yaml and the version of its own run, or start a new training from its weights (init_from)."
        )


def named_parameters(module: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """As nn.Module's, with the names of before FSDP and activation checkpointing wrapped any module inside."""
    for name, parameter in module.named_parameters(remove_duplicate=remove_duplicate):
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        yield name, parameter


def undecayed_parameters(module: nn.Module) -> set[int]:
    """Ids of the parameters that a module or any module inside names in `no_weight_decay()`."""
    undecayed = set()
    for submodule in module.modules():
        if hasattr(submodule, "no_weight_decay"):
            names = cast(Any, submodule).no_weight_decay()
            undecayed |= {id(parameter) for name, parameter in named_parameters(submodule) if name in names}
    return undecayed


def remember_dimensions(module: nn.Module) -> None:
    """Note which shape each parameter has, before FSDP makes shards of one dimension of all of them.

    To be called when all parameters are there; a shard's note stays as it is.
    """
    for parameter in module.parameters():
        cast(Any, parameter).whole_shape = whole_shape(parameter)


def dimensions_of(parameter: nn.Parameter) -> int:
    """Dimensions of a parameter, or of the whole that it is a shard of."""
    return len(whole_shape(parameter))


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter, or of the whole that it is a shard of."""
    return getattr(parameter, "whole_shape", parameter.shape)


def count_elements(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers parameters hold, in all processes together."""
    return sum(whole_shape(parameter).numel() for parameter in parameters)


def layers_of(encoder: TextEncoder | VisionEncoder) -> dict[str, int]:
    """The layer of every parameter: 0 the embeddings, 1 to depth the blocks, depth + 1 what follows the last block.

    What follows the last block is the final norm and what pools; an encoder may have neither, and the layer counts all
    the same, as the task's head stands there.

    Args:
        encoder: With `config.depth` and timm's `group_matcher`.
    """
    # timm's own function leaves out layers without parameters, and does not know what FSDP makes of names.
    matcher = encoder.group_matcher()
    layers = {}
    for name, _ in named_parameters(encoder):
        block = re.match(matcher["blocks"], name)
        stem = 0 if re.match(matcher["stem"], name) else encoder.config.depth + 1
        layers[name] = stem if block is None else 1 + int(block[1])
    return layers


def layer_parts(
    encoder: TextEncoder | VisionEncoder, layer_decay: float = 1.0, starts: dict[int, int] | None = None
) -> list[TrainedPart]:
    """A part for each layer of an encoder, with `layer_decay` of the rate of the layer after it.

    Args:
        encoder: With timm's `group_matcher`.
        layer_decay: Factor from what follows the last block to the last block, from a block to the one before it, and
            from the first block to the embeddings (Clark et al. 2020, arXiv:2003.10555).
        starts: Layer, by `layers_of`'s numbers -> optimiser step before which its rate is 0; None for none.
    """
    names: dict[int, set[str]] = {}
    for name, layer in layers_of(encoder).items():
        names.setdefault(layer, set()).add(name)
    last = encoder.config.depth + 1
    labels = {0: "embeddings", last: "norm_and_pooling"}
    return [
        TrainedPart(
            encoder,
            layer_decay ** (last - layer),
            (starts or {}).get(layer, 0),
            frozenset(held),
            labels.get(layer, f"block_{layer}"),
        )
        for layer, held in names.items()
    ]


def rates_of(optimizer: Optimizer) -> dict[str, float]:
    """The rates of the next step, for the logs.

    Returns:
        `learning_rate`, that of the config and its schedule, and `learning_rate/LABEL` of each part with a label, where
        they differ.
    """
    groups = optimizer.param_groups
    # A part that waits tells nothing of the schedule.
    rates = {"learning_rate": max(group["lr"] / group["rate_factor"] for group in groups)}
    labelled = {group["label"]: group["lr"] for group in groups if group["label"]}
    if any(group["rate_factor"] != 1.0 or group["unfreeze_at"] for group in groups):
        rates |= {f"learning_rate/{label}": rate for label, rate in labelled.items()}
    return rates


def make_scheduler(
    optimizer: Optimizer, config: ScheduleConfig, total_steps: int | float, clock: TrainingClock | None = None
) -> LambdaLR:
    """The schedule, to be stepped after each optimiser step; groups wait for their `unfreeze_at`.

    Args:
        optimizer: Its learning rates are the highest.
        config: The schedule.
        total_steps: Optimiser steps of the whole training; infinite where the clock ends it.
        clock: Which `config.budget` is laid over.
    """

    def factor(step: int) -> float:
        if clock is not None and clock.budget is not None:
            return config.factor_at(clock.share)
        return config.factor(step, int(total_steps))

    def factor_of(group: dict[str, Any]) -> Callable[[int], float]:
        first = group.get("unfreeze_at", 0)
        return lambda step: factor(step) if step >= first else 0.0

    return StepSchedule(optimizer, [factor_of(group) for group in optimizer.param_groups])


class StepSchedule(LambdaLR):
    """A LambdaLR whose settings, and the optimiser's, stay as they were made when the state of a training is loaded.

    With a state torch brings back the rates, decays, betas and kernels that it was saved with: settings that a person
    changes before going on would be recorded and not used.

    Args:
        optimizer: Its learning rates are the schedule's highest.
        factors: Of the rate of each group, by steps done.
    """

    def __init__(self, optimizer: Optimizer, factors: list[Callable[[int], float]]) -> None:
        super().__init__(optimizer, factors)
        optimizer.register_load_state_dict_pre_hook(with_own_settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the steps that were done, at the rates that this schedule has there."""
        own = self.base_lrs
        super().load_state_dict(state_dict)
        self.base_lrs = own
        self._last_lr = [rate * factor(self.last_epoch) for rate, factor in zip(own, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def with_own_settings(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state with the settings of the optimiser that loads it.

    Raises:
        UserError: If it trained other parameters.
    """
    saved_settings, own_settings = (
        [len(group["params"]) for group in groups] for groups in (state_dict["param_groups"], optimizer.param_groups)
    )
    if saved_settings != own_settings:
        raise UserError(
            f"The checkpoint's training had {sum(saved_settings)} tensors in {len(saved_settings)} groups to train, "
            "this one has "
            f"{sum(own_settings)} in {len(own_settings)}: go on with what its own run froze and with its learning "
            "rates by layer, or start a new run from its weights (init_from)."
        )
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = [saved_settings | own for saved_settings, own in zip(state_dict["param_groups"], settings, strict=True)]
    return state_dict | {"param_groups": groups}
