"""From plans to batches: clean sequences of word pieces, copied out of the memory-mapped corpus."""

from typing import Any, Literal, cast

import numpy
import torch

from lit_pretrain.data.loading import Key
from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.sentence_pairs import PairPlan, PairSettings, find_or_plan
from lit_pretrain.data.text.token_cache import TokenCache

Layout = Literal["sentence_pairs", "segments"]


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
    ) -> None:
        self.cache = cache
        self.documents = documents
        self.sequence_length = sequence_length
        self.layout = layout
        self.pairs = pairs
        self.seed = seed
        self.fixed = fixed
        self.cls_id, self.sep_id, self.pad_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
        self._planned: tuple[int, PairPlan | numpy.ndarray] | None = None
        self._size = self.population(0)

    def __len__(self) -> int:
        """Samples of an epoch: those of the first one."""
        return self._size

    def population(self, epoch: int) -> int:
        """Samples in an epoch's plan."""
        return len(self.plan(epoch))

    def plan(self, epoch: int) -> PairPlan | numpy.ndarray:
        """An epoch's plan; the last one is kept."""
        epoch = 0 if self.fixed else epoch
        if self._planned is None or self._planned[0] != epoch:
            plan: PairPlan | numpy.ndarray
            if self.layout == "sentence_pairs":
                plan = find_or_plan(self.cache, self.documents, self.pairs, self.seed, epoch, not self.fixed)
            else:
                cut_from = None if self.fixed else epoch
                plan = plan_segments(self.cache, self.documents, self.sequence_length - 2, self.seed, cut_from)
            self._planned = (epoch, plan)
        return self._planned[1]

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """A clean batch of (epoch, index) keys: every tensor is (B, L), labels and ids (B,); `padded` is a bool."""
        plan = self.plan(keys[0][0])
        indices = numpy.array([index for _, index in keys])
        input_ids = numpy.full((len(keys), self.sequence_length), self.pad_id, dtype=numpy.int64)
        segments = numpy.zeros_like(input_ids)
        if isinstance(plan, PairPlan):
            ends = self._fill_pairs(plan, indices, input_ids, segments)
        else:
            ends = self._fill_segments(plan[indices], input_ids)
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(numpy.arange(self.sequence_length) < ends[:, None]),
            "token_type_ids": torch.from_numpy(segments),
            "sample_id": torch.from_numpy(indices),
            "padded": bool((ends < self.sequence_length).any()),
        }
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
    owner = numpy.repeat(numpy.arange(len(documents)), counts)
    rank = numpy.arange(len(owner)) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
    begin = numpy.where(rank == 0, starts[owner], firsts[owner] + (rank - 1) * room)
    finish = numpy.where(rank == 0, firsts[owner], numpy.minimum(firsts[owner] + rank * room, ends[owner]))
    return numpy.stack([begin, finish], axis=1)


class DocumentStarts:
    """The beginning of every document, for embeddings: [CLS] A [SEP], `sample_id` being the source's row.

    Args:
        cache: The tokenised corpus.
        tokenizer: Whose special tokens stand around the text.
        sequence_length: L, tokens of a sequence.
    """

    def __init__(self, cache: TokenCache, tokenizer: TextTokenizer, sequence_length: int) -> None:
        everything = numpy.arange(cache.documents)
        self.inner = DocumentDataset(
            cache, everything, tokenizer, sequence_length, "segments", PairSettings(sequence_length), 0, fixed=True
        )
        self.cache = cache
        self.starts = cache.document_offsets()

    def __len__(self) -> int:
        """Number of documents."""
        return self.cache.documents

    def population(self, epoch: int) -> int:
        """Number of documents."""
        return len(self)

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """A batch of documents' beginnings."""
        documents = numpy.array([index for _, index in keys])
        # Segments cut from the documents' starts are in order, so each document's first is found by its offset.
        starts = self.starts[documents]
        rows = numpy.searchsorted(cast(numpy.ndarray, self.inner.plan(0))[:, 0], starts)
        batch = self.inner.__getitems__([(0, int(row)) for row in rows])
        return batch | {"sample_id": torch.from_numpy(self.cache.document_rows[documents].copy())}
