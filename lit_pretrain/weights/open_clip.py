"""CLIP in `open_clip`'s format (Ilharco et al. 2021; weights of OpenAI, LAION and others): one tower at a time.

A checkpoint is a directory with open_clip_config.json and open_clip_model.safetensors or open_clip_pytorch_model.bin,
as the hub's repositories hold them, or a file of weights, with such a config beside it or none. Names are those of
open_clip's `CLIP` (OpenAI's own) or of its `CustomTextCLIP`, where the text tower's begin with `text.`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pretrain.backbone.text_encoder import TextEncoder
from lit_pretrain.backbone.vision_encoder import VisionEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.weights.files import write_checkpoint
from lit_pretrain.weights.open_clip_settings import (
    OPENAI_MARKS,
    TowerName,
    settings_of_config,
    settings_of_state,
)
from lit_pretrain.weights.timm_vit import SUFFIXES, read_state

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Ours -> theirs, applied in this order.
BLOCK_NAMES = (
    ("transformer.blocks", "transformer.resblocks"),
    ("attention.query_key_value.", "attn.in_proj_"),
    ("attention.projection", "attn.out_proj"),
    ("attention_norm", "ln_1"),
    ("attention_branch.0.gamma", "ls_1.gamma"),
    ("feed_forward.expand", "mlp.c_fc"),
    ("feed_forward.contract", "mlp.c_proj"),
    ("feed_forward_norm", "ln_2"),
    ("feed_forward_branch.0.gamma", "ls_2.gamma"),
)
NAMES: dict[TowerName, tuple[tuple[str, str], ...]] = {
    "vision": (
        ("embeddings.projection", "visual.conv1"),
        ("embeddings.class_token", "visual.class_embedding"),
        ("embeddings.position", "visual.positional_embedding"),
        ("embeddings.norm", "visual.ln_pre"),
        ("transformer.final_norm", "visual.ln_post"),
        ("pooled_norm", "visual.ln_post"),
        *((ours, theirs.replace("transformer.", "visual.transformer.")) for ours, theirs in BLOCK_NAMES),
    ),
    "text": (
        ("embeddings.token", "token_embedding"),
        ("embeddings.position.weight", "positional_embedding"),
        ("transformer.final_norm", "ln_final"),
        *BLOCK_NAMES,
    ),
}
PROJECTIONS: dict[TowerName, str] = {"vision": "visual.proj", "text": "text_projection"}
# Matrices of a block, each of which has a bias there.
LINEAR = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
TEMPERATURE = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class OpenClipTower:
    """A tower of a checkpoint, with what both towers share.

    Attributes:
        encoder: In evaluation mode.
        projection: (E, D), from its pooled features to where texts and pictures meet; null where there is none.
        log_scale: Logarithm of what cosines are multiplied by; null where it is not told.
        logit_bias: What is added to them then, in models that were trained with SigLIP's loss; else null.
        config: open_clip's config, empty if there is none.
    """

    encoder: TextEncoder | VisionEncoder
    projection: Tensor | None
    log_scale: float | None
    logit_bias: float | None
    config: dict[str, Any]


def load_tower(source: str | Path, tower: TowerName) -> OpenClipTower:
    """Load one tower of a checkpoint.

    Args:
        source: A directory or a file, as this module's own text says.
        tower: Which.

    Raises:
        UserError: If it cannot be read, is of a kind that we do not have, or tensors are missing or unexpected.
    """
    path = Path(source)
    weights = weights_in(path) if path.is_dir() else path
    config, state = read_config(weights.parent), named(read_weights(weights))
    if config is not None:
        settings = settings_of_config(config, tower, str(source))
    else:
        settings = settings_of_state(state, tower, str(source))
    encoder = (TextEncoder if tower == "text" else VisionEncoder)(**settings)
    projection = load_tensors(encoder, state, tower, source)
    missing = [name for name in TEMPERATURE[:1] if name not in state]
    if missing:
        raise UserError(f"The weights of {source} are not whole: missing {', '.join(missing)}.")
    scale, bias = (float(state[name].float()) if name in state else None for name in TEMPERATURE)
    return OpenClipTower(encoder.eval(), projection, scale, bias, config or {})


def is_checkpoint(path: Path) -> bool:
    """Whether a directory or a file of weights is of open_clip's format, by the config or the tensors' names."""
    if path.is_dir():
        return (path / CONFIG).is_file()
    return any(name.startswith("visual.") for name in read_weights(path))


def find_on_hub(name: str) -> Path | None:
    """The directory of a checkpoint of the hub, downloaded or from the cache; null if it has no config of open_clip's.

    Args:
        name: "owner/name".

    Raises:
        UserError: If there is a config, and no weights can be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    from lit_pretrain.hub import hub_answers

    reachable = hub_answers()

    def find(*files: str) -> Path | None:
        for file in files:
            try:
                # The hub's client would try for a minute before it looks into its cache.
                return Path(hf_hub_download(name, file, local_files_only=not reachable))
            except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
                continue
        return None

    config = find(CONFIG)
    if config is None:
        return None
    if find(*WEIGHTS) is None:
        raise UserError(f"The hub gave {CONFIG} of '{name}' but neither {' nor '.join(WEIGHTS)}: try again.")
    find("tokenizer.json")
    return config.parent


def weights_in(directory: Path) -> Path:
    """The file of weights of a directory: named as the hub's are, or the only one."""
    files = [directory / name for name in WEIGHTS if (directory / name).is_file()]
    if not files:
        files = [path for path in sorted(directory.iterdir()) if path.suffix in SUFFIXES]
        if len(files) != 1:
            found = f"several files of weights, none of them {' or '.join(WEIGHTS)}" if files else "no weights"
            raise UserError(f"{directory} has {found}: give the file, or a complete checkpoint of open_clip.")
    return files[0]


def read_config(directory: Path) -> dict[str, Any] | None:
    """The config in a directory, or null if there is none."""
    path = directory / CONFIG
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download the checkpoint again.") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, but for OpenAI's archives of programs."""
    try:
        return read_state(path)
    except UserError as error:
        if "TorchScript" in str(error):
            raise UserError(
                f"{path} is a TorchScript archive, as OpenAI's own downloads are, and is not run: the hub's "
                "timm/vit_base_patch32_clip_224.openai and its like hold the same weights in open_clip's format."
            ) from error
        raise


def named(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by open_clip's names of `CLIP`: without `text.`, which `CustomTextCLIP` puts before the text tower's."""
    return {name.removeprefix("text."): value for name, value in state.items()}


def open_clip_name(ours: str, tower: TowerName) -> str:
    """The name in open_clip of a tensor of an encoder."""
    for one, other in NAMES[tower]:
        ours = ours.replace(one, other)
    return ours


def of_tower(names: Iterable[str], tower: TowerName) -> set[str]:
    """Names of one tower's tensors; what is neither tower's is the text's, where nothing knows it."""
    return {
        name
        for name in names
        if name.startswith("visual.") == (tower == "vision") and name not in (*TEMPERATURE, *OPENAI_MARKS)
    }


@torch.no_grad()
def load_tensors(encoder: nn.Module, state: dict[str, Tensor], tower: TowerName, source: str | Path) -> Tensor:
    """Copy a tower's tensors into an encoder's own, each of either having its counterpart, and return its projection.

    Raises:
        UserError: If some are missing or unexpected, or one has another shape.
    """
    plan = {open_clip_name(name, tower): target for name, target in encoder.state_dict().items()}
    wanted, found = plan.keys() | {PROJECTIONS[tower]}, of_tower(state, tower)
    missing, unexpected = sorted(wanted - found), sorted(found - wanted)
    if missing or unexpected:
        raise UserError(
            f"The weights of {source} are not those of the {tower} tower that they seem to be: missing "
            f"{', '.join(missing) or 'none'}; unexpected {', '.join(unexpected) or 'none'}."
        )
    for name, target in plan.items():
        value = state[name]
        if name == "visual.conv1.weight":
            value = value.flatten(1)
        elif tower == "vision" and target.ndim == 3:
            # Class token and positions, a batch of one here.
            value = value.reshape(1, -1, value.shape[-1])
        if value.shape != target.shape:
            raise UserError(
                f"{source} has shape {tuple(state[name].shape)} where {tuple(target.shape)} is expected for '{name}': "
                "the weights belong to another config."
            )
        target.copy_(value)
    projection = state[PROJECTIONS[tower]].float()
    if projection.ndim != 2 or len(projection) != encoder.width:
        raise UserError(
            f"{source} has shape {tuple(projection.shape)} for '{PROJECTIONS[tower]}', and the tower has "
            f"{encoder.width} features: the weights belong to another config."
        )
    return projection.T.contiguous()


@torch.no_grad()
def tensors_of_towers(
    text: TextEncoder, vision: VisionEncoder, projections: dict[TowerName, Tensor], log_scale: float, bias: float | None
) -> dict[str, Tensor]:
    """Two towers' tensors by open_clip's names of `CLIP`; those that it has and we need not are zeros.

    Args:
        text: The encoder of texts; its one segment, if it has any, goes into the positions.
        vision: The encoder of pictures; so does the bias of its patches.
        projections: (E, D) each.
        log_scale: Logarithm of what cosines are multiplied by.
        bias: What is added to them then; null for nothing.
    """
    found = {name: value.detach() for name, value in named_for_clip(text, "text").items()}
    if text.segments:
        found["positional_embedding"] = found["positional_embedding"] + found.pop("embeddings.segment.weight")[0]
    pictures = {name: value.detach() for name, value in named_for_clip(vision, "vision").items()}
    kernel = pictures["visual.conv1.weight"]
    pictures["visual.conv1.weight"] = kernel.unflatten(1, (vision.channels, vision.patch_size, vision.patch_size))
    pictures["visual.class_embedding"] = pictures["visual.class_embedding"].flatten()
    prefix, patches = vision.embeddings.positions_for(vision.embeddings.grid)
    if "visual.conv1.bias" in pictures:
        patches = patches + pictures.pop("visual.conv1.bias")
    if not vision.embeddings.positioned_prefix:
        prefix = torch.zeros_like(patches[:, :1])
    pictures["visual.positional_embedding"] = torch.cat([prefix, patches], dim=1)[0]
    found |= pictures
    for name in [name for name in found if name.endswith(LINEAR)]:
        found.setdefault(name.removesuffix("weight") + "bias", found[name].new_zeros(len(found[name])))
    found |= {PROJECTIONS[tower]: projection.T for tower, projection in projections.items()}
    found["logit_scale"] = torch.tensor(log_scale)
    return found if bias is None else found | {"logit_bias": torch.tensor(bias)}


def named_for_clip(encoder: nn.Module, tower: TowerName) -> dict[str, Tensor]:
    """An encoder's tensors by open_clip's names."""
    return {open_clip_name(name, tower): value for name, value in encoder.state_dict().items()}


def save_towers(
    text: TextEncoder,
    vision: VisionEncoder,
    projections: dict[TowerName, Tensor],
    log_scale: float,
    bias: float | None,
    config: dict[str, Any],
    directory: str | Path,
) -> None:
    """Write both towers as a directory that `open_clip.create_model("local-dir:DIRECTORY")` loads.

    Args:
        text: As for `tensors_of_towers`.
        vision: As for `tensors_of_towers`.
        projections: As for `tensors_of_towers`.
        log_scale: As for `tensors_of_towers`.
        bias: As for `tensors_of_towers`.
        config: `model_cfg` and `preprocess_cfg`.
        directory: Made if it does not exist.
    """
    tensors = tensors_of_towers(text, vision, projections, log_scale, bias)
    write_checkpoint(directory, tensors, config, (WEIGHTS[0], CONFIG))
