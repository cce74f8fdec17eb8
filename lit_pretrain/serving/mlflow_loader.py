"""What MLflow calls to load a registered model; it is named in the model, so that no pickle has to be read for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_pretrain.serving.predictor import Predictor


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> "Predictor":
    """The model in a directory.

    Args:
        path: Where its checkpoint and settings are.
        model_config: What is in `DEFAULTS`, as the model has it or as whoever loads it says.
    """
    # What only reads about a model, its name and signature, does not wait for torch.
    from lit_pretrain.serving.predictor import Predictor

    return Predictor(Path(path), model_config or {})
