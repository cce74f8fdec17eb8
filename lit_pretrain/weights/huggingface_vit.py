"""ViTs and CLIPs of `transformers` in: ViT, MAE, DINOv2 (with registers or none), CLIP's towers, SigLIP's pictures.

A directory has config.json with a model_type of `KINDS`, weights, and for pictures preprocessor_config.json, which
alone tells the colours' mean and std. Everything is computed as transformers does, at the pictures' size of the config;
for other sizes positions are resized as timm does, which differs a little from transformers.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.weights.huggingface_bert import ACTIVATIONS, labels_of, read_tensors_of
from lit_pretrain.weights.open_clip_settings import TowerName
from lit_pretrain.weights.public import LinearHead, PublicTower, PublicWeights

Config = dict[str, Any]

# What transformers takes where a config.json says nothing, by model_type.
VIT: Config = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
}
DINOV2 = VIT | {"layer_norm_eps": 1e-6, "patch_size": 14, "mlp_ratio": 4, "use_swiglu_ffn": False}
CLIP_VISION = VIT | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32}
SIGLIP_VISION = VIT | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
CLIP_TEXT: Config = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
KINDS = {
    "vit": VIT,
    "vit_mae": VIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2 | {"num_register_tokens": 4},
    "clip_vision_model": CLIP_VISION,
    "siglip_vision_model": SIGLIP_VISION,
    "clip_text_model": CLIP_TEXT,
}
# Whose config.json holds two.
PAIRS = {
    "clip": {"vision": "clip_vision_model", "text": "clip_text_model"},
    "siglip": {"vision": "siglip_vision_model"},
}
# Theirs -> ours, applied in this order to names without the model's prefix.
NAMES = (
    (r"^embeddings\.(cls_token|class_embedding)", "embeddings.class_token"),
    (r"^embeddings\.register_tokens", "embeddings.registers"),
    (r"^embeddings\.token_embedding\.", "embeddings.token."),
    (r"^embeddings\.position_embedding(s|\.weight)", "embeddings.position"),
    (r"^embeddings\.patch_embedding(s\.projection)?\.", "embeddings.projection."),
    (r"^pre_layrnorm\.", "embeddings.norm."),
    (r"^encoder\.layers?\.", "transformer.blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1."),
    (r"\.self_attn\.q_proj\.", ".attention.query."),
    (r"\.self_attn\.k_proj\.", ".attention.key."),
    (r"\.self_attn\.v_proj\.", ".attention.value."),
    (r"\.(attention\.output\.dense|self_attn\.out_proj)\.", ".attention.projection."),
    (r"^(transformer\.blocks\.\d+\.)(intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.", r"\1feed_forward.expand."),
    (r"^(transformer\.blocks\.\d+\.)(output\.dense|mlp\.fc2|mlp\.weights_out)\.", r"\1feed_forward.contract."),
    (r"\.(layernorm_before|norm1|layer_norm1)\.", ".attention_norm."),
    (r"\.(layernorm_after|norm2|layer_norm2)\.", ".feed_forward_norm."),
    (r"\.layer_scale1\.lambda1$", ".attention_branch.0.gamma"),
    (r"\.layer_scale2\.lambda1$", ".feed_forward_branch.0.gamma"),
    (r"^(layernorm|final_layer_norm)\.", "transformer.final_norm."),
    (r"^head\.probe$", "pooler.attention.latent"),
    (r"^head\.attention\.out_proj\.", "pooler.attention.proj."),
    (r"^head\.layernorm\.", "pooler.attention.norm."),
    (r"^head\.mlp\.", "pooler.attention.mlp."),
)
# Written by transformers beside the weights, or read in its pretraining only.
IGNORED = {"embeddings.position_ids", "embeddings.mask_token"}
# What a name of ours begins with: everything else is a head.
OURS = ("embeddings.", "transformer.", "encoder.", "pooled_norm.", "pooler.attention.", "post_layernorm.", "head.")
CLASSIFIER = ("classifier.weight", "classifier.bias")
PREPROCESSOR = "preprocessor_config.json"


def model_type(directory: Path) -> str | None:
    """What a directory's config.json says it is, or null if it cannot be read or says nothing."""
    try:
        return json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def load_weights(directory: Path) -> PublicWeights:
    """Read the encoder of pictures in a directory as settings and tensors of a `VisionEncoder`.

    Returns:
        With a classifier on its class token and the names of other heads.

    Raises:
        UserError: If it is none of `KINDS`, or has no weights or no colours' mean and std.
    """
    kind, config = read_config(directory)
    if kind in PAIRS:
        return load_tower(directory, "vision")
    state = without_prefix(read_tensors_of(directory), ("vision_model.", "vit.", "dinov2.", "dinov2_with_registers."))
    settings = vision_settings(kind, config, directory, state)
    head, names = None, [name for name in CLASSIFIER if name in state]
    if len(names) == 2 and state[CLASSIFIER[0]].shape[1:] == (settings["transformer"]["width"],) and kind == "vit":
        weight, bias = (state.pop(name).float() for name in CLASSIFIER)
        head = LinearHead(weight, bias, *labels_of(config, len(weight)), names=CLASSIFIER)
    tensors, left_out = our_tensors(state, kind, settings["transformer"])
    return PublicWeights(str(directory), settings, tensors, head=head, left_out=left_out)


def load_tower(directory: Path, tower: TowerName) -> PublicTower:
    """One tower of a CLIP, with its projection; of a SigLIP that of pictures, which has none.

    Raises:
        UserError: As for `load_weights`, or if there is no such tower here.
    """
    kind, config = read_config(directory)
    pair = PAIRS.get(kind)
    if pair is not None:
        if tower not in pair:
            raise UserError(
                f"The text tower of {directory} is SigLIP's, which no encoder here computes: take that of pictures, "
                f"{directory}:vision."
            )
        config, kind = config.get(f"{tower}_config") or {}, pair[tower]
    elif tower != ("text" if kind == "clip_text_model" else "vision"):
        raise UserError(f"{directory} is a {kind} and has no {tower} tower: give a directory of a whole CLIP.")
    tensors_of_both = read_tensors_of(directory)
    other_prefix = {"text": "vision_model.", "vision": "text_model."}[tower]
    state = without_prefix(
        {n: v for n, v in tensors_of_both.items() if not n.startswith(other_prefix)}, (f"{tower}_model.",)
    )
    settings = text_settings(config, directory) if tower == "text" else vision_settings(kind, config, directory, state)
    tensors, _ = our_tensors(state, kind, settings["transformer"])
    projection = tensors_of_both.get({"text": "text_projection.weight", "vision": "visual_projection.weight"}[tower])
    scale, bias = (
        float(tensors_of_both[name]) if name in tensors_of_both else None for name in ("logit_scale", "logit_bias")
    )
    projection = None if projection is None else projection.float().contiguous()
    return PublicTower(
        str(directory), settings, tensors, projection=projection, log_scale=scale, logit_bias=bias, config=config
    )


def read_config(directory: Path) -> tuple[str, Config]:
    """The kind of model that a directory's config.json tells of, and all that it says.

    Raises:
        UserError: If it tells of none of what is known here.
    """
    kind = model_type(directory)
    if kind is None or (kind not in KINDS and kind not in PAIRS):
        raise UserError(f"{directory}/config.json tells of {kind}: of transformers' ViTs, {', '.join(KINDS)} load.")
    return kind, json.loads((directory / "config.json").read_text(encoding="utf-8"))


def without_prefix(state: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors by the names of the bare model."""
    pattern = re.compile("|".join(f"^{re.escape(prefix)}" for prefix in prefixes))
    return {pattern.sub("", name): value for name, value in state.items()}


def transformer_settings(config: Config, directory: Path) -> Config:
    """What all configs of transformers say of their blocks."""
    if config["hidden_act"] not in ACTIVATIONS:
        raise UserError(
            f"{directory} asks for the activation '{config['hidden_act']}': ours are {', '.join(ACTIVATIONS)}."
        )
    return {
        "depth": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "feed_forward_width": config["intermediate_size"],
        "norm_order": "pre",
        "activation": ACTIVATIONS[config["hidden_act"]],
        "norm_epsilon": config["layer_norm_eps"],
    }


def text_settings(config: Config, directory: Path) -> Config:
    """Settings of a `TextEncoder` that is a tower of CLIP's texts."""
    full_config = CLIP_TEXT | config
    # 2 is what old configs say, and means the highest id.
    if full_config["eos_token_id"] not in (2, full_config["vocab_size"] - 1):
        raise UserError(
            f"The texts of {directory} end at token {full_config['eos_token_id']}, and CLIP's at the highest one, "
            f"{full_config['vocab_size'] - 1}: no encoder here pools such ones."
        )
    return {
        "vocabulary_size": full_config["vocab_size"],
        "transformer": transformer_settings(full_config, directory),
        "max_positions": full_config["max_position_embeddings"],
        "segments": 0,
        "embedding_norm": False,
        "pooling": "end_of_text",
        "causal": True,
    }


def vision_settings(kind: str, config: Config, directory: Path, state: dict[str, Tensor]) -> Config:
    """Settings of a `VisionEncoder` of the shape that a config describes."""
    full_config = KINDS[kind] | config
    for name in ("image_size", "patch_size"):
        if not isinstance(full_config[name], int):
            raise UserError(f"{directory} has an oblong {name} {full_config[name]}: VisionEncoder loads squares only.")
    if full_config["image_size"] % full_config["patch_size"]:
        raise UserError(
            f"{directory} has pictures of {full_config['image_size']} pixels that its patches of "
            f"{full_config['patch_size']} do not divide, which VisionEncoder lacks: choose another ViT."
        )
    clip, siglip, dino = (kind.startswith(name) for name in ("clip", "siglip", "dinov2"))
    if dino:
        full_config["intermediate_size"] = int(full_config["hidden_size"] * full_config["mlp_ratio"])
    transformer = transformer_settings(full_config, directory)
    if dino and full_config["use_swiglu_ffn"]:
        # As DINOv2 rounds it.
        inner = (int(full_config["intermediate_size"] * 2 / 3) + 7) // 8 * 8
        transformer |= {"activation": "swiglu", "feed_forward_width": inner}
    if dino:
        transformer["layer_scale"] = 1.0
    pooling = "cls"
    if siglip:
        pooling = "map" if "head.probe" in state else "mean"
    picture = read_preprocessor(directory)
    return {
        "image_size": full_config["image_size"],
        "patch_size": full_config["patch_size"],
        "channels": full_config["num_channels"],
        "transformer": transformer,
        "class_token": not siglip,
        "registers": full_config.get("num_register_tokens", 0),
        # Where there are registers the class token alone has a position, which becomes part of it.
        "class_position": not full_config.get("num_register_tokens"),
        "embedding_norm": clip,
        "patch_bias": not clip,
        "pooling": pooling,
        "norm_after_pooling": clip,
        "mean": tuple(picture["image_mean"]),
        "std": tuple(picture["image_std"]),
        "crop_share": crop_share_of(picture),
    }


def read_preprocessor(directory: Path) -> Config:
    """What is said of pictures.

    Raises:
        UserError: If the colours' mean and std are not told.
    """
    try:
        content = json.loads((directory / PREPROCESSOR).read_text(encoding="utf-8"))
        return {"image_mean": content["image_mean"], "image_std": content["image_std"], **content}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory} has no {PREPROCESSOR} that tells image_mean and image_std ({type(error).__name__}), without "
            "which pictures would be prepared in another way: save the image processor beside the weights."
        ) from error


def crop_share_of(picture: Config) -> float | None:
    """Share of a picture's shorter side that is looked at; null where it is not told."""
    size, crop = picture.get("size"), picture.get("crop_size")
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    side = crop.get("height") if isinstance(crop, dict) else crop
    if not picture.get("do_center_crop") or not isinstance(shortest, int) or not isinstance(side, int):
        return None
    return min(1.0, side / shortest)


def our_tensors(state: dict[str, Tensor], kind: str, transformer: Config) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's tensors by our names, and the names of heads, which are left out."""
    tensors = our_names(state, kind)
    left_out = sorted(name for name in tensors if not name.startswith(OURS))
    tensors = {name: value for name, value in tensors.items() if name.startswith(OURS)}
    for index in range(transformer["depth"]):
        # Models without these biases compute the same with zeros.
        name = f"transformer.blocks.{index}.attention.query_key_value.bias"
        tensors.setdefault(name, torch.zeros(3 * transformer["width"]))
    return tensors, left_out


def our_names(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Tensors by our names, queries, keys and values in one."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in IGNORED:
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if kind == "clip_text_model" and name == "embeddings.position":
            name = "embeddings.position.weight"
        # Over the pooled features of CLIP, over all tokens of SigLIP.
        name = name.replace("post_layernorm.", "pooled_norm." if kind.startswith("clip") else "transformer.final_norm.")
        tensors[name] = value
    if "embeddings.registers" in tensors and "embeddings.position" in tensors:
        position = tensors["embeddings.position"]
        tensors["embeddings.class_token"] = tensors["embeddings.class_token"] + position[:, :1]
        tensors["embeddings.position"] = position[:, 1:]
    for name in [name for name in tensors if ".attention.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in tensors for part in parts):
            tensors[name.replace(".query.", ".query_key_value.")] = torch.cat([tensors.pop(part) for part in parts])
    for part in ("weight", "bias"):
        if (joined := tensors.pop(f"head.attention.in_proj_{part}", None)) is not None:
            third = len(joined) // 3
            tensors[f"pooler.attention.q.{part}"], tensors[f"pooler.attention.kv.{part}"] = (
                joined[:third],
                joined[third:],
            )
    return tensors
