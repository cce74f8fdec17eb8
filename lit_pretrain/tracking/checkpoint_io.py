"""Checkpoints that are whole or not there: a crash or a full disk while saving leaves the former file as it was."""

import errno
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.checkpoint_file import check_sums, unreadable

# Where Lightning's consolidate_checkpoint puts the optimiser's state of shards.
CONSOLIDATED = "optimizer_0"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, brings it to the disk, then renames it over the target.

    Lightning's own holds the whole file in memory first and never asks the disk to write it. Addresses that are not
    local paths are left to Lightning.

    Attributes:
        finished_at: `time.monotonic()` when the latest save ended; 0 before the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.finished_at = 0.0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Raises:
            UserError: If there is no room, or no permission; what was at `path` is intact.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(str(path).removeprefix("file://"))
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _bring_directory_to_disk(target.parent)
        except (OSError, RuntimeError) as error:
            _remove_quietly(temporary)
            raise _explain(error, target) from error
        except BaseException:
            _remove_quietly(temporary)
            raise
        self.finished_at = time.monotonic()

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, location: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Load a checkpoint; nothing in it is ever executed, unless `weights_only` is false.

        Raises:
            UserError: If the file is missing, or not what was written.
        """
        check_sums(path)
        try:
            checkpoint = super().load_checkpoint(path, map_location, True if weights_only is None else weights_only)
        except FileNotFoundError as error:
            raise UserError(f"The checkpoint {path} does not exist.") from error
        except (RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            raise unreadable(path, error) from error
        if CONSOLIDATED in checkpoint:
            checkpoint["optimizer_states"] = [checkpoint.pop(CONSOLIDATED)]
        return checkpoint


def _explain(error: Exception, target: Path) -> Exception:
    """The sentence for a failed save; errors that are not the disk's stay as they are."""
    # torch wraps the file's error in one of its own, so look along the chain.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            if cause.errno in NO_ROOM:
                return UserError(
                    f"There is no room left to save {target}: free some and go on from the last checkpoint, which is "
                    "intact."
                )
            return UserError(f"The checkpoint {target} cannot be written ({cause.strerror}): correct its directory.")
        cause = cause.__cause__ or cause.__context__
    return error


def _bring_directory_to_disk(directory: Path) -> None:
    """Make the renaming itself survive a power cut, where the system can."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass
