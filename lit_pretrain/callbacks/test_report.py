"""After a test: a table by class, confusion matrix, calibration or scatter, and the worst mistakes to look at."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.errors import check_number
from lit_pretrain.evaluation.task_report import TaskReport, report_of
from lit_pretrain.objectives.picture_panels import Caption, grid
from lit_pretrain.tracking.run_record import run_files
from lit_pretrain.trainer_state import data_module_of

COLUMNS = 5


class TestReport(Callback):
    """Logs report/classes.json, report/mistakes.json and the figures of `evaluation.task_report` under report/.

    It serves modules whose test steps return `logits`, `label` and `sample_id`.

    Args:
        mistakes: How many of the worst samples are shown.
    """

    # Pytest takes classes of such names for tests.
    __test__ = False

    def __init__(self, mistakes: int = 20) -> None:
        check_number("TestReport.mistakes", mistakes, least=0)
        self.mistakes = mistakes
        self._parts: list[dict[str, torch.Tensor]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is seen yet."""
        self._parts = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what was told."""
        names = ("logits", "label", "sample_id")
        if run_files(trainer) is None or not isinstance(outputs, dict) or not set(names) <= outputs.keys():
            return
        # Where they are, until all are there: to bring each batch to the CPU would wait for it.
        self._parts.append({name: torch.as_tensor(outputs[name]).detach() for name in names})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, from all processes' samples."""
        parts = [{name: values.cpu() for name, values in part.items()} for part in self._parts]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for process_samples in gathered for part in process_samples]
        files = run_files(trainer)
        if files is None or not trainer.is_global_zero or not parts:
            return
        logits, labels, ids = (torch.cat([part[name] for part in parts]) for name in ("logits", "label", "sample_id"))
        module: Any = pl_module
        outputs, labels = module.task.for_metrics(logits, labels)
        report = report_of(module.facts, outputs, labels, self.mistakes)
        step = trainer.global_step
        for name, rows in report.tables.items():
            files.log_table(rows, f"report/{name}.json")
        for name, figure in report.figures.items():
            files.log_picture(figure, f"report/{name}", step)
        self.log_mistakes(trainer, report, [int(ids[place]) for place in report.worst], step)

    def log_mistakes(self, trainer: Trainer, report: TaskReport, ids: list[int], step: int) -> None:
        """The worst samples as a table, and as a picture where they are pictures."""
        if not ids:
            return
        files = run_files(trainer)
        assert files is not None
        samples = data_module_of(trainer).raw_samples("test", ids)
        texts = [{name: value for name, value in sample.items() if isinstance(value, str)} for sample in samples]
        rows = [{"sample_id": i, **told, **sample} for i, told, sample in zip(ids, report.told, texts, strict=True)]
        files.log_table(rows, "report/mistakes.json")
        if "image" in samples[0]:
            captions = [caption_of(told) for told in report.told]
            pictures = [sample["image"] for sample in samples]
            cut = range(0, len(ids), COLUMNS)
            panel = grid([pictures[at : at + COLUMNS] for at in cut], [captions[at : at + COLUMNS] for at in cut])
            files.log_picture(panel, "report/mistakes", step)


def caption_of(row: dict[str, Any]) -> Caption:
    """What stands below a picture that was mistaken."""
    label, prediction = (
        f"{value:g}" if isinstance(value, float) else value for value in (row["label"], row["predicted"])
    )
    return Caption(f"{label}\nnot {prediction}", right=False)
