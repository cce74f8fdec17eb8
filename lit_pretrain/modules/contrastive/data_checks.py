"""Whether data fits two towers: the pairs themselves, and the texts and pictures of what is replayed."""

from typing import Any

from lit_pretrain.data.pairs.joint_data_module import PAIRS
from lit_pretrain.errors import UserError

REPLAYED = {"text": ("texts", "DocumentDataModule"), "vision": ("pictures", "ImageDataModule")}


def parts_of(data: Any) -> dict[str, Any]:
    """The data modules that a data module is made of: `pairs`, and what is replayed by the tower's name."""
    return getattr(data, "parts", {PAIRS: data})


def fit_to_pairs(module: Any, pairs: Any) -> None:
    """Check the pairs, and give a `ContrastivePretraining` their tokenizer.

    Raises:
        UserError: If there are no pairs, or pictures, captions or tokenizer do not fit.
    """
    if not {"images", "input_ids"} <= set(pairs.batch_fields):
        raise UserError("ContrastivePretraining learns from pictures with captions: give it a PairDataModule.")
    start = module.configs["text"].init_from
    if module.tokenizer is None and start is not None and pairs.tokenizer_path is None:
        raise UserError(
            f"{start} brings no tokenizer: set data.tokenizer to the one that its weights were trained with; that of "
            "CLIP comes with pip install open_clip_torch too."
        )
    if module.tokenizer is not None and module.tokenizer.hash != pairs.tokenizer.hash:
        raise UserError(
            f"The model's tokenizer is {module.tokenizer.hash} and the data's {pairs.tokenizer.hash}: set "
            "data.tokenizer to null to take the model's own."
        )
    module.tokenizer = pairs.tokenizer
    module.text_encoder.check_length(pairs.maximum_length)
    module.augmentation.check(pairs.facts.stored_size, module.vision_encoder.image_size)
    module.vision_encoder.frame_as_stored(pairs.facts.stored_size, module.trainer.training)
    module.inputs = {"maximum_length": pairs.maximum_length, "stored_size": pairs.facts.stored_size}


def check_replayed(replays: Any, parts: dict[str, Any]) -> None:
    """Every replay has its data, and no data is there for nothing.

    Args:
        replays: Of a `ContrastivePretraining`, by tower.
        parts: As `parts_of` tells.

    Raises:
        UserError: In one sentence.
    """
    for name, (contents, kind) in REPLAYED.items():
        if name in replays and name not in parts:
            raise UserError(
                f"model.{name}_replay learns from {contents}, and the data has none: take JointDataModule, with a "
                f"{kind} as data.{name}."
            )
        if name in parts and name not in replays:
            raise UserError(
                f"data.{name} gives {contents} that nothing learns from: set model.{name}_replay, or leave it out."
            )
