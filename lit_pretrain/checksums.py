"""Whether a file that torch has written is what was written.

torch writes a checksum beside each tensor and never looks at it when it loads (2.14 is built without that check), so
that a bit that a disk or a copy has turned over would be a weight like any other.
"""

import functools
import zipfile
from pathlib import Path


def damaged_part(path: Path) -> str | None:
    """The first part of a file that is not what was written, found once for every state of the file; reads all of it.

    Args:
        path: What is no archive of torch's, or no file, has no checksums.

    Returns:
        Its name within the archive; null if all is well, or nothing can tell.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    state = path.stat()
    return _damaged_part(str(path), (state.st_ino, state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _damaged_part(path: str, state: tuple[int, ...]) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            # Zeros stand there where whoever has saved it wanted none (torch.serialization.set_crc32_options).
            return archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return "its table of contents"
