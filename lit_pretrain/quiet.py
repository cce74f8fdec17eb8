"""Leaves out what libraries say that no reader can use."""

import logging
import warnings
from pathlib import Path

# What Lightning tells one by one stands on the pages before and after a training: device, precision, seed,
# checkpoint, and what ended it.
ON_OUR_PAGES = (
    "GPU available: ",
    "Using ",
    "Seed set to ",
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "Time limit reached",
    "`Trainer(val_check_interval=1.0)` was configured",
    "`Trainer.fit` stopped: `max_steps",
    "`Trainer.fit` stopped: `max_epochs",
)


PACKAGE = str(Path(__file__).parent)
FORMAT = warnings.formatwarning


def our_format(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as Python prints it; one of ours as the sentence that it is, without its place in the code."""
    if issubclass(category, UserWarning) and filename.startswith(PACKAGE):
        return f"{message}\n"
    return FORMAT(message, category, filename, lineno, line)


def quieten() -> None:
    """Leave out what libraries say that no reader can use."""

    class NoAdvertisement(logging.Filter):
        """Drops tips and lists of accelerators that are not there."""

        def filter(self, record: logging.LogRecord) -> bool:
            text = record.getMessage()
            if "Tip:" in text or "TPU available" in text or "litlogger" in text:
                return False
            # Ranks above the first put their number before it.
            return record.levelno > logging.INFO or not text.split("] ")[-1].startswith(ON_OUR_PAGES)

    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "lightning",
    ):
        logging.getLogger(name).addFilter(NoAdvertisement())
    warnings.formatwarning = our_format
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Of a training in several processes that has nothing to validate.
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")
    # Torch's new name of a setting, of which older releases know the former one only.
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message=".*is not supported by the model summary.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*It is recommended to use `self.log.*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    # Samples are known by their `sample_id`; and a run that is gone on with has its checkpoints already.
    warnings.filterwarnings("ignore", message=".*Couldn't infer the batch indices.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    # A class that does not occur in a small validation has no precision and recall, and is left out of their means.
    warnings.filterwarnings("ignore", message=".*No positive samples found in target.*")
    warnings.filterwarnings("ignore", message=".*Average precision score for one or more classes was `nan`.*")
    # A validation's numbers fit the memory; correlations of ranks need them all.
    warnings.filterwarnings("ignore", message=".*will save all targets and predictions in the buffer.*")
    # What is frozen stays in evaluation mode, which is meant.
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
