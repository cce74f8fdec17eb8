"""A checkpoint's directory: config.json and model.safetensors, each written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor


def write_checkpoint(directory: str | Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write tensors and their description.

    Args:
        directory: Made if it does not exist.
        tensors: By name; those that share memory are written apart.
        config: What goes into config.json.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    for name, write in (
        ("model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"})),
        ("config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n")),
    ):
        partial = directory / f".{name}.partial"
        write(partial)
        partial.replace(directory / name)
