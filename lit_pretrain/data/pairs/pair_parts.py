"""A source's pictures with their captions, put together by picture and shared out to training and validation."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy

from lit_pretrain.data.images.image_source import ImageSource
from lit_pretrain.data.images.image_store import StorageSettings, StoredPictures, store_pictures
from lit_pretrain.data.labelled.labelled_source import digest
from lit_pretrain.data.notices import say
from lit_pretrain.data.pairs.pair_dataset import CaptionedPictures, GalleryDataset, PairDataset
from lit_pretrain.data.pairs.pair_source import CAPTION, Captions, find_or_make_keys, open_captions
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.text_encoding import EncodedTexts, TextSettings
from lit_pretrain.data.text.text_store import find_or_encode
from lit_pretrain.data.text.unknown_pieces import check_known, unknown_pieces
from lit_pretrain.errors import UserError
from lit_pretrain.required import required

Empty = Literal["error", "skip"]
# Share of captions with unknown words above which it is said.
MANY_UNKNOWN = 0.01


Captioned = TypeVar("Captioned", bound=CaptionedPictures)


@dataclass
class PairContents:
    """A source's pictures and captions.

    Attributes:
        pictures: The pictures.
        captions: The captions.
        keys: (N,) which picture each row of the source has: the first row that has it.
        groups: (G,) those of `keys` that can be read, ascending.
        members: (G,) where each lies in the store.
        texts: The captions as word pieces, once they are.
    """

    pictures: StoredPictures
    captions: Captions
    keys: numpy.ndarray
    groups: numpy.ndarray
    members: numpy.ndarray
    texts: EncodedTexts | None = None

    @property
    def fingerprint(self) -> str:
        """Changes with pixels and captions, and with nothing else."""
        return digest(self.pictures.fingerprint, self.captions.fingerprint)

    def captions_of(self, groups: numpy.ndarray) -> numpy.ndarray:
        """Indices of the captions of some pictures, in the captions' order."""
        return numpy.flatnonzero(numpy.isin(self.keys[self.captions.rows], groups))

    def encode(self, tokenizer: TextTokenizer, maximum_length: int, storage: StorageSettings) -> None:
        """Tokenise all captions."""
        settings = TextSettings((CAPTION,), maximum_length)
        everything = numpy.arange(len(self.captions.data))
        directory = storage.directory / "captions"
        data, fingerprint = self.captions.data, self.captions.fingerprint
        self.texts = find_or_encode(data, everything, tokenizer, settings, fingerprint, directory)

    @property
    def full(self) -> numpy.ndarray:
        """(C,) whether a caption has any word piece."""
        texts = required(self.texts)
        return numpy.asarray(texts.lengths) > texts.settings.special_tokens

    def dataset(self, groups: numpy.ndarray, kind: type[Captioned], **arguments: int) -> Captioned:
        """Those of some pictures that have a caption.

        Args:
            groups: Which, ascending.
            kind: `PairDataset` or `GalleryDataset`.
            arguments: More of its arguments.
        """
        chosen = self.captions_of(groups)
        chosen = chosen[self.full[chosen]]
        owners = self.keys[self.captions.rows[chosen]]
        order = numpy.argsort(owners, kind="stable")
        captioned, counts = numpy.unique(owners, return_counts=True)
        members = self.members[numpy.searchsorted(self.groups, captioned)]
        # Places in the store ascend as the pictures' first readable rows do, which need not be the first of all.
        by_place = numpy.argsort(members, kind="stable")
        firsts = numpy.cumsum(counts) - counts
        captions = [chosen[order][firsts[captions] : firsts[captions] + counts[captions]] for captions in by_place]
        together = numpy.concatenate([*captions, numpy.zeros(0, numpy.int64)])
        texts = required(self.texts)
        return kind(self.pictures.store, members[by_place], texts, together, counts[by_place], **arguments)


def open_pairs(
    source: ImageSource, columns: list[str] | None, storage: StorageSettings, like: PairContents | None = None
) -> PairContents:
    """Open a source of pictures with captions.

    Args:
        source: What to read.
        columns: Columns of captions.
        storage: How pictures are kept.
        like: Whose pictures' size these must have.

    Raises:
        UserError: If anything of this cannot be done.
    """
    captions = open_captions(source, columns, storage.directory / "huggingface")
    pictures = store_pictures(source, storage, like=None if like is None else like.pictures)
    keys = find_or_make_keys(pictures.encoded, storage.directory / "picture_keys")
    groups, firsts = numpy.unique(keys[pictures.store.rows], return_index=True)
    return PairContents(pictures, captions, keys, groups, firsts)


def check_captions(contents: PairContents, empty: Empty) -> dict[str, int]:
    """Count captions without text and pictures without captions.

    Args:
        contents: With its captions tokenised.
        empty: Whether there may be such.

    Returns:
        `empty_captions` and `pictures_without_caption`.

    Raises:
        UserError: If there are some and must not be.
    """
    bare = numpy.flatnonzero(~contents.full)
    captioned = numpy.unique(contents.keys[contents.captions.rows[contents.full]])
    without = contents.groups[~numpy.isin(contents.groups, captioned)]
    if len(bare) or len(without):
        rows = contents.captions.rows[bare] if len(bare) else without
        problem = (
            f"{len(bare)} of the {len(contents.full)} captions of {contents.pictures.source} are empty, and "
            f"{len(without)} of its {len(contents.groups)} pictures have no other (row {rows[0]} is the first)"
        )
        if empty == "error":
            raise UserError(f"{problem}: give them captions, or set data.empty_captions to skip.")
        say(f"{problem}: left out.")
    return {"empty_captions": len(bare), "pictures_without_caption": len(without)}


def count_unknown_words(contents: PairContents, tokenizer: TextTokenizer) -> int:
    """How many captions have words that no pieces make up, saying so if they are many: such words are all alike.

    Args:
        contents: With its captions tokenised.
        tokenizer: What made the pieces.

    Raises:
        UserError: If they are more than half of all words.
    """
    unknown_id = tokenizer.unk_id
    if unknown_id is None:
        return 0
    pieces = required(contents.texts)
    texts = (text or "" for text in contents.captions.data[CAPTION])
    unknown, total = unknown_pieces(pieces.tokens, tokenizer), len(pieces.tokens)
    check_known(unknown, total, tokenizer, contents.pictures.source, texts)
    places = numpy.flatnonzero(numpy.asarray(pieces.tokens) == unknown_id)
    rows = numpy.unique(numpy.searchsorted(pieces.ends, places, side="right"))
    if len(rows) > MANY_UNKNOWN * len(pieces):
        text = contents.captions.data[int(rows[0])][CAPTION]
        say(
            f"{len(rows)} of the {len(pieces)} captions of {contents.pictures.source} have words that the "
            f"tokenizer has no pieces for ('{text[:60]}' is the first), which makes them alike: raise "
            "data.vocabulary_size, or give another data.tokenizer."
        )
    return len(rows)


def training_pairs(contents: PairContents, groups: numpy.ndarray, seed: int) -> PairDataset:
    """For training."""
    return contents.dataset(groups, PairDataset, seed=seed)


def gallery(contents: PairContents, groups: numpy.ndarray) -> GalleryDataset:
    """For evaluation."""
    return contents.dataset(groups, GalleryDataset)
