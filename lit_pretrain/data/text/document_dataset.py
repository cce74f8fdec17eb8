"""Sentence pairs, segments or packed rows of some documents of a tokenised corpus, planned anew for every epoch."""

from typing import Any, Literal

import numpy
import torch

from lit_pretrain.data.loading import Key
from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.packing import PackedRows, pack
from lit_pretrain.data.text.sentence_pairs import PairPlan, PairSettings, find_or_plan
from lit_pretrain.data.text.token_cache import DOCUMENTS_AT_ONCE, TokenCache

Layout = Literal["sentence_pairs", "segments"]
# [CLS] and [SEP] of a segment.
SPECIAL = 2
# Which texts an epoch's samples are: pairs, segments, or rows of several of these.
Plan = PairPlan | numpy.ndarray | PackedRows


class DocumentDataset:
    """Sentence pairs or segments of some documents, planned anew for every epoch.

    Args:
        cache: The tokenised corpus.
        documents: (N,) documents to take from.
        tokenizer: Whose special tokens stand around the text.
        sequence_length: L, tokens of a sequence.
        layout: `sentence_pairs` or `segments`.
        pairs: How pairs are made.
        seed: Source of the plans' draws.
        fixed: Whether every epoch is the same (evaluation).
        packing: Whether segments share sequences.
        checked: Whether a plan without a single following pair is refused in training.
    """

    def __init__(
        self,
        cache: TokenCache,
        documents: numpy.ndarray,
        tokenizer: TextTokenizer,
        sequence_length: int,
        layout: Layout,
        pairs: PairSettings,
        seed: int,
        fixed: bool = False,
        packing: bool = False,
        checked: bool = True,
    ) -> None:
        self.cache = cache
        self.checked = checked and not fixed
        self.packing = packing
        self.documents = documents
        self.sequence_length = sequence_length
        self.layout = layout
        self.pairs = pairs
        self.seed = seed
        self.fixed = fixed
        self.cls_id, self.sep_id, self.pad_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
        self._planned: tuple[int, Plan] | None = None
        self._size = self.population(0)

    def __len__(self) -> int:
        """Samples of an epoch: those of the first one."""
        return self._size

    def population(self, epoch: int) -> int:
        """Samples in an epoch's plan."""
        return len(self.plan(epoch))

    def plan(self, epoch: int) -> Plan:
        """An epoch's plan; the last one is kept."""
        epoch = 0 if self.fixed else epoch
        if self._planned is None or self._planned[0] != epoch:
            plan: Plan
            if self.layout == "sentence_pairs":
                plan = find_or_plan(self.cache, self.documents, self.pairs, self.seed, epoch, self.checked)
            else:
                cut_from = None if self.fixed else epoch
                plan = plan_segments(self.cache, self.documents, self.sequence_length - SPECIAL, self.seed, cut_from)
                if self.packing:
                    generator = sample_generator(self.seed, "packing", epoch)
                    plan = pack(plan, self.sequence_length, SPECIAL, generator)
            self._planned = (epoch, plan)
        return self._planned[1]

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """A clean batch of (epoch, index) keys: every tensor is (B, L), labels and ids (B,); `padded` is a bool."""
        plan = self.plan(keys[0][0])
        indices = numpy.array([index for _, index in keys])
        input_ids = numpy.full((len(keys), self.sequence_length), self.pad_id, dtype=numpy.int64)
        segments = numpy.zeros_like(input_ids)
        documents = numpy.full_like(input_ids, -1)
        if isinstance(plan, PairPlan):
            ends = self._fill_pairs(plan, indices, input_ids, segments)
        elif isinstance(plan, PackedRows):
            ends = self._fill_rows(plan, indices, input_ids, documents)
        else:
            ends = self._fill_segments(plan[indices], input_ids)
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(numpy.arange(self.sequence_length) < ends[:, None]),
            "token_type_ids": torch.from_numpy(segments),
            "sample_id": torch.from_numpy(indices),
            "padded": bool((ends < self.sequence_length).any()),
        }
        if self.packing:
            batch["documents"] = torch.from_numpy(documents)
        if isinstance(plan, PairPlan) and self.pairs.random_next != "never":
            batch["next_sentence_label"] = torch.from_numpy(plan.is_random[indices].astype(numpy.int64))
        return batch

    def _fill_pairs(
        self, plan: PairPlan, indices: numpy.ndarray, input_ids: numpy.ndarray, segments: numpy.ndarray
    ) -> numpy.ndarray:
        """Write [CLS] A [SEP] B [SEP] into each row; returns the lengths."""
        first, second = plan.first[indices], plan.second[indices]
        middle = 2 + first[:, 1] - first[:, 0]
        ends = middle + 1 + second[:, 1] - second[:, 0]
        input_ids[:, 0] = self.cls_id
        for row, ids in enumerate(input_ids):
            ids[1 : middle[row] - 1] = self.cache.tokens[first[row, 0] : first[row, 1]]
            ids[middle[row] - 1] = self.sep_id
            ids[middle[row] : ends[row] - 1] = self.cache.tokens[second[row, 0] : second[row, 1]]
            ids[ends[row] - 1] = self.sep_id
            segments[row, middle[row] : ends[row]] = 1
        return ends

    def _fill_segments(self, bounds: numpy.ndarray, input_ids: numpy.ndarray) -> numpy.ndarray:
        """Write [CLS] A [SEP] into each row; returns the lengths."""
        ends = 2 + bounds[:, 1] - bounds[:, 0]
        input_ids[:, 0] = self.cls_id
        for row, ids in enumerate(input_ids):
            ids[1 : ends[row] - 1] = self.cache.tokens[bounds[row, 0] : bounds[row, 1]]
            ids[ends[row] - 1] = self.sep_id
        return ends

    def _fill_rows(
        self, plan: PackedRows, indices: numpy.ndarray, input_ids: numpy.ndarray, documents: numpy.ndarray
    ) -> numpy.ndarray:
        """Write [CLS] A [SEP] [CLS] B [SEP] ... into each row, and the texts' numbers; returns the lengths."""
        ends = numpy.zeros(len(indices), dtype=numpy.int64)
        for row, index in enumerate(indices):
            end = 0
            for number, (first, last) in enumerate(plan.row(int(index))):
                begin, end = end, end + SPECIAL + last - first
                input_ids[row, begin] = self.cls_id
                input_ids[row, begin + 1 : end - 1] = self.cache.tokens[first:last]
                input_ids[row, end - 1] = self.sep_id
                documents[row, begin:end] = number
            ends[row] = end
        return ends


def plan_segments(
    cache: TokenCache, documents: numpy.ndarray, room: int, seed: int, epoch: int | None
) -> numpy.ndarray:
    """Cut documents into the contiguous pieces of an epoch, each of which fills a sequence.

    The cuts shift from epoch to epoch, so that no token always stands at a sequence's edge (as in RoBERTa's
    DOC-SENTENCES without its packing, arXiv:1907.11692).

    Args:
        cache: The tokenised corpus.
        documents: (N,) documents to take from.
        room: Tokens of a segment: the sequence length less [CLS] and [SEP].
        seed: With `epoch`, the source of the shifts.
        epoch: Number of the pass over the corpus; null cuts from each document's start.

    Returns:
        (P, 2) start and end of each segment; every token of every document is in exactly one.
    """
    bounds = cache.document_offsets()
    starts, ends = bounds[documents], bounds[documents + 1]
    shifts = numpy.zeros(len(documents), dtype=numpy.int64)
    if epoch is not None:
        shifts = sample_generator(seed, "segments", epoch).integers(0, room, len(documents))
    # A document's first segment ends after `shift` tokens (or `room`, if none), the others after `room` each.
    firsts = numpy.minimum(starts + numpy.where(shifts > 0, shifts, room), ends)
    counts = 1 + -(-(ends - firsts) // room)
    segments = numpy.empty((int(counts.sum()), 2), dtype=numpy.int64)
    filled = 0
    # Some documents at a time: of a large corpus what it takes to get there is several times the result.
    for beginning in range(0, len(documents), DOCUMENTS_AT_ONCE):
        part = slice(beginning, beginning + DOCUMENTS_AT_ONCE)
        owner = numpy.repeat(numpy.arange(len(counts[part])), counts[part])
        rank = numpy.arange(len(owner)) - numpy.repeat(numpy.cumsum(counts[part]) - counts[part], counts[part])
        start, first, end = starts[part][owner], firsts[part][owner], ends[part][owner]
        place = segments[filled : filled + len(owner)]
        place[:, 0] = numpy.where(rank == 0, start, first + (rank - 1) * room)
        place[:, 1] = numpy.where(rank == 0, first, numpy.minimum(first + rank * room, end))
        filled += len(owner)
    return segments
