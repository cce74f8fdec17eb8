"""Tar shards of webdataset's form: whether they are whole, and which columns they have."""

import lzma
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import datasets
import fsspec
import pyarrow
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from lit_pretrain.data.file_reader import is_compressed
from lit_pretrain.errors import UserError
from lit_pretrain.required import required

SHARDS = "webdataset"
# Two blocks of zeros end an archive. One that was cut short ends otherwise, and Python reads it without complaint.
END = bytes(2 * tarfile.BLOCKSIZE)


def check_shards(files: Sequence[str]) -> None:
    """Raise `UserError` if a shard was cut short.

    Args:
        files: Paths of tar files; compressed ones are read whole, since only what comes out has the end.
    """
    for file in files:
        if is_compressed(file):
            check_compressed(file)
            continue
        with open(file, "rb") as stream:
            stream.seek(max(0, os.path.getsize(file) - len(END)))
            if stream.read() != END:
                raise UserError(f"{file} {what_is_missing(file)}: get it again, or leave it out.")


def check_compressed(file: str) -> None:
    """Raise `UserError` if a compressed shard was cut short."""
    last = b""
    try:
        with fsspec.open(file, compression="infer") as stream:
            while part := stream.read(1 << 20):
                last = (last + part)[-len(END) :]
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{file} cannot be unpacked ({error}): get it again, or leave it out.") from error
    if last != END:
        raise UserError(f"{file} has no end of a tar archive: get it again, or leave it out.")


def what_is_missing(file: str) -> str:
    """Where an archive without an end stops."""
    members, last = 0, None
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                members, last = members + 1, member
    except tarfile.TarError as error:
        if not members:
            return f"is no tar archive ({error})"
    if last is None:
        return "is no tar archive"
    if last.offset_data + last.size > os.path.getsize(file):
        return f"was cut short in {last.name}, after {members - 1} whole files"
    return f"was cut short after {members} files: the end of the archive is missing"


def shard_features(files: Sequence[str]) -> datasets.Features:
    """The columns of shards whose samples do not all have the same files, a file of each ending deciding the type.

    Args:
        files: Paths of the shards; `datasets` takes the columns from the first five samples alone.

    Raises:
        UserError: If no sample is found.
    """
    values: dict[str, object] = {}
    for file in files:
        with tarfile.open(file, "r:*") as archive:
            for member in archive:
                _, field = base_plus_ext(member.name)
                if not member.isreg() or field is None or field in values or Path(member.name).name.startswith("."):
                    continue
                content = required(archive.extractfile(member)).read()
                kind = field.rpartition(".")[2].lower()
                values[field] = WebDataset.DECODERS[kind](content) if kind in WebDataset.DECODERS else content
    if not values:
        raise UserError(f"{files[0]} holds no samples: give tar shards of files such as 000.jpg and 000.txt.")
    schema = pyarrow.Table.from_pylist([{**values, "__key__": "", "__url__": ""}]).schema
    features = datasets.Features.from_arrow_schema(schema)
    for field in values:
        if field.rpartition(".")[2].lower() in WebDataset.IMAGE_EXTENSIONS:
            features[field] = datasets.Image()
    return features
