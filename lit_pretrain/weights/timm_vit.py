"""ViT in timm's format, in and out: a model's name, a state-dict file, or a directory as timm's `save_for_hf` writes.

Every tensor of a `VisionEncoder` has one counterpart in timm's `VisionTransformer`, under another name; the patch
embedding's matrix is a convolution's kernel there. What a ViT computes is told by timm's name for it or by a
config.json; a file of tensors alone needs such a name beside it.
"""

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.errors import UserError, nearest
from lit_pretrain.weights.files import SUFFIXES, check_sums, read_or_held, weight_files, write_checkpoint
from lit_pretrain.weights.public import LinearHead, PublicWeights
from lit_pretrain.weights.timm_settings import (
    config_of,
    refuse_what_timm_lacks,
    settings_of_model,
    settings_of_state,
)

# Ours -> theirs, applied in this order.
NAMES = (
    ("embeddings.projection", "patch_embed.proj"),
    ("embeddings.class_token", "cls_token"),
    ("embeddings.registers", "reg_token"),
    ("embeddings.position", "pos_embed"),
    ("embeddings.norm", "norm_pre"),
    ("pooler.attention", "attn_pool"),
    ("pooled_norm", "fc_norm"),
    ("transformer.final_norm", "norm"),
    ("transformer.blocks", "blocks"),
    ("attention.query_key_value", "attn.qkv"),
    ("attention.query_norm", "attn.q_norm"),
    ("attention.key_norm", "attn.k_norm"),
    ("attention.projection", "attn.proj"),
    ("attention_norm", "norm1"),
    ("attention_branch.0.gamma", "ls1.gamma"),
    ("feed_forward.expand", "mlp.fc1"),
    ("feed_forward.contract", "mlp.fc2"),
    ("feed_forward_norm", "norm2"),
    ("feed_forward_branch.0.gamma", "ls2.gamma"),
)
CLASSIFIER = ("head.weight", "head.bias")
# Of MAE's pretraining (arXiv:2111.06377), whose encoder is timm's.
DECODER = ("decoder_", "decoder.")
# Where timm keeps what is, or may be, a plain ViT.
MODULES = ("vision_transformer", "deit")
# What precedes a name on the hub; the second is timm's older one.
HUB_MARKS = ("hf-hub", "hf_hub")
# What timm calls files of weights in a directory, in its order.
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


def timm_name(ours: str) -> str:
    """The name in timm of a tensor of a `VisionEncoder`."""
    for own_part, format_part in NAMES:
        ours = ours.replace(own_part, format_part)
    return ours


def load_weights(source: str | Path, architecture: str | None = None, **others: Any) -> PublicWeights:
    """Read timm's weights as settings and tensors of a `VisionEncoder`.

    Args:
        source: A model name of timm's, which its `create_model` downloads; a state-dict file (.safetensors, or .bin,
            .pth, .pt, read without running any pickled code); or a directory with config.json and weights.
        architecture: For a file without a config.json beside it, the name of timm's model whose weights it holds, with
            the tag of its training where that decides the colours' mean and std ("vit_base_patch16_224.mae").
        **others: For a file without either, all that its tensors do not tell: `heads`, `activation`, `norm_epsilon`,
            `pooling` (unless it has parameters), `mean` and `std`.

    Returns:
        With the classifier (`head.*`); the decoder of MAE's pretraining is left out.

    Raises:
        UserError: If the source cannot be had or read, is no ViT of ours, or does not tell what it computes.
    """
    path = Path(source)
    settings_given = ([] if architecture is None else ["architecture"]) + list(others)
    if settings_given and not path.is_file():
        raise UserError(
            f"from_pretrained was given {', '.join(settings_given)} for {source}, which tells it itself: leave it "
            "out, or give a file of weights."
        )
    if architecture is not None and others:
        raise UserError(
            f"from_pretrained was given {', '.join(others)} beside architecture, which tells it: give one of them."
        )
    model = None
    if path.is_file() and (settings_given or not tells_architecture(path.parent)):
        state = read_state(path)
        if architecture is not None:
            model = model_of_file(architecture, state, path)
    elif path.exists():
        model, state = open_directory(path if path.is_dir() else path.parent, path)
    else:
        model, state = open_name(source)
    state, head, left_out = without_heads(state)
    if model is None:
        settings = settings_of_state(state, path, **others)
    else:
        settings = settings_of_model(model, source)
        state = as_model_names_them(state, model)
    state = with_biases(with_one_matrix(state), settings["transformer"])
    if head is not None and head.weight.shape[1:] != (settings["transformer"]["width"],):
        left_out = sorted([*left_out, *head.names])
        head = None
    elif head is not None and model is not None:
        head = replace(head, **labels_of(model, path if path.is_dir() else path.parent))
    return PublicWeights(str(source), settings, state, timm_name, head, left_out)


def labels_of(model: nn.Module, directory: Path) -> dict[str, Any]:
    """What is told of a classifier's classes; only our own exports say which task it is, in their config.json."""
    vit: Any = model  # timm's annotations do not tell which attributes it has
    names = tuple(map(str, vit.pretrained_cfg.get("label_names") or ()))
    try:
        task = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("task")
    except (OSError, ValueError):
        task = None
    classes = names if len(names) == model.num_classes and task != "regression" else ()
    return {"classes": classes, "task": task}


def tells_architecture(directory: Path) -> bool:
    """Whether there is a config.json of timm's."""
    try:
        return "architecture" in json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def without_heads(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], LinearHead | None, list[str]]:
    """Tensors of the encoder; the classifier; and the names of what else is there (of MAE's pretraining, a decoder)."""
    others: list[str] = []
    if any(name.startswith(DECODER) for name in state):
        others = sorted(name for name in state if name.startswith(DECODER) or name == "mask_token")
    names, head = [name for name in CLASSIFIER if name in state], None
    if len(names) == len(CLASSIFIER):
        weight, bias = (state[name].float() for name in CLASSIFIER)
        head = LinearHead(weight, bias, names=CLASSIFIER)
    encoder = {name: value for name, value in state.items() if name not in (*CLASSIFIER, *others)}
    return encoder, head, others if head is not None else [*names, *others]


def model_of_file(architecture: str, state: dict[str, Tensor], path: Path) -> nn.Module:
    """A model of timm's for pictures of the size and channels of a file's tensors, without memory for weights.

    Raises:
        UserError: If there is no such ViT, or the tensors are another's.
    """
    from timm import create_model, list_models
    from timm.models.vision_transformer import VisionTransformer

    if not is_vit(architecture):
        guess = nearest(architecture.partition(".")[0], list_models(module=list(MODULES)))
        raise UserError(
            f"`architecture` is '{architecture}', which is no ViT of timm's{guess}: look for the name with "
            "timm.list_models('vit*', pretrained=True)."
        )
    settings: dict[str, Any] = {}
    with torch.device("meta"):
        model = create_model(architecture, num_classes=0)
        if type(model) is not VisionTransformer:
            return model
        kernel, position = state.get("patch_embed.proj.weight"), state.get("pos_embed")
        if kernel is not None and kernel.ndim == 4 and kernel.shape[1] != model.in_chans:
            settings["in_chans"] = kernel.shape[1]
        if position is not None and model.pos_embed is not None and position.shape[1] != model.pos_embed.shape[1]:
            own = 0 if model.no_embed_class else model.num_prefix_tokens
            side = math.isqrt(max(0, position.shape[1] - own))
            if side * side + own != position.shape[1]:
                raise UserError(
                    f"{path} has {position.shape[1]} positions, which {architecture} cannot have for square pictures: "
                    "the weights belong to another model."
                )
            settings["img_size"] = side * model.patch_embed.patch_size[0]
        return create_model(architecture, num_classes=0, **settings) if settings else model


def as_model_names_them(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors by the names of timm's model, which those of other programs (DINOv2's) differ from."""
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    if type(model) is not VisionTransformer:
        return state
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.shape[-2:] != model.patch_embed.proj.weight.shape[-2:]:
        # timm would resize the patches, which is another model; the tensors' shapes will be found to differ.
        return state
    return checkpoint_filter_fn(state, model)


def open_name(name: str | Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model and its weights by timm's name for it, or by "hf-hub:owner/name", whose config tells the architecture."""
    from timm import create_model
    from timm.models import load_model_config_from_hf

    from lit_pretrain.hub import hub_answers, offline

    on_hub = name_on_hub(str(name))
    if on_hub is None and not is_vit(str(name)):
        raise UserError(
            f"'{name}' is neither a file or directory of ViT weights here nor a ViT of timm's: check the path, or look "
            "for the name with timm.list_models('vit*', pretrained=True)."
        )
    reachable = hub_answers()
    try:
        with contextlib.nullcontext() if reachable else offline():
            if on_hub is not None and not is_vit(architecture := load_model_config_from_hf(on_hub)[1]):
                raise UserError(f"'{name}' is {architecture} and no ViT of timm's: give another.")
            model = create_model(str(name), pretrained=True)
    except UserError:
        raise
    except Exception as error:  # timm and the hub's client raise many kinds
        state = first_line(error) if reachable else "the hub cannot be reached, and no copy is in its cache"
        raise UserError(
            f"timm did not give the pretrained weights of '{name}' ({state}): check the name or the network, or give "
            "a file of weights."
        ) from error
    return model, model.state_dict()


def name_on_hub(name: str) -> str | None:
    """What a name with timm's mark for the hub says after it: "owner/name", perhaps with "@revision"; else None."""
    source, _, rest = name.partition(":")
    return rest if source in HUB_MARKS and rest else None


def is_vit(name: str) -> bool:
    """Whether timm has a model of this name that is, or may be, a plain ViT."""
    from timm.models import is_model_in_modules

    return is_model_in_modules(name.partition(".")[0], MODULES)


def open_directory(directory: Path, file: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model that a directory's config.json describes, without memory for its weights, and the weights beside it.

    Args:
        directory: With config.json.
        file: The weights, or the directory for those that are called so.
    """
    from timm import create_model

    config = directory / "config.json"
    files = [file] if file.is_file() else weight_files(directory, WEIGHT_NAMES)
    if not config.is_file() or not files:
        raise UserError(
            f"{directory} lacks {'weights' if config.is_file() else 'config.json'}: give a directory as "
            "timm.models.save_for_hf writes it (config.json and model.safetensors), or a file of weights."
        )
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config} cannot be read ({first_line(error)}): write it again.") from error
    if "architecture" not in described:
        kind = f"is of a '{described['model_type']}' of transformers" if "model_type" in described else "names none"
        raise UserError(
            f"{config} {kind}, and VisionEncoder loads directories of timm, which name an architecture, and of "
            "transformers' ViT, ViT-MAE, DINOv2, CLIP and SigLIP: give one of these."
        )
    try:
        with torch.device("meta"):
            model = create_model(f"local-dir:{directory}", pretrained=False)
    except Exception as error:  # whatever a wrong config makes timm's constructors raise
        raise UserError(f"timm cannot build what {config} describes ({first_line(error)}): write it again.") from error
    return model, {name: value for path in files for name, value in read_state(path).items()}


def read_state(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, without the wrappers that training loops put around them."""
    from timm.models import load_state_dict

    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no file of weights: give one that ends in {', '.join(SUFFIXES)}.")
    try:
        check_sums(path)
        state = read_or_held(path, lambda: load_state_dict(str(path), weights_only=True))
    except Exception as error:  # each format has its own errors for a damaged file
        raise UserError(f"{path} cannot be read as weights ({first_line(error)}): get or write it again.") from error
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"{path} holds {', '.join(map(repr, strange[:5]))}, which are no tensors: give a state dict.")
    return state


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def with_one_matrix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose SwiGLUs have one matrix for the gate and what it lets through, as timm's packed ones have."""
    joined = dict(state)
    for name in [name for name in state if ".mlp.fc1_g." in name]:
        second_name = name.replace("fc1_g", "fc1_x")
        if second_name in state:
            joined[name.replace("fc1_g", "fc1")] = torch.cat([joined.pop(name), joined.pop(second_name)])
    return joined


def with_biases(state: dict[str, Tensor], transformer: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors with zeros for the biases of queries, keys and values, where those alone of a block are left out."""
    names = [f"blocks.{index}.attn.qkv.bias" for index in range(transformer["depth"])]
    if not transformer["bias"] or not state.keys().isdisjoint(names):
        return state
    return state | {name: torch.zeros(3 * transformer["width"]) for name in names}


def save_weights(settings: dict[str, Any], tensors: dict[str, Tensor], directory: str | Path) -> None:
    """Write an encoder as a directory that timm loads: `timm.create_model("local-dir:DIR", pretrained=True)`.

    Args:
        settings: Of a `VisionEncoder`, its Transformer's resolved: pre-norm, as ViT is.
        tensors: Its own, by our names; fixed positions are among them as numbers, and are learned from then on.
        directory: Made if it does not exist.

    Raises:
        UserError: If the encoder has something that timm's VisionTransformer cannot hold; the sentence says what.
    """
    refuse_what_timm_lacks(settings)
    state = {timm_name(name): value for name, value in tensors.items()}
    kernel, side = state["patch_embed.proj.weight"], settings["patch_size"]
    state["patch_embed.proj.weight"] = kernel.unflatten(1, (settings["channels"], side, side))
    if not settings["embedding_norm"] and not settings["patch_bias"]:
        state["patch_embed.proj.bias"] = kernel.new_zeros(len(kernel))
    write_checkpoint(directory, state, config_of(settings))
