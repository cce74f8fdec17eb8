"""What a `VisionEncoder` must be to compute what a ViT of timm's does, and the reverse.

A model of timm's tells all of it. Its tensors alone do not: heads, activation, the norms' epsilon, the colours' mean
and std and a pooling without parameters leave no trace there, and are never guessed.
"""

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_pretrain.errors import UserError

POOLINGS = {"token": "cls", "avg": "mean", "map": "map"}
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
# Architectures of timm whose norms have this epsilon, which its config.json cannot say; everything else it can.
ARCHITECTURES = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
# Of the feed-forward SwiGLUPacked, which its config.json cannot say either.
GATED_ARCHITECTURES = {1e-6: "vit_giant_patch14_dinov2"}
# Settings that no tensor tells.
NOT_IN_TENSORS = ("heads", "activation", "norm_epsilon", "pooling", "mean", "std")
# What timm's names call these widths.
SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


def settings_of_state(state: dict[str, Tensor], source: str | Path, **others: Any) -> dict[str, Any]:
    """Settings of a `VisionEncoder` of the shape that timm's tensors have.

    Args:
        state: The tensors.
        source: Where they come from, for messages.
        **others: What they do not tell, all of `NOT_IN_TENSORS`; not the pooling where it has parameters.

    Raises:
        UserError: If something is not told, or the tensors are no ViT's of timm's.
    """
    kernel, position = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    blocks = [name.split(".") for name in state if name.startswith("blocks.")]
    if kernel is None or position is None or kernel.ndim != 4 or not blocks or "blocks.0.mlp.fc2.weight" not in state:
        raise UserError(
            f"{source} holds no ViT in timm's format, which has patch_embed.proj.weight, pos_embed and blocks.0.*: its "
            f"tensors are {', '.join(list(state)[:5])}, ..."
        )
    width, channels, patch_size, _ = kernel.shape
    class_token = "cls_token" in state
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    grid_size, class_position = grid_of(position.shape[1], int(class_token) + registers, source)
    if "attn_pool.latent" in state:
        others["pooling"] = "map"
    if "blocks.0.attn.q_norm.weight" in state:
        others["heads"] = width // len(state["blocks.0.attn.q_norm.weight"])
    if "blocks.0.mlp.fc1_g.weight" in state:
        others["activation"] = "swiglu"
    missing = [name for name in NOT_IN_TENSORS if others.get(name) is None]
    if missing:
        raise UserError(
            f"The tensors of {source} do not tell {', '.join(missing)}: give the name of timm's model that they belong "
            f"to as `architecture` (model.architecture), {example(width, patch_size, grid_size * patch_size)}."
        )
    return {
        "image_size": grid_size * patch_size,
        "patch_size": patch_size,
        "channels": channels,
        "transformer": {
            "depth": 1 + max(int(parts[1]) for parts in blocks),
            "width": width,
            "heads": others["heads"],
            "feed_forward_width": state["blocks.0.mlp.fc2.weight"].shape[1],
            "activation": others["activation"],
            "norm_epsilon": others["norm_epsilon"],
            "bias": "blocks.0.attn.proj.bias" in state,
            "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
            "query_key_norm": "blocks.0.attn.q_norm.weight" in state,
            "final_norm": "norm.weight" in state,
        },
        "class_token": class_token,
        "registers": registers,
        "class_position": class_position,
        "embedding_norm": "norm_pre.weight" in state,
        "patch_bias": "patch_embed.proj.bias" in state,
        "pooling": others["pooling"],
        "norm_after_pooling": "fc_norm.weight" in state,
        "mean": tuple(others["mean"]),
        "std": tuple(others["std"]),
    }


def example(width: int, patch_size: int, image_size: int) -> str:
    """A name that such tensors might have in timm, or one of those that it has."""
    from timm import is_model

    names = [f"vit_{SIZES.get(width)}_patch{patch_size}_{side}" for side in (image_size, 224)]
    known_name = next((name for name in names if is_model(name)), None)
    return f"perhaps {known_name} or one of its variants" if known_name else "as in vit_base_patch16_224.mae"


def grid_of(positions: int, prefix: int, source: str | Path) -> tuple[int, bool]:
    """Patches of a side, and whether the prefix has positions, from the number of positions.

    Both readings fit only where there are registers, and those have none by custom: so that is tried first.
    """
    for own, class_position in ((0, False), (prefix, True)):
        side = math.isqrt(max(0, positions - own))
        if side and side * side == positions - own:
            # Without a prefix there is nothing to say: ViT's default then.
            return side, class_position or not prefix
    raise UserError(
        f"{source} has {positions} positions for {prefix} class token and registers and a square grid, which is not "
        "possible: VisionEncoder loads square pictures only."
    )


def settings_of_model(model: nn.Module, source: str | Path) -> dict[str, Any]:
    """Settings of a `VisionEncoder` that computes what a model of timm's does."""
    refuse_what_we_lack(model, source)
    # timm's annotations do not tell which attributes such a model has.
    vit: Any = model
    block, config = vit.blocks[0], vit.pretrained_cfg
    channels, means, stds = vit.in_chans, config.get("mean"), config.get("std")
    has_colours = means is not None and stds is not None and len(means) == len(stds) == channels
    pooled_norm = isinstance(vit.fc_norm, nn.LayerNorm)
    default_pooling = "cls" if vit.has_class_token else "mean"
    return {
        "image_size": vit.patch_embed.img_size[0],
        "patch_size": vit.patch_embed.patch_size[0],
        "channels": channels,
        "transformer": {
            "depth": len(vit.blocks),
            "width": vit.embed_dim,
            "heads": block.attn.num_heads,
            "feed_forward_width": block.mlp.fc2.in_features,
            "activation": "swiglu" if is_swiglu(block.mlp) else activation_of(block.mlp.act),
            "norm_epsilon": block.norm1.eps,
            "bias": block.attn.proj.bias is not None,
            "dropout": block.attn.proj_drop.p,
            "attention_dropout": block.attn.attn_drop.p,
            "stochastic_depth": getattr(vit.blocks[-1].drop_path1, "drop_prob", 0.0),
            "layer_scale": None if isinstance(block.ls1, nn.Identity) else getattr(block.ls1, "init_values", 1e-5),
            "final_norm": isinstance(vit.norm, nn.LayerNorm),
            "query_key_norm": isinstance(block.attn.q_norm, nn.LayerNorm),
        },
        "class_token": vit.has_class_token,
        "registers": vit.num_reg_tokens,
        "class_position": not vit.no_embed_class,
        "embedding_norm": isinstance(vit.norm_pre, nn.LayerNorm),
        "patch_bias": vit.patch_embed.proj.bias is not None,
        "pooling": POOLINGS[vit.global_pool] if vit.global_pool else default_pooling,
        "norm_after_pooling": pooled_norm,
        "mean": tuple(means) if has_colours else (0.5,) * channels,
        "std": tuple(stds) if has_colours else (0.5,) * channels,
        "crop_share": config.get("crop_pct"),
    }


def activation_of(module: nn.Module) -> str | None:
    """Our name of an activation, or null if we have no such one."""
    if getattr(module, "approximate", "none") == "tanh":
        return "gelu_tanh"
    return ACTIVATIONS.get(type(module).__name__)


def is_swiglu(module: nn.Module) -> bool:
    """Whether a feed-forward of timm's is silu(A x) * B x and a matrix more."""
    from timm.layers import GluMlp, SwiGLU

    packed = type(module) is GluMlp and not module.gate_last
    return (packed or type(module) is SwiGLU) and isinstance(getattr(module, "act", None), nn.SiLU)


def refuse_what_we_lack(model: nn.Module, source: str | Path) -> None:
    """Raise a `UserError` naming whatever of this model of timm's a `VisionEncoder` does not compute."""
    from timm.layers import Attention, Mlp, PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(model) is not VisionTransformer:
        raise UserError(
            f"{source} is a {type(model).__name__}, not a VisionTransformer: VisionEncoder loads plain ViTs."
        )
    # As in `settings_of_model`.
    vit: Any = model
    block, patches = vit.blocks[0], vit.patch_embed
    lacking = {f"blocks of kind {type(block).__name__}": type(block) is not Block}
    if type(block) is Block:
        attention: Any = block.attn
        feed_forward: Any = block.mlp
        gated = is_swiglu(feed_forward)
        lacking |= {
            f"attention of kind {type(attention).__name__}": type(attention) is not Attention,
            "a norm of what the attention mixes": isinstance(getattr(attention, "norm", None), nn.LayerNorm),
            "a gate in the attention": getattr(attention, "gate", None) is not None,
            "biases of queries, keys and values alone": attention.proj.bias is None and attention.qkv.bias is not None,
            f"a feed-forward of kind {type(feed_forward).__name__}": type(feed_forward) is not Mlp and not gated,
            "norms inside the feed-forward": not isinstance(getattr(feed_forward, "norm", None), nn.Identity),
            f"norms of kind {type(block.norm1).__name__}": not isinstance(block.norm1, nn.LayerNorm),
            f"the activation {type(feed_forward.act).__name__}": not gated and activation_of(feed_forward.act) is None,
        }
    lacking |= {
        f"a patch embedding of kind {type(patches).__name__}": type(patches) is not PatchEmbed,
        "a norm in the patch embedding": not isinstance(getattr(patches, "norm", None), nn.Identity),
        "oblong pictures": len(set(patches.img_size)) > 1 or len(set(patches.patch_size)) > 1,
        f"pictures of {patches.img_size[0]} pixels that its patches of {patches.patch_size[0]} do not divide": bool(
            patches.img_size[0] % patches.patch_size[0]
        ),
        "no position embedding": vit.pos_embed is None,
        f"pooling '{vit.global_pool}'": vit.global_pool not in ("", *POOLINGS),
        "class token and registers in the pooling": vit.pool_include_prefix,
    }
    names = [name for name, present in lacking.items() if present]
    if names:
        raise UserError(f"{source} has {' and '.join(names)}, which VisionEncoder lacks: choose another ViT.")


def config_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The config.json of an encoder, its Transformer resolved: timm's arguments, and how pictures are prepared."""
    transformer = settings["transformer"]
    prefix_tokens = int(settings["class_token"]) + settings["registers"]
    positioned_prefix = settings["class_position"] and settings["positions"] == "learned"
    gated = transformer["activation"] == "swiglu"
    pooling = {ours: theirs for theirs, ours in POOLINGS.items()}[settings["pooling"]]
    # timm counts what both halves of a SwiGLU take in.
    inner = transformer["feed_forward_width"] * (2 if gated else 1)
    ratio = inner / transformer["width"]
    if int(transformer["width"] * ratio) != inner:
        # timm rounds down: half a feature more makes that exact.
        ratio = (inner + 0.5) / transformer["width"]
    arguments = {
        "img_size": settings["image_size"],
        "patch_size": settings["patch_size"],
        "in_chans": settings["channels"],
        "num_classes": 0,
        "global_pool": pooling,
        "embed_dim": transformer["width"],
        "depth": transformer["depth"],
        "num_heads": transformer["heads"],
        "mlp_ratio": ratio,
        "qkv_bias": transformer["bias"],
        "proj_bias": transformer["bias"],
        "class_token": settings["class_token"],
        "no_embed_class": not positioned_prefix and prefix_tokens > 0,
        "reg_tokens": settings["registers"],
        "pre_norm": settings["embedding_norm"],
        "final_norm": transformer["final_norm"] or settings["norm_after_pooling"],
        "fc_norm": settings["norm_after_pooling"],
        "act_layer": "silu" if gated else transformer["activation"],
        "qk_norm": transformer["query_key_norm"],
        "pos_drop_rate": transformer["dropout"],
        "proj_drop_rate": transformer["dropout"],
        "attn_drop_rate": transformer["attention_dropout"],
        "drop_path_rate": transformer["stochastic_depth"],
    }
    if transformer["layer_scale"] is not None:
        # Only whether it is 0 matters to timm: then it would leave the gains out.
        arguments["init_values"] = transformer["layer_scale"] or 1e-5
    return {
        "architecture": (GATED_ARCHITECTURES if gated else ARCHITECTURES)[transformer["norm_epsilon"]],
        "num_classes": 0,
        "num_features": transformer["width"],
        "global_pool": pooling,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [settings["channels"], settings["image_size"], settings["image_size"]],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": settings["crop_share"] or 1.0,
            "mean": list(settings["mean"]),
            "std": list(settings["std"]),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def refuse_what_timm_lacks(settings: dict[str, Any]) -> None:
    """Raise a `UserError` naming whatever of an encoder timm's VisionTransformer has no place for."""
    transformer = settings["transformer"]
    gated, epsilon = transformer["activation"] == "swiglu", transformer["norm_epsilon"]
    epsilons = GATED_ARCHITECTURES if gated else ARCHITECTURES
    lacking = {
        "norm_order: post": transformer["norm_order"] != "pre",
        "embedding_norm: true and patch_bias: true": settings["embedding_norm"] and settings["patch_bias"],
        f"norm_epsilon: {epsilon} (only {' and '.join(map(str, epsilons))})": epsilon not in epsilons,
        "activation: swiglu and pooling: map": gated and settings["pooling"] == "map",
        "activation: geglu": transformer["activation"] == "geglu",
        f"norm: {transformer['norm']}": transformer["norm"] != "layer",
        "norm_bias: false": not transformer["norm_bias"],
        "first_attention_norm: false": not transformer["first_attention_norm"],
    }
    names = [name for name, present in lacking.items() if present]
    if names:
        raise UserError(
            f"timm's VisionTransformer cannot hold an encoder with {' and '.join(names)}: pretrain with ViT's own "
            "settings if the weights must load there."
        )
