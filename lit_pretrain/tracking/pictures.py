"""Pictures in the form that MLflow's page shows as a chart with a slider over the steps.

`MlflowClient.log_image` writes this form too, but at once and from the training's thread; here the files are written
into the run's directory and sent by the logger's own writer, so that nothing is lost and nobody waits.
"""

import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels of the larger side of the small copy that the page loads first.
SMALL_SIDE = 256


def write_picture(picture: "Image", directory: Path, key: str, step: int) -> list[Path]:
    """Write a picture as MLflow names it: the whole as PNG, and a small copy as WebP.

    Args:
        picture: What to write.
        directory: Folder of the run's pictures.
        key: Name of the chart; "/" is allowed.
        step: Optimiser step that it belongs to.

    Returns:
        Both files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # The page finds key, step and time in the name, between plus signs.
    stem = f"{key.replace('/', '~')}+step+{step}+timestamp+{time.time_ns() // 1_000_000}+{uuid.uuid4()}"
    small = picture.copy()
    small.thumbnail((SMALL_SIDE, SMALL_SIDE))
    files = []
    for name, one in ((f"{stem}.png", picture), (f"{stem}+compressed.webp", small)):
        partial = directory / f".{name}.partial"
        one.save(partial, format=name.rpartition(".")[2].upper())
        files.append(partial.replace(directory / name))
    return files
