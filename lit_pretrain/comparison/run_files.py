"""Files that a run has written, for a page: tables of filled-in sentences, pictures of panels and reports."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lit_pretrain.comparison.page import table
from lit_pretrain.comparison.runs import Run, RunStore
from lit_pretrain.comparison.table import shown_number
from lit_pretrain.tracking.paths import safe_name

# Folders of what is shown.
EXAMPLES, PANELS = "examples", "panels"
SHOWN = (EXAMPLES, PANELS, "report", "neighbors", "zero_shot")
LARGEST_SIDE = 1000
LARGEST_BYTES = 12_000_000
MOST_ROWS = 8
MOST_LETTERS = 240


class Budget:
    """How many bytes of pictures a page may still take."""

    def __init__(self, left: int = LARGEST_BYTES) -> None:
        self.left = left
        self.left_out: list[str] = []

    def picture(self, path: Path, caption: str) -> str:
        """A picture within the page, made smaller if it is large; empty if it cannot be read or is too much."""
        from PIL import Image

        try:
            with Image.open(path) as opened:
                opened.load()
                picture: Image.Image = opened
                if max(picture.size) > LARGEST_SIDE:
                    picture = picture.convert("RGB")
                    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
                buffer = io.BytesIO()
                picture.save(buffer, format="PNG", optimize=True)
                width, height = picture.size
        except (OSError, ValueError, Image.DecompressionBombError):
            self.left_out.append(f"{path.name} (cannot be read)")
            return ""
        content = buffer.getvalue()
        if len(content) > self.left:
            self.left_out.append(path.name)
            return ""
        self.left -= len(content)
        data = base64.b64encode(content).decode()
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption)}" width="{width}" '
            f'height="{height}"><figcaption>{escape(caption)}</figcaption></figure>'
        )


class RunFiles:
    """Where the files of runs lie: in their directories here, else fetched from the store's artifacts.

    Args:
        store: Of the runs.
        directories: Of the runs of this machine, by id.
        scratch: Where files are put that are fetched.
    """

    def __init__(self, store: RunStore, directories: Mapping[str, Path], scratch: Path) -> None:
        self.store, self.directories, self.scratch = store, directories, scratch
        # Runs whose files could not be fetched, or not all of them.
        self.out_of_reach: list[str] = []

    def of(self, run: Run) -> Path:
        """The directory that has a run's files, as far as they can be had."""
        if run.run_id in self.directories:
            return self.directories[run.run_id]
        from mlflow.exceptions import MlflowException

        place = self.scratch / safe_name(run.run_id)
        if not place.exists():
            place.mkdir(parents=True)
            try:
                for artifact in self.store.client.list_artifacts(run.run_id):
                    if artifact.path in SHOWN:
                        self.store.client.download_artifacts(run.run_id, artifact.path, str(place))
            except (MlflowException, OSError):
                # The page is of what there is, and says so.
                self.out_of_reach.append(run.name)
        return place


def read_table(path: Path) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table as MLflow keeps it; none if there is no such file, or it is spoilt."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["columns"]), [list(row) for row in content["data"]]
    except (OSError, ValueError, KeyError, TypeError):
        return [], []


def shown_cell(value: Any) -> str:
    """An entry of a table in little room."""
    if value is None or value == "" or isinstance(value, float) and math.isnan(value):
        return "–"
    text = shown_number(value) if isinstance(value, float) else str(value)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"


def shown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of a run as HTML, its first rows."""
    # What is "predicted" now was "told" in runs of before 2026-11-29.
    headings = [column.replace("told", "predicted").replace("_", " ") for column in columns]
    numbers = [
        place
        for place in range(len(columns))
        if rows and all(isinstance(row[place], int | float | None) for row in rows)
    ]
    return table(headings, [[shown_cell(value) for value in row] for row in rows[:MOST_ROWS]], numbers)


def examples(directory: Path) -> dict[str, str]:
    """The latest filled-in sentences as tables, by objective and step."""
    found = {}
    for path in sorted((directory / EXAMPLES).glob("*.json")):
        columns, rows = read_table(path)
        title = path.stem.replace("_", " ")
        if rows and "step" in columns:
            place = columns.index("step")
            latest = max(row[place] for row in rows)
            rows = [row[:place] + row[place + 1 :] for row in rows if row[place] == latest]
            columns = columns[:place] + columns[place + 1 :]
            title += f", step {latest:,}"
        if rows:
            found[title] = shown_table(columns, rows)
    return found


def pictures(directory: Path, folder: str, budget: Budget) -> str:
    """The latest pictures of a folder, side by side."""
    shown = (budget.picture(path, path.stem.replace("_", " ")) for path in sorted((directory / folder).glob("*.png")))
    found = [picture for picture in shown if picture]
    return f'<div class="pictures">{"".join(found)}</div>' if found else ""
