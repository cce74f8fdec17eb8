"""Small CLIPs made by open_clip itself, with weights far from their start, written as its checkpoints are."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from lit_pretrain.weights.open_clip import CONFIG, WEIGHTS

VISION = {"image_size": 32, "layers": 2, "width": 48, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
QUICK = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
# Of a text tower that is wider than the picture tower, with every option of either that is not as in OpenAI's.
RICH = {
    "embed_dim": 40,
    "init_logit_bias": -7.0,
    "nonscalar_logit_scale": True,
    "vision_cfg": {
        "image_size": [24, 24],
        "layers": 3,
        "width": 32,
        "patch_size": 6,
        "head_width": 8,
        "mlp_ratio": 3.7,
        "ls_init_value": 0.1,
        "no_ln_pre": True,
        "final_ln_after_pool": True,
        "pool_type": "avg",
        "act_kwargs": {"approximate": "tanh"},
        "norm_kwargs": {"eps": 1e-3},
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 48,
        "heads": 3,
        "layers": 2,
        "mlp_ratio": 2.0,
        "ls_init_value": 0.1,
        "act_kwargs": {"approximate": "tanh"},
        "norm_kwargs": {"eps": 1e-3},
    },
}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def make_clip(config: dict, kind: type = open_clip.CLIP) -> torch.nn.Module:
    """A model of these settings; no bias, norm or gain is trivially right."""
    torch.manual_seed(0)
    model = kind(**config)
    for name, parameter in model.named_parameters():
        if not name.startswith("logit"):
            torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def write_clip(directory: Path, model: torch.nn.Module, config: dict, safe: bool = True) -> Path:
    """A directory as the hub's repositories are."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (directory / CONFIG).write_text(json.dumps(content))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if safe:
        save_file(state, directory / WEIGHTS[0])
    else:
        torch.save(state, directory / WEIGHTS[1])
    return directory
