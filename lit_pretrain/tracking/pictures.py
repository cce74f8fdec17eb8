"""Pictures in the form that MLflow's page shows as a chart with a slider over the steps.

`MlflowClient.log_image` writes this form too, but at once and from the training's thread; here the files are written
into the run's directory and sent by the logger's own writer, so that nothing is lost and nobody waits.
"""

import glob
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

    Beside them it is written under its plain name, in the place of an earlier step's: above a chart's pictures the page
    prints all parameters of the run, which leaves little room for them, but it shows any file whole.

    Args:
        picture: What to write.
        directory: The run's.
        key: Name of the chart; "/" is allowed, and makes a folder of the plain name.
        step: Optimiser step that it belongs to.

    Returns:
        The three files; their folders below `directory` are those of the artifacts.
    """
    charts, plain = directory / "images", directory / f"{key}.png"
    # The page finds key, step and time in the name, between plus signs.
    begin = f"{key.replace('/', '~')}+step+{step}+timestamp+"
    # A step that is done again, after a kill, has one picture all the same.
    earlier = min((file.stem for file in charts.glob(f"{glob.escape(begin)}*.png")), default=None)
    stem = earlier or f"{begin}{time.time_ns() // 1_000_000}+{uuid.uuid4()}"
    small = picture.copy()
    small.thumbnail((SMALL_SIDE, SMALL_SIDE))
    for folder in (charts, plain.parent):
        folder.mkdir(parents=True, exist_ok=True)
    contents = {charts / f"{stem}.png": picture, charts / f"{stem}+compressed.webp": small, plain: picture}
    for path, content in contents.items():
        partial = path.with_name(f".{path.name}.partial")
        content.save(partial, format=path.suffix[1:].upper())
        partial.replace(path)
    return [*contents]
