"""Pairs of texts for next sentence prediction, after the script of BERT's authors (arXiv:1810.04805, appendix A.2).

A plan says for every pair of an epoch which tokens are A, which are B and whether B is random (label 1, as in the
authors' code). It is made from sentence lengths alone; every draw of a document comes from (seed, epoch, document).
"""

import hashlib
import random
import shutil
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy

from lit_pretrain.data.disk_cache import FACTS, build_once, build_progress, write_array
from lit_pretrain.data.notices import say_once
from lit_pretrain.data.randomness import derive_seed
from lit_pretrain.data.text.token_cache import TokenCache
from lit_pretrain.errors import UserError

RandomNext = Literal["balanced", "faithful", "never"]
FORMAT = 1
# Sentences from which planning takes so long that its plan is kept.
KEPT_FROM = 500_000
# Pairs that are planned at a time.
BLOCK = 200_000
# What is kept of a plan, and of what kind.
KINDS: dict[str, type] = {"first": numpy.int64, "second": numpy.int64, "is_random": bool, "documents": numpy.int64}


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    Attributes:
        room: Tokens of A and B together: the sequence length less [CLS], [SEP] and [SEP].
        random_next: `balanced`, `faithful` or `never`; see `plan_pairs`.
        short_share: Probability that a pair aims at a shorter length, uniform in 2..room.
    """

    room: int
    random_next: RandomNext = "balanced"
    short_share: float = 0.1


@dataclass
class PairPlan:
    """Pairs of an epoch: token offsets of A and B, and the labels.

    Attributes:
        first: (P, 2) start and end of A.
        second: (P, 2) start and end of B.
        is_random: (P,) booleans, label 1.
        documents: (P, 2) documents of A and B.
    """

    first: numpy.ndarray
    second: numpy.ndarray
    is_random: numpy.ndarray
    documents: numpy.ndarray
    directory: ClassVar[Path | None] = None

    @classmethod
    def open(cls, directory: Path) -> "PairPlan":
        """Map a plan from the disk."""
        arrays = {name: numpy.memmap(directory / f"{name}.bin", kind, mode="r") for name, kind in KINDS.items()}
        plan = cls(**{name: array if name == "is_random" else array.reshape(-1, 2) for name, array in arrays.items()})
        cast(Any, plan).directory = directory
        return plan

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes map the files themselves rather than receive the whole plan."""
        if self.directory is not None:
            return PairPlan.open, (self.directory,)
        return PairPlan, (self.first, self.second, self.is_random, self.documents)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.is_random)


def plan_pairs(
    cache: TokenCache, documents: numpy.ndarray, settings: PairSettings, seed: int, epoch: int, training: bool = True
) -> PairPlan:
    """Make an epoch's pairs.

    Sentences of a document are gathered until the target length or its end; A ends at a uniform cut; B is the rest, or
    starts at a random sentence of another document, and then the rest is put back. A piece of one sentence can only
    have a random B. `faithful` otherwise tosses a coin, as the authors do, which yields 55 to 65 % random pairs, and
    draws the target once a document. `balanced` tosses it only while there are as many random as following pairs, and
    else takes the rarer kind, so that the halves are equal if there are pieces of two sentences enough; the target is
    drawn for every pair. `never` lets B follow A always, as sentence order prediction needs it (Lan et al. 2020,
    arXiv:1909.11942), and leaves pieces of one sentence out; the target is drawn for every pair, and neither text is
    longer or more often cut than the other.

    Args:
        cache: The tokenised corpus.
        documents: (N,) documents to take from, at least two if some pairs are random.
        settings: How pairs are made.
        seed: With `epoch`, the source of every draw.
        epoch: Number of the pass over the corpus.
        training: Whether pairs without a single following one are refused.

    Raises:
        UserError: If there are fewer than two documents, or no document for training has two sentences.
    """
    if len(documents) < least_documents(settings.random_next):
        raise UserError(
            f"Sentence pairs need a random second text from another document, but there is {len(documents)} document "
            "to take from: give several documents, set data.random_next to never, or data.layout to segments, and "
            "leave out NextSentencePrediction."
        )
    blocks = list(planned_blocks(cache, documents, settings, seed, epoch))
    plan = PairPlan(
        *(numpy.concatenate(parts) for parts in zip(*(vars(block).values() for block in blocks), strict=True))
    )
    if training and plan.is_random.all():
        raise no_following()
    return plan


def find_or_plan(
    cache: TokenCache, documents: numpy.ndarray, settings: PairSettings, seed: int, epoch: int, training: bool = True
) -> PairPlan:
    """As `plan_pairs`; of a large corpus the plan is made once for all processes of a machine, and kept on disk.

    It is mapped from there, so that it takes memory once however many processes there are. Plans of earlier epochs but
    the last are removed. Where nothing can be written, every process makes its own.

    Args:
        cache: The tokenised corpus.
        documents: As for `plan_pairs`.
        settings: As there.
        seed: As there.
        epoch: As there.
        training: As there.

    Raises:
        UserError: As there.
    """
    if (
        cache.directory is None
        or cache.facts.get("sentences", 0) < KEPT_FROM
        or len(documents) < least_documents(settings.random_next)
    ):
        return plan_pairs(cache, documents, settings, seed, epoch, training)
    name = hashlib.sha256(f"{FORMAT}\n{settings}\n{seed}\n".encode())
    name.update(documents.astype(numpy.int64).tobytes())
    plans = cache.directory.with_name(f"{cache.directory.name}.pairs") / name.hexdigest()[:16]
    directory = plans / str(epoch)

    def build(partial: Path) -> None:
        partial.mkdir(parents=True)
        with ExitStack() as stack:
            files = {name: stack.enter_context((partial / f"{name}.bin").open("wb")) for name in KINDS}
            progress = stack.enter_context(build_progress("documents"))
            task = progress.add_task(f"Planning the pairs of epoch {epoch}", total=len(documents))

            def planned(number: int) -> None:
                progress.update(task, completed=number)

            for block in planned_blocks(cache, documents, settings, seed, epoch, planned):
                for name, file in files.items():
                    write_array(file, getattr(block, name))
        (partial / FACTS).write_text("{}\n")

    try:
        build_once(directory, build, "plan of sentence pairs")
    except UserError as error:
        say_once(f"{error} Until then every process plans for itself.")
        return plan_pairs(cache, documents, settings, seed, epoch, training)
    for kept in plans.glob("[0-9]*"):
        if kept.is_dir() and kept.name.isdigit() and int(kept.name) < epoch - 1:
            shutil.rmtree(kept, ignore_errors=True)
    plan = PairPlan.open(directory)
    if training and plan.is_random.all():
        raise no_following()
    return plan


def least_documents(random_next: RandomNext) -> int:
    """Documents without which there are no pairs: a random second text comes from another one."""
    return 1 if random_next == "never" else 2


def no_following() -> UserError:
    """What is said of a corpus without a single following pair."""
    return UserError(
        "Every document has one sentence only, so no second text follows a first: set data.layout to segments and "
        "leave out NextSentencePrediction."
    )


def planned_blocks(
    cache: TokenCache,
    documents: numpy.ndarray,
    settings: PairSettings,
    seed: int,
    epoch: int,
    planned: Callable[[int], None] = lambda number: None,
) -> Iterator[PairPlan]:
    """The pairs of an epoch, many thousand at a time; see `plan_pairs`.

    Args:
        cache: The tokenised corpus.
        documents: As for `plan_pairs`.
        settings: As there.
        seed: As there.
        epoch: As there.
        planned: Is told after each block how many documents are done.
    """
    # Flat arrays of 8 bytes a number: as tuples, the pairs of a corpus of gigabytes would take gigabytes.
    first, second, owners, labels = array("q"), array("q"), array("q"), bytearray()
    surplus = 0  # random pairs so far less following ones
    for index, document in enumerate(documents.tolist()):
        sentences = cache.sentence_offsets(document).tolist()
        draw = random.Random(derive_seed(seed, "pairs", epoch, document))
        # A piece ends with the sentence that passes its target, a long one more often than not, so that B would be
        # longer and more often cut than A, which tells swapped pairs: half of the documents are cut up from their ends.
        mirrored = settings.random_next == "never" and draw.random() < 0.5
        bounds = sentences[0] + sentences[-1]
        if mirrored:
            sentences = [bounds - offset for offset in reversed(sentences)]
        target = draw_target(draw, settings)
        last, start = len(sentences) - 1, 0
        while start < last:
            if settings.random_next != "faithful":
                target = draw_target(draw, settings)
            # The first sentence end at or beyond the target length, or the document's end.
            end = min(bisect_left(sentences, sentences[start] + target, start + 1), last)
            if settings.random_next == "never" and end - start < 2:
                start = end
                continue
            cut = start + 1 if end - start < 2 else draw.randint(start + 1, end - 1)
            toss = draw.random() < 0.5
            if settings.random_next == "balanced" and surplus:
                toss = surplus < 0
            is_random = settings.random_next != "never" and (end - start < 2 or toss)
            a, owner = (sentences[start], sentences[cut]), index
            if is_random:
                # Uniform over the others: from one fewer, with this one skipped.
                owner = draw.randrange(len(documents) - 1)
                owner += owner >= index
                b = random_text(draw, cache.sentence_offsets(int(documents[owner])), target - (a[1] - a[0]))
                start = cut
            else:
                b = (sentences[cut], sentences[end])
                start = end
            surplus += 1 if is_random else -1
            a, b = truncate_pair(draw, a, b, settings.room)
            if mirrored:
                a, b = ((bounds - end, bounds - begin) for begin, end in (b, a))
            first.extend(a)
            second.extend(b)
            labels.append(is_random)
            owners.extend((document, int(documents[owner])))
        if len(labels) >= BLOCK or index == len(documents) - 1:
            planned(index + 1)
            yield PairPlan(
                numpy.frombuffer(first, numpy.int64).reshape(-1, 2),
                numpy.frombuffer(second, numpy.int64).reshape(-1, 2),
                numpy.frombuffer(labels, bool),
                numpy.frombuffer(owners, numpy.int64).reshape(-1, 2),
            )
            first, second, owners, labels = array("q"), array("q"), array("q"), bytearray()


def draw_target(draw: random.Random, settings: PairSettings) -> int:
    """The length that a pair aims at."""
    return draw.randint(2, settings.room) if draw.random() < settings.short_share else settings.room


def random_text(draw: random.Random, sentences: numpy.ndarray, target: int) -> tuple[int, int]:
    """Offsets of sentences from a random one on until the target length or the document's end."""
    last = len(sentences) - 1
    start = draw.randrange(last)
    end = min(bisect_left(sentences, sentences[start] + target, start + 1), last)
    return int(sentences[start]), int(sentences[end])


def truncate_pair(
    draw: random.Random, first: tuple[int, int], second: tuple[int, int], room: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Cut the longer side (B on a tie), at the front or the back with equal chance, a token at a time."""
    # Counted, and cut at the end: it is most of the work of planning, before the first step of every epoch.
    a_length, b_length = first[1] - first[0], second[1] - second[0]
    a_front = b_front = 0
    while a_length + b_length > room:
        front = draw.random() < 0.5
        if a_length > b_length:
            a_length -= 1
            a_front += front
        else:
            b_length -= 1
            b_front += front
    a_start, b_start = first[0] + a_front, second[0] + b_front
    return (a_start, a_start + a_length), (b_start, b_start + b_length)
