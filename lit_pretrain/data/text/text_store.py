"""Tokenised texts kept on disk, so that other runs on the same data, and a run's other processes, need not do it again.

A study trains many times on the same texts; tokenising 25,000 reviews takes longer than many a cell of it.
"""

import hashlib
import json
from pathlib import Path

import datasets
import numpy

from lit_pretrain.data.disk_cache import FACTS, build_once
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.text_encoding import EncodedTexts, TextSettings, encode_texts

FORMAT = 1
# Fewer texts, of a small label budget say, are done in no time and would leave many small files.
KEPT_FROM = 1000
ARRAYS = ("tokens", "ends", "firsts", "lengths")


def find_or_encode(
    data: datasets.Dataset,
    rows: numpy.ndarray,
    tokenizer: TextTokenizer,
    settings: TextSettings,
    fingerprint: str,
    directory: Path,
) -> EncodedTexts:
    """Some rows' texts as word pieces, from the disk if they are there.

    Args:
        data: Rows with the columns of texts.
        rows: (N,) which.
        tokenizer: What makes the pieces.
        settings: How they become sequences.
        fingerprint: Of the data's content.
        directory: Where tokenised texts are kept.

    Raises:
        UserError: If the disk is full.
    """
    if len(rows) < KEPT_FROM:
        return encode_texts(data, rows, tokenizer, settings)
    name = hashlib.sha256("\n".join([str(FORMAT), fingerprint, tokenizer.hash, repr(settings)]).encode())
    name.update(rows.tobytes())
    kept = directory / name.hexdigest()[:16]

    def build(partial: Path) -> None:
        encoded = encode_texts(data, rows, tokenizer, settings)
        partial.mkdir(parents=True)
        for array in ARRAYS:
            numpy.save(partial / f"{array}.npy", getattr(encoded, array))
        (partial / FACTS).write_text(json.dumps({"truncated": encoded.truncated, "empty": encoded.empty}) + "\n")

    build_once(kept, build, "tokenised texts")
    arrays = {array: numpy.load(kept / f"{array}.npy", mmap_mode="r") for array in ARRAYS}
    facts = json.loads((kept / FACTS).read_text())
    special = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    separators = tokenizer.separators
    return EncodedTexts(rows, settings=settings, special_ids=special, separators=separators, **arrays, **facts)
