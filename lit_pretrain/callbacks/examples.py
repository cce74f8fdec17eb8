"""Shows what the model fills in: a table for each objective after every validation."""

import json
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.errors import check_number
from lit_pretrain.tracking.run_record import run_files


class Examples(Callback):
    """Logs the rows of the module's `examples()` as examples/<objective>/step-<step>.json and, all steps together, as
    examples/<objective>.json.

    Args:
        count: Rows for each objective and validation.
        keep: Rows at most in the table of all steps; the oldest go first.
    """

    def __init__(self, count: int = 8, keep: int = 400) -> None:
        check_number("Examples.count", count, least=1)
        check_number("Examples.keep", keep, least=1)
        self.count = count
        self.keep = keep

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what there is to show."""
        examples = getattr(pl_module, "examples", None)
        files = run_files(trainer)
        if files is None or trainer.sanity_checking or not callable(examples):
            return
        # Every rank asks, since a sharded model can only be run by all together; only rank zero's rows are kept.
        with trainer.precision_plugin.forward_context():
            tables = examples(self.count)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        for objective, rows in tables.items():
            if not rows:
                continue
            rows = [{"step": step, **row} for row in rows]
            files.log_table(rows, f"examples/{objective}/step-{step:06d}.json", listed=False)
            merged = f"examples/{objective}.json"
            earlier = [row for row in read_table(files.run_directory / merged) if row.get("step") != step]
            files.log_table([*rows, *earlier][: self.keep], merged)


def read_table(path: Any) -> list[dict[str, Any]]:
    """Rows of a table that was logged; none if there is no such file."""
    if not path.exists():
        return []
    table = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
