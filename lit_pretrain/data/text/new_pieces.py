"""A WordPiece vocabulary that grows: the pieces that a corpus would be shorter by, added to a tokenizer that is there.

The tokenizer of public weights cuts a domain's own words into many pieces, so that sequences hold less of a text, and a
word's meaning has to be put together anew each time (exBERT: Tai et al. 2020, doi:10.18653/v1/2020.findings-emnlp.129;
AVocaDo: Hong et al. 2021, arXiv:2110.13434). Here the pieces that save most pieces of the corpus are appended. What a
word would be cut into with one more piece is counted exactly, since the longest piece that fits is taken from the left.
Whatever begins where a piece begins may become one, whole words among them. They are chosen one after the other, each
on the words as those before it have left them; then each is asked what the corpus would lose without it, since an
earlier choice may serve no word any more, and such ones are replaced.

An id means what it meant before. A new piece's row begins as the mean of the rows that it takes the place of.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer

from lit_pretrain.data.disk_cache import FACTS, build_once
from lit_pretrain.data.notices import say_once
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError, counted

# Changes with the way that pieces are chosen.
FORMAT = 1
# Different words that are looked at, the most frequent ones; they take about 2 kB each.
MOST_WORDS = 200_000
# What stands in a corpus more rarely is hardly learned (word2vec's limit).
LEAST_USES = 5
# How often pieces that turn out to save less than others are replaced.
ROUNDS = 4
# A letter that the vocabulary lacks makes its whole word unknown: it counts as a piece more than any other.
UNKNOWN_LETTER = 2

Bounds = tuple[int, ...]


@dataclass(frozen=True)
class Growth:
    """What new pieces did for a corpus.

    Attributes:
        pieces: How many there are.
        words: Words of the corpus.
        pieces_before: What the old tokenizer makes of them.
        pieces_after: What the larger one does.
    """

    pieces: int
    words: int
    pieces_before: int
    pieces_after: int

    def told(self, count: int) -> str:
        """One sentence; `count` is how many pieces were asked for."""
        words = max(1, self.words)
        shortage = f", fewer than data.new_pieces ({count:,}) since no others save any" if self.pieces < count else ""
        return (
            f"The tokenizer has {counted(self.pieces, 'new piece')}{shortage}: the texts have "
            f"{self.pieces_before / words:.3f} pieces a word with the old ones and {self.pieces_after / words:.3f} "
            "with the new."
        )


def check_growing(tokenizer: TextTokenizer | None) -> None:
    """Refuse to add pieces to a tokenizer that cannot have any.

    Args:
        tokenizer: Of the weights, or the one that a config names; null for none.

    Raises:
        UserError: If there is none, or it has no pieces of words.
    """
    if tokenizer is None:
        raise UserError(
            "data.new_pieces adds pieces to the tokenizer of model.init_from or to data.tokenizer, and without either "
            "one is trained on the corpus, whose pieces it has: raise data.vocabulary_size instead, or set "
            "model.init_from."
        )
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise UserError(
            f"data.new_pieces adds pieces to a WordPiece tokenizer, and this one is {tokenizer.model}, whose pieces "
            "follow from merges: set data.new_pieces to 0, or start from weights of BERT's kind."
        )


def grown_once(directory: Path, tokenizer: WordPieceTokenizer, texts: Iterable[str], count: int) -> WordPieceTokenizer:
    """As `grown_tokenizer`, from the disk if it was made before; it says what was gained.

    Args:
        directory: Where it is kept, named by all that it depends on.
        tokenizer: That grows.
        texts: What the pieces are chosen by; read once.
        count: How many at most.

    Raises:
        UserError: If the disk is full.
    """

    def build(partial: Path) -> None:
        larger, growth = grown_tokenizer(tokenizer, texts, count)
        larger.save(partial)
        (partial / FACTS).write_text(json.dumps(asdict(growth)) + "\n")

    build_once(directory, build, "tokenizer")
    growth = Growth(**json.loads((directory / FACTS).read_text()))
    say_once(growth.told(count))
    return WordPieceTokenizer.load(directory)


def grown_tokenizer(
    tokenizer: WordPieceTokenizer, texts: Iterable[str], count: int
) -> tuple[WordPieceTokenizer, Growth]:
    """A tokenizer with the pieces that save a corpus most; the same in every process and on every machine.

    Args:
        tokenizer: Whose pieces keep their ids; how texts become words is as before too.
        texts: The corpus, read once.
        count: New pieces at most; there are fewer if no others would be used often enough.
    """
    pieces = Pieces.of(tokenizer)
    words = word_counts(tokenizer.tokenizer, texts)
    words = {word: times for word, times in words.items() if len(word) <= pieces.word_length}
    larger = with_pieces(tokenizer, chosen_pieces(pieces, words, count))
    lengths = [pieces_of_words(each, words) for each in (tokenizer, larger)]
    return larger, Growth(larger.vocabulary_size - tokenizer.vocabulary_size, sum(words.values()), *lengths)


def with_pieces(tokenizer: WordPieceTokenizer, new: Sequence[str]) -> WordPieceTokenizer:
    """The same tokenizer with pieces appended, each with the next id."""
    parts = json.loads(tokenizer.to_json())
    # With what stands beside the model's own vocabulary, as added tokens may: read again, these would be numbered anew.
    parts["model"]["vocab"] = {piece: index for index, piece in enumerate([*tokenizer.vocabulary, *new])}
    return WordPieceTokenizer(Tokenizer.from_str(json.dumps(parts)))


# -- what larger tokenizers are to smaller ones


def is_larger(larger: TextTokenizer, smaller: TextTokenizer) -> bool:
    """Whether a tokenizer is another one with further pieces appended."""
    if larger.vocabulary[: smaller.vocabulary_size] != smaller.vocabulary or type(larger) is not type(smaller):
        return False
    parts = [json.loads(each.to_json()) for each in (larger, smaller)]
    settings = [
        (part["normalizer"], part["pre_tokenizer"], {**part["model"], "vocab": None, "merges": None}) for part in parts
    ]
    return larger.vocabulary_size > smaller.vocabulary_size and settings[0] == settings[1]


def replaced_pieces(larger: WordPieceTokenizer, smaller: WordPieceTokenizer) -> list[list[int]]:
    """What a smaller tokenizer has in the place of each piece that a larger one has besides: ids, at least one each."""
    pieces = Pieces.of(smaller)
    replaced = []
    for piece in larger.vocabulary[smaller.vocabulary_size :]:
        inner = piece.startswith(pieces.prefix)
        word = piece.removeprefix(pieces.prefix) if inner else piece
        found = pieces.named(word, pieces.segment(word, inner), inner)
        replaced.append([pieces.ids[name] for name in found if name in pieces.ids] or [smaller.unk_id or 0])
    return replaced


# -- words


def word_counts(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, int]:
    """How often the words of a corpus stand there, as a tokenizer finds words: the most frequent ones in that order.

    Args:
        tokenizer: Whose normaliser and pre-tokenizer are used.
        texts: Read once.
    """
    counter = Tokenizer(WordLevel(unk_token="[UNK]"))
    counter.normalizer, counter.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    trainer = WordLevelTrainer(vocab_size=1, show_progress=False)
    counter.train_from_iterator(texts, trainer)
    # The library counts on all cores, and hands the counts out by what `pickle` calls alone.
    (state,) = json.loads(trainer.__getstate__()).values()
    # Whatever follows must not hang on the order of the library's table.
    frequent = heapq.nsmallest(MOST_WORDS, ((-times, word) for word, times in state["words"].items()))
    return {word: -negative for negative, word in frequent}


def pieces_of_words(tokenizer: WordPieceTokenizer, words: dict[str, int]) -> int:
    """Pieces of all words together, each as often as it stands in the corpus; an unknown word is one."""
    model = tokenizer.tokenizer.model
    return sum(times * len(model.tokenize(word)) for word, times in words.items())


class Pieces:
    """The pieces of a tokenizer, and how it cuts words into them: the longest that fits, from the left.

    Args:
        ids: Of each piece.
        prefix: Of pieces within a word.
        word_length: Characters of the longest word that is taken apart.
    """

    def __init__(self, ids: dict[str, int], prefix: str, word_length: int) -> None:
        self.ids = ids
        self.prefix = prefix
        self.word_length = word_length
        self.longest = max(map(len, ids))

    @classmethod
    def of(cls, tokenizer: WordPieceTokenizer) -> Self:
        """Those of a tokenizer."""
        model = json.loads(tokenizer.to_json())["model"]
        ids = {piece: index for index, piece in enumerate(tokenizer.vocabulary)}
        return cls(ids, model["continuing_subword_prefix"], model["max_input_chars_per_word"])

    def and_new(self, new: Iterable[str]) -> "Pieces":
        """A copy with further ones."""
        pieces = Pieces(dict(self.ids), self.prefix, self.word_length)
        for piece in new:
            pieces.add(piece)
        return pieces

    def add(self, piece: str) -> None:
        """Append one."""
        self.ids.setdefault(piece, len(self.ids))
        self.longest = max(self.longest, len(piece))

    def segment(self, word: str, inner: bool = False, without: str = "") -> Bounds:
        """Where the pieces of a word begin and end; a letter that there is no piece for is taken for one.

        Args:
            word: A word, or what stands within one.
            inner: Whether it does.
            without: A piece that is not to be used.
        """
        bounds, start, prefix = [0], 0, self.prefix if inner else ""
        while start < len(word):
            start = self.end_of(word, start, prefix, without)
            bounds.append(start)
            prefix = self.prefix
        return tuple(bounds)

    def end_of(self, word: str, start: int, prefix: str, without: str = "") -> int:
        """Where the piece ends that begins at `start`."""
        end = min(len(word), start + self.longest)
        while end > start + 1 and ((piece := prefix + word[start:end]) not in self.ids or piece == without):
            end -= 1
        return end

    def named(self, word: str, bounds: Bounds, inner: bool = False) -> list[str]:
        """The pieces between bounds."""
        return [
            (self.prefix if start or inner else "") + word[start:end]
            for start, end in zip(bounds[:-1], bounds[1:], strict=True)
        ]

    def costs(self, word: str, bounds: Bounds) -> list[int]:
        """What each piece between bounds costs: one, and more for a letter that is unknown."""
        return [1 if piece in self.ids else UNKNOWN_LETTER for piece in self.named(word, bounds)]


# -- the choice


def chosen_pieces(pieces: Pieces, words: dict[str, int], count: int) -> list[str]:
    """The new pieces that save most, in the order of their choice.

    Args:
        pieces: The old ones.
        words: How often each stands in the corpus.
        count: How many at most.
    """
    # A word that is one piece already has nothing to gain.
    words = {word: times for word, times in words.items() if sum(pieces.costs(word, pieces.segment(word))) > 1}
    chosen: list[str] = []
    dropped: set[str] = set()
    for turn in range(ROUNDS):
        choice = Choice(pieces.and_new(chosen), words, dropped)
        chosen += choice.take(count - len(chosen))
        best_left = choice.best_left()
        saved = saved_by(pieces.and_new(chosen), words, set(chosen))
        # In the last round nothing takes their place, so that those alone go that save nothing.
        limit = 1 if turn == ROUNDS - 1 else max(1, best_left)
        poor = {piece for piece in chosen if saved[piece] < limit}
        chosen = [piece for piece in chosen if piece not in poor]
        dropped |= poor
        if not poor:
            break
    return chosen


def saved_by(pieces: Pieces, words: dict[str, int], chosen: set[str]) -> Counter[str]:
    """By how much the corpus would be longer without each of some pieces, the others being there."""
    saved: Counter[str] = Counter()
    for word, times in words.items():
        bounds = pieces.segment(word)
        cost = sum(pieces.costs(word, bounds))
        for piece in chosen.intersection(pieces.named(word, bounds)):
            other = pieces.segment(word, without=piece)
            # The piece may be a letter of its own, which then is unknown.
            lost = sum(
                UNKNOWN_LETTER if name == piece or name not in pieces.ids else 1 for name in pieces.named(word, other)
            )
            saved[piece] += times * (lost - cost)
    return saved


class Choice:
    """Candidates, what each would save, and in which words.

    Args:
        pieces: What there is already; what is chosen is added.
        words: How often each stands in the corpus.
        excluded: Pieces that are not to be chosen.
    """

    def __init__(self, pieces: Pieces, words: dict[str, int], excluded: set[str]) -> None:
        self.pieces = pieces
        self.words = list(words)
        self.times = list(words.values())
        self.cuts = [self.cut(word) for word in self.words]
        uses: Counter[str] = Counter()
        for index, times in enumerate(self.times):
            for piece, saved in self.stretches(index):
                uses[piece] += times * (saved > 0)
        # Most are too rare, and no table is made for these.
        self.uses = {piece: number for piece, number in uses.items() if number >= LEAST_USES and piece not in excluded}
        del uses
        self.saving = dict.fromkeys(self.uses, 0)
        self.places: dict[str, list[int]] = {piece: [] for piece in self.uses}
        for index, times in enumerate(self.times):
            for piece, saved in self.stretches(index):
                if piece in self.saving:
                    self.saving[piece] += times * saved
                    self.places[piece].append(index)
        self.heap = [(-saving, piece) for piece, saving in self.saving.items()]
        heapq.heapify(self.heap)

    def cut(self, word: str) -> tuple[Bounds, list[int]]:
        """Where its pieces begin and end, and what the rest of the word would cost from each letter on."""
        pieces, rest = self.pieces, [0] * (len(word) + 1)
        for start in range(len(word) - 1, -1, -1):
            end = pieces.end_of(word, start, pieces.prefix if start else "")
            known = end > start + 1 or (pieces.prefix if start else "") + word[start] in pieces.ids
            rest[start] = rest[end] + (1 if known else UNKNOWN_LETTER)
        return pieces.segment(word), rest

    def stretches(self, index: int) -> list[tuple[str, int]]:
        """What could be a piece of a word, and how much shorter that would make it; longer, if negative."""
        word, (bounds, rest) = self.words[index], self.cuts[index]
        found = []
        for start, least_end in zip(bounds[:-1], bounds[1:], strict=True):
            prefix, cost = self.pieces.prefix if start else "", rest[start] - 1
            # One that is shorter than what stands there would not be taken.
            for end in range(least_end, len(word) + 1):
                if saved := cost - rest[end]:
                    found.append((prefix + word[start:end], saved))
        return found

    def best_left(self) -> int:
        """What the best candidate would save, which is put in front; 0 if there is none."""
        while self.heap:
            negative, piece = self.heap[0]
            useful = self.uses[piece] >= LEAST_USES and self.saving[piece] > 0
            if useful and self.saving[piece] == -negative:
                return -negative
            # Pieces that were chosen since have taken words from it.
            heapq.heappop(self.heap)
            if useful:
                heapq.heappush(self.heap, (-self.saving[piece], piece))
        return 0

    def take(self, count: int) -> list[str]:
        """The best candidates one after the other, at most `count`."""
        taken: list[str] = []
        while len(taken) < count and self.best_left():
            piece = heapq.heappop(self.heap)[1]
            self.pieces.add(piece)
            taken.append(piece)
            for index in self.places.pop(piece):
                self.count_stretches(index, -1)
                self.cuts[index] = self.cut(self.words[index])
                self.count_stretches(index, 1)
        return taken

    def count_stretches(self, index: int, sign: int) -> None:
        """Add what a word has to what candidates would save, or take it away."""
        for piece, saved in self.stretches(index):
            if piece in self.saving:
                self.saving[piece] += sign * self.times[index] * saved
                self.uses[piece] += sign * self.times[index] * (saved > 0)
