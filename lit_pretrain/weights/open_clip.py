"""CLIP in `open_clip`'s format (Ilharco et al. 2021; weights of OpenAI, LAION and others): one tower at a time.

A checkpoint is a directory with open_clip_config.json and open_clip_model.safetensors or open_clip_pytorch_model.bin,
as the hub's repositories hold them, or a file of weights, with such a config beside it or none. Names are those of
open_clip's `CLIP` (OpenAI's own) or of its `CustomTextCLIP`, where the text tower's begin with `text.`.
"""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.weights.open_clip_settings import (
    OPENAI_MARKS,
    TowerName,
    settings_of_config,
    settings_of_state,
)
from lit_pretrain.weights.public import PublicTower
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
LOG_SCALE, LOGIT_BIAS = "logit_scale", "logit_bias"


def load_tower(source: str | Path, tower: TowerName) -> PublicTower:
    """Read one tower of a checkpoint as settings and tensors of a `TextEncoder` or a `VisionEncoder`.

    Args:
        source: A directory or a file, as this module's own text says.
        tower: Which.

    Raises:
        UserError: If it cannot be read, is of a kind that we do not have, or what both towers share is missing.
    """
    path = Path(source)
    weights = weights_in(path) if path.is_dir() else path
    config, state = read_config(weights.parent), without_text_prefix(read_weights(weights))
    if config is not None:
        settings = settings_of_config(config, tower, str(source))
    else:
        settings = settings_of_state(state, tower, str(source))
    missing = [name for name in (PROJECTIONS[tower], LOG_SCALE) if name not in state]
    if missing:
        raise UserError(f"The weights of {source} are not whole: missing {', '.join(missing)}.")
    return PublicTower(
        str(source),
        settings,
        {name: state[name] for name in of_tower(state, tower)},
        partial(open_clip_name, tower=tower),
        projection=projection_of(state, tower, settings["transformer"]["width"], source),
        log_scale=float(state[LOG_SCALE].float()),
        logit_bias=float(state[LOGIT_BIAS].float()) if LOGIT_BIAS in state else None,
        config=config or {},
    )


def projection_of(state: dict[str, Tensor], tower: TowerName, width: int, source: str | Path) -> Tensor:
    """(E, D) projection of a tower's pooled features (B, D) to embeddings.

    Raises:
        UserError: If it reads another number of features.
    """
    projection = state[PROJECTIONS[tower]].float()
    if projection.ndim != 2 or len(projection) != width:
        raise UserError(
            f"{source} has shape {tuple(projection.shape)} for '{PROJECTIONS[tower]}', and the tower has {width} "
            "features: the weights belong to another config."
        )
    return projection.T.contiguous()


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
            content = f"several files of weights, none of them {' or '.join(WEIGHTS)}" if files else "no weights"
            raise UserError(f"{directory} has {content}: give the file, or a complete checkpoint of open_clip.")
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


def without_text_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by open_clip's names of `CLIP`: without `text.`, which `CustomTextCLIP` puts before the text tower's."""
    return {name.removeprefix("text."): value for name, value in state.items()}


def open_clip_name(ours: str, tower: TowerName) -> str:
    """The name in open_clip of a tensor of an encoder."""
    for own_part, format_part in NAMES[tower]:
        ours = ours.replace(own_part, format_part)
    return ours


def of_tower(names: Iterable[str], tower: TowerName) -> list[str]:
    """Names of one tower's tensors, without its projection; what is neither tower's is the text's, and not known there.

    Args:
        names: Of a whole checkpoint.
        tower: Whose.
    """
    others = {LOG_SCALE, LOGIT_BIAS, *OPENAI_MARKS, *PROJECTIONS.values()}
    return [name for name in names if name.startswith("visual.") == (tower == "vision") and name not in others]
