"""What a tower must be to compute what one of `open_clip`'s does, from its config or from the shapes of its tensors.

A config (`open_clip_config.json` of the hub's repositories, or one of the model configs in the package) tells all of
it. Tensors alone leave out the heads, which have 64 features in all of OpenAI's models, and the activation: OpenAI's
models are known by the three numbers that stand beside their weights, and have QuickGELU.
"""

import math
from typing import Any, Literal

from torch import Tensor

from lit_pretrain.errors import UserError

TowerName = Literal["text", "vision"]
Config = dict[str, Any]

NORM_EPSILON = 1e-5
HEAD_WIDTH = 64
# Of the pictures that OpenAI's models were trained with, which open_clip takes unless told otherwise.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# Numbers that OpenAI's archives hold beside the weights.
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
# What `settings_of_config` reads, with open_clip's defaults.
READ: dict[TowerName, Config] = {
    "vision": {
        "layers": 12,
        "width": 768,
        "head_width": HEAD_WIDTH,
        "mlp_ratio": 4.0,
        "patch_size": 16,
        "image_size": 224,
        "ls_init_value": None,
        "no_ln_pre": False,
        "final_ln_after_pool": False,
        "pool_type": "tok",
        "act_kwargs": None,
        "norm_kwargs": None,
    },
    "text": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
        "mlp_ratio": 4.0,
        "ls_init_value": None,
        "pool_type": "argmax",
        "act_kwargs": None,
        "norm_kwargs": None,
    },
}
# What changes nothing of a loaded model's features: settings of training, of tokenizers, or of parts that are absent.
WITHOUT_EFFECT: dict[TowerName, set[str]] = {
    "vision": {
        *("patch_dropout", "pos_embed_type", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "block_type"),
        *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    },
    "text": {
        *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "pad_id", "eos_id", "output_tokens", "block_type"),
        *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    },
}
POOLINGS = {"tok": "cls", "avg": "mean"}


def settings_of_config(config: Config, tower: TowerName, source: str) -> Config:
    """Settings of a `VisionEncoder` or a `TextEncoder`.

    Args:
        config: `model_cfg` and `preprocess_cfg`, or a `model_cfg` by itself.
        tower: Which of both is wanted.
        source: Where it comes from, for messages.

    Raises:
        UserError: If the tower is one that we do not have; the sentence names what it has.
    """
    model = config.get("model_cfg", config)
    tower_config = model.get(f"{tower}_cfg")
    if not isinstance(tower_config, dict):
        raise UserError(f"The config of {source} has no {tower}_cfg: give an open_clip_config.json of open_clip's.")
    refuse_what_we_lack(model, tower_config, tower, source)
    full_config = READ[tower] | {name: value for name, value in tower_config.items() if name in READ[tower]}
    transformer = {
        "depth": full_config["layers"],
        "width": full_config["width"],
        "heads": full_config["heads"] if tower == "text" else full_config["width"] // full_config["head_width"],
        "feed_forward_width": int(full_config["width"] * full_config["mlp_ratio"]),
        "norm_order": "pre",
        "activation": activation_of(model, full_config["act_kwargs"] or {}, source),
        "norm_epsilon": (full_config["norm_kwargs"] or {}).get("eps", NORM_EPSILON),
        "layer_scale": full_config["ls_init_value"],
    }
    if tower == "text":
        return text_settings(transformer, full_config["vocab_size"], full_config["context_length"])
    picture = config.get("preprocess_cfg", {})
    return vision_settings(
        transformer,
        one_side(full_config["image_size"], "image_size", source),
        one_side(full_config["patch_size"], "patch_size", source),
        embedding_norm=not full_config["no_ln_pre"],
        pooling=POOLINGS[full_config["pool_type"]],
        norm_after_pooling=full_config["final_ln_after_pool"],
        mean=tuple(picture.get("mean", MEAN)),
        std=tuple(picture.get("std", STD)),
    )


def settings_of_state(state: dict[str, Tensor], tower: TowerName, source: str) -> Config:
    """The same from the tensors alone, which are those of a checkpoint without a config.

    Args:
        state: The whole checkpoint, by open_clip's names without `text.`.
        tower: Which of both is wanted.
        source: Where it comes from, for messages.

    Raises:
        UserError: If the tower is one that we do not have, or a tensor that tells of it is missing.
    """
    refuse_foreign_names(state, tower, source)
    prefix = "visual." if tower == "vision" else ""
    names = {
        "vision": ("visual.conv1.weight", "visual.positional_embedding"),
        "text": ("token_embedding.weight", "positional_embedding"),
    }[tower] + (f"{prefix}transformer.resblocks.0.mlp.c_fc.weight",)
    missing = [name for name in names if name not in state]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}, so it holds no {tower} tower of open_clip's.")
    kernel, position, expand = (state[name] for name in names)
    width = kernel.shape[0] if tower == "vision" else kernel.shape[1]
    blocks = [name.split(".") for name in state if name.startswith(f"{prefix}transformer.resblocks.")]
    place = prefix.count(".") + 2
    transformer = {
        "depth": 1 + max(int(parts[place]) for parts in blocks),
        "width": width,
        "heads": max(1, width // HEAD_WIDTH),
        "feed_forward_width": expand.shape[0],
        "norm_order": "pre",
        "activation": "quick_gelu" if any(mark in state for mark in OPENAI_MARKS) else "gelu",
        "norm_epsilon": NORM_EPSILON,
        "layer_scale": 1e-5 if f"{prefix}transformer.resblocks.0.ls_1.gamma" in state else None,
    }
    if tower == "text":
        return text_settings(transformer, len(kernel), len(position))
    side = math.isqrt(len(position) - 1)
    if side * side != len(position) - 1:
        raise UserError(f"{source} has positions of an oblong grid: VisionEncoder loads square pictures only.")
    patch_size = kernel.shape[-1]
    embedding_norm = "visual.ln_pre.weight" in state
    return vision_settings(transformer, side * patch_size, patch_size, embedding_norm=embedding_norm)


def text_settings(transformer: Config, vocabulary_size: int, positions: int) -> Config:
    """Settings of a `TextEncoder` that is CLIP's."""
    return {
        "vocabulary_size": vocabulary_size,
        "transformer": transformer,
        "max_positions": positions,
        "segments": 0,
        "embedding_norm": False,
        "pooling": "end_of_text",
        "causal": True,
    }


def vision_settings(
    transformer: Config,
    image_size: int,
    patch_size: int,
    embedding_norm: bool = True,
    pooling: str = "cls",
    norm_after_pooling: bool = False,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Config:
    """Settings of a `VisionEncoder` that is CLIP's."""
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "transformer": transformer,
        "embedding_norm": embedding_norm,
        "patch_bias": False,
        "pooling": pooling,
        "norm_after_pooling": norm_after_pooling,
        "mean": mean,
        "std": std,
    }


def activation_of(model: Config, settings: Config, source: str) -> str:
    """Our name of the activation of both towers."""
    if not settings:
        return "quick_gelu" if model.get("quick_gelu") else "gelu"
    if settings == {"approximate": "tanh"} and not model.get("quick_gelu"):
        return "gelu_tanh"
    raise UserError(f"The config of {source} asks for an activation with {settings}, which no encoder here has.")


def one_side(size: int | list[int], name: str, source: str) -> int:
    """Side of a square that is given as one number or as two."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise UserError(f"The config of {source} has an oblong {name} {size}: VisionEncoder loads squares only.")
    return sides.pop()


def refuse_what_we_lack(model: Config, tower_config: Config, tower: TowerName, source: str) -> None:
    """Raise a `UserError` naming whatever of this tower of open_clip's no encoder here computes."""
    unread = tower_config.keys() - READ[tower].keys() - WITHOUT_EFFECT[tower]
    has = {"a text decoder (CoCa)": bool(model.get("multimodal_cfg"))}
    pooling = tower_config.get("pool_type", READ[tower]["pool_type"])
    if tower == "vision":
        unread.discard("timm_model_name")
        has |= {
            f"timm's model {tower_config.get('timm_model_name')}": bool(tower_config.get("timm_model_name")),
            "a ModifiedResNet": isinstance(tower_config.get("layers"), list | tuple),
            f"pool_type '{pooling}'": pooling not in POOLINGS,
        }
    else:
        unread -= {"hf_model_name", "no_causal_mask"}
        has |= {
            f"the hub's model {tower_config.get('hf_model_name')}": bool(tower_config.get("hf_model_name")),
            "attention to padding (no_causal_mask)": bool(tower_config.get("no_causal_mask")),
            f"pool_type '{pooling}'": pooling != "argmax",
            "no projection (proj_type none)": tower_config.get("proj_type", "linear") == "none",
        }
        unread.discard("proj_type")
    has |= {name: bool(tower_config[name]) for name in sorted(unread)}
    has["norm_kwargs beyond eps"] = bool((tower_config.get("norm_kwargs") or {}).keys() - {"eps"})
    refuse([name for name, present in has.items() if present], tower, source)


def refuse_foreign_names(state: dict[str, Tensor], tower: TowerName, source: str) -> None:
    """Raise a `UserError` naming the kind of tower that some tensors' names tell of, if it is none of ours."""
    marks = {"a text decoder (CoCa)": "text_decoder."}
    if tower == "vision":
        marks |= {"one of timm's models": "visual.trunk.", "a ModifiedResNet": "visual.layer1."}
    else:
        marks |= {"one of the hub's models": "transformer.embeddings."}
    refuse([kind for kind, mark in marks.items() if any(name.startswith(mark) for name in state)], tower, source)


def refuse(names: list[str], tower: TowerName, source: str) -> None:
    """Raise a `UserError` if there are names of what is lacking."""
    if names:
        kind = "ViT with CLIP's own blocks" if tower == "vision" else "causal Transformer of CLIP's"
        raise UserError(
            f"The {tower} tower of {source} has {' and '.join(names)}: of open_clip's checkpoints, those load whose "
            f"{tower} tower is a {kind}."
        )
