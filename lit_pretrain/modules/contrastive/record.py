"""What a checkpoint of two towers knows beside its weights, so that they can be used without their config and data.

And what the record of a run says of the module.
"""

from typing import Any

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import TWO_TOWERS, common_record, difference, objective_names
from lit_pretrain.modules.contrastive.replay import TextReplay, VisionReplay
from lit_pretrain.modules.export_format import export_facts
from lit_pretrain.modules.optimization import count_elements
from lit_pretrain.objectives.contrastive import Contrastive
from lit_pretrain.objectives.objective import objective_from

REPLAYS = {"text": TextReplay, "vision": VisionReplay}


def record_of(module: Any, data: Any) -> dict[str, Any]:
    """The record of a `ContrastivePretraining`: enough to build both towers again without any config.

    Args:
        module: The module.
        data: Its data module, or null.

    Returns:
        Primitives only, for `checkpoint["lit_pretrain"]`.
    """
    return common_record(module, data) | {
        "encoder_class": TWO_TOWERS,
        "text_encoder": module.text_encoder.settings(),
        "vision_encoder": module.vision_encoder.settings(),
        "share_weights": module.share_weights,
        "embedding_width": module.embedding_width,
        "objective": module.objective.settings(),
        "replays": {name: replay.settings() for name, replay in module.replays.items()},
        "lineage": dict(module.lineage),
        "inputs": dict(module.inputs),
    }


def arguments_of(record: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a `ContrastivePretraining` that a record's weights fit."""
    replays = {}
    for name, settings in record.get("replays", {}).items():
        objectives = [objective_from(setting) for setting in settings["objectives"]]
        replays[f"{name}_replay"] = REPLAYS[name](objectives, settings["weight"])
    return {
        "text_encoder": TextEncoder.from_settings(record["text_encoder"]),
        "vision_encoder": VisionEncoder.from_settings(record["vision_encoder"]),
        "share_weights": record["share_weights"],
        "embedding_width": record["embedding_width"],
        "objective": Contrastive(**record["objective"]),
        **replays,
    }


def check_kind(record: dict[str, Any], module: Any) -> None:
    """Refuse to load a checkpoint of another kind.

    Args:
        record: The checkpoint's, empty if it is not one of ours.
        module: What it would be loaded into.

    Raises:
        UserError: In one sentence.
    """
    if record.get("module") != type(module).__name__:
        raise UserError(
            f"The checkpoint is of {record.get('module', 'another program')}, not of {type(module).__name__}: give "
            "it to model.text.init_from or model.vision.init_from to start a tower from it."
        )


def check_record(record: dict[str, Any], module: Any) -> None:
    """Refuse to load a checkpoint of another shape or tokenizer, naming what differs.

    Args:
        record: The checkpoint's.
        module: The module, as its config and its data made it.

    Raises:
        UserError: In one sentence.
    """
    ours = record_of(module, None)
    names = ("text_encoder", "vision_encoder", "share_weights", "embedding_width", "tokenizer_hash")
    lines = [line for name in names for line in difference(name, record.get(name), ours.get(name))]
    lines += difference("objective.loss", record["objective"]["loss"], module.objective.loss)
    saved, own = (
        {name: " + ".join(objective_names(replay)) for name, replay in replays.items()}
        for replays in (record.get("replays", {}), ours["replays"])
    )
    lines += [line for name in REPLAYS for line in difference(f"{name}_replay", saved.get(name), own.get(name))]
    if lines:
        raise UserError(
            f"The checkpoint does not fit this config: {'; '.join(lines[:4])}; go on with the config.yaml of its own "
            "run."
        )


def widen_scalars(checkpoint: dict[str, Any]) -> None:
    """Give the optimiser's means of temperature and bias the one dimension that these have, if they are older.

    Args:
        checkpoint: As a whole; the weights themselves are widened where they are loaded.
    """
    for optimizer in checkpoint.get("optimizer_states", ()):
        for state in optimizer.get("state", {}).values():
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state and state[name].ndim == 0:
                    state[name] = state[name].reshape(1)


def description_of(module: Any) -> dict[str, Any]:
    """What a `ContrastivePretraining` is made of and where its towers come from, for the record of a run."""
    description: dict[str, Any] = {
        "parameters": count_elements(module.parameters()),
        "objectives": module.objective.loss,
        "duplicates": module.objective.duplicates,
        **{f"{name}_replay": replay.describe() for name, replay in module.replays.items()},
        "share_weights": module.share_weights,
        "embedding_width": module.embedding_width,
        "image_size": module.vision_encoder.image_size,
        "patch_size": module.vision_encoder.patch_size,
        **export_facts(*(tower.encoder for tower in module.towers.values())),
        **module.lineage,
    }
    for name, tower in module.towers.items():
        config = tower.encoder.config
        parameters = count_elements(tower.encoder.parameters())
        description |= {f"{name}_depth": config.depth, f"{name}_width": config.width}
        description |= {f"{name}_parameters": parameters, f"{name}_locked": module.configs[name].locked}
    if module.tokenizer is not None:
        description["tokenizer_hash"] = module.tokenizer.hash
    return description
