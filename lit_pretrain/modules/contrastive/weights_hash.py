"""Whose embeddings are these? A hash of both towers' weights, which goes with embeddings that are written to a file.

Embeddings of two checkpoints have the same shape and nothing to do with each other, so that a search with the one among
those of the other would find something, and nothing right.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

METADATA = "embeddings"


def weights_hash(towers: Mapping[str, nn.Module]) -> str:
    """16 hexadecimal characters over names, types and values of the weights of both towers, by `text` and `vision`."""
    content = hashlib.blake2b(digest_size=8)
    for side, tower in towers.items():
        for name, tensor in sorted(tower.state_dict().items()):
            content.update(f"{side}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return content.hexdigest()


def embedding_metadata(towers: Mapping[str, nn.Module], checkpoint: str | Path | None) -> dict[str, str]:
    """What a file of embeddings says of them: the weights, the checkpoint, and where relative file names start from."""
    facts = {"weights": weights_hash(towers), "checkpoint": str(checkpoint or ""), "directory": str(Path.cwd())}
    return {METADATA: json.dumps(facts)}
