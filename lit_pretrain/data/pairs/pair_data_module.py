"""Pictures with captions, for contrastive pretraining: any source, one caption of a picture drawn in every epoch."""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy

from lit_pretrain.data.images.image_dataset import keys_of
from lit_pretrain.data.images.image_source import ImageSource
from lit_pretrain.data.images.picture_buffers import open_buffers
from lit_pretrain.data.images.pictures import opened, to_rgb
from lit_pretrain.data.labelled.held_out_data_module import HeldOutDataModule
from lit_pretrain.data.loading import ResumableDataLoader
from lit_pretrain.data.notices import is_first_process, say_once
from lit_pretrain.data.pairs.pair_buffers import PairBuffers
from lit_pretrain.data.pairs.pair_dataset import GalleryDataset, PairDataset
from lit_pretrain.data.pairs.pair_parts import (
    Empty,
    PairContents,
    check_captions,
    count_unknown_words,
    gallery,
    open_pairs,
    training_pairs,
)
from lit_pretrain.data.pairs.pair_source import CAPTION, SAMPLE_CAPTIONS
from lit_pretrain.data.sources import source_name
from lit_pretrain.data.splits import split_rows
from lit_pretrain.data.stream_source import check_unlimited
from lit_pretrain.data.summary import PartSummary, data_line
from lit_pretrain.data.text.base_tokenizer import WORD_LENGTH, TextTokenizer
from lit_pretrain.data.text.document_buffers import NoSamples
from lit_pretrain.data.text.text_encoding import choose_tokenizer
from lit_pretrain.data.text.trained_tokenizer import DocumentTexts, TrainedTokenizer, trained_once
from lit_pretrain.data.text.unknown_pieces import check_known, share_told, unknown_pieces
from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError, check_number
from lit_pretrain.picture_facts import PictureFacts
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image

Stage = Literal["train", "validation", "test"]


class PairDataModule(HeldOutDataModule):
    """Pictures as uint8 squares, each with a caption as word pieces.

    Rows with the same picture are one picture with the captions of all of them, so that no picture is both trained on
    and validated with.

    Args:
        path: Hub name, folder, file (parquet, arrow, csv, json, tar shards of webdataset's form), saved data set, or
            builder for `data_files`; null without `data_files` is the bundled sample, emoji.
        name: Configuration of a data set on the hub, or of a directory's README.md.
        data_files: Files or patterns.
        split: Split to train on. A directory has the splits that its README.md or the names in it say (train/ and
            val/, train-*.parquet); files named by themselves have none.
        image_column: Column of pictures, of their bytes or of their file names; null takes the only one of pictures.
        caption_columns: Columns of captions: texts, class labels (their names), or lists of these; `json.caption` is
            what a column of json holds by that key. Of a folder of pictures `txt` and `json.KEY` are the files beside
            them, and any column of a metadata.csv, .jsonl or .parquet. Null is the names and keywords of the emoji.
        empty_captions: What becomes of captions without any text and of pictures without any caption: `error`, or
            `skip` to count them and leave them out.
        tokenizer: Directory or file of a WordPiece tokenizer or of CLIP's; null is that of the text tower, or one that
            is trained on the training captions.
        vocabulary_size: Word pieces of a tokenizer that is trained, at most.
        lowercase: Whether it drops case.
        maximum_length: Tokens of a caption at most, special tokens included; of longer ones the beginning is kept.
        batch_size: Pairs of a batch of one device.
        max_pictures: Only so many rows from the start of the source; null for all.
        strip_accents: Whether a trained tokenizer drops accents; null drops them with the case.
        word_length: Characters of the longest word that a trained tokenizer takes apart; longer ones (DNA, say) are
            unknown. A word takes time with the square of its length.
        **settings: `validation_path`, `validation_data_files`, `validation_split`, `test_path`, `test_data_files` and
            `test_split`, see `HeldOutDataModule`; `stored_size`, `cache`, `cache_gigabytes` and `corrupt`, see
            `PictureDataModule`; `streaming` and `shuffle_buffer`, see `StreamableDataModule`; `workers`,
            `validation_share`, `cache_directory`, `seed`, `delimiter` and `encoding`, see `EpochDataModule`.
    """

    samples_name = "pictures"
    contents_name = "pictures"

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        data_files: str | list[str] | None = None,
        split: str = "train",
        image_column: str | None = None,
        caption_columns: str | list[str] | None = None,
        empty_captions: Empty = "error",
        tokenizer: str | None = None,
        vocabulary_size: int = 8192,
        lowercase: bool = True,
        maximum_length: int = 64,
        batch_size: int = 128,
        max_pictures: int | None = None,
        strip_accents: bool | None = None,
        word_length: int = WORD_LENGTH,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, **settings)
        for setting, value, least in (
            ("maximum_length", maximum_length, 3),
            ("vocabulary_size", vocabulary_size, 6),
            ("word_length", word_length, 1),
            ("max_pictures", max_pictures, 1),
        ):
            check_number(f"data.{setting}", value, least=least)
        self.source = ImageSource(
            path, name, data_files, split, image_column=image_column, max_pictures=max_pictures, **self.table_form
        )
        self.caption_columns = [caption_columns] if isinstance(caption_columns, str) else caption_columns
        self.empty_captions = empty_captions
        self.tokenizer_path = tokenizer
        self.vocabulary_size = vocabulary_size
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        self.word_length = word_length
        self.maximum_length = maximum_length
        self.tokenizer: TextTokenizer | None = None
        self.fingerprint = ""
        self.contents: dict[str, PairContents] = {}
        self.groups: dict[str, numpy.ndarray] = {}
        self.galleries: dict[str, GalleryDataset] = {}
        self._counts: dict[str, int] = {}

    # -- preparing

    def prepare_data(self) -> None:
        """Read the sources, decode the pictures, and train or load the tokenizer, whatever is not there yet."""
        if self.fingerprint:
            return
        # Before anything slow: a tokenizer that cannot be used.
        model_tokenizer = getattr(getattr(self.trainer, "lightning_module", None), "tokenizer", None) or self.tokenizer
        known_tokenizer = (
            choose_tokenizer(self.tokenizer_path, None, model_tokenizer)
            if self.tokenizer_path or model_tokenizer
            else None
        )
        if self.streaming:
            self._prepare_stream(known_tokenizer)
            return
        sources = self.held_out(self.source)
        main = open_pairs(self.source, self.caption_columns, self.storage)
        share = 0.0 if sources["validation"] is not None else self.validation_share
        train, validation = split_rows(len(main.groups), share, "pairs")
        self.contents["train"], self.groups["train"] = main, main.groups[train]
        if len(validation):
            self.contents["validation"], self.groups["validation"] = main, main.groups[validation]
        elif share > 0:
            raise UserError(
                f"data.validation_share of {share} leaves none of the {len(main.groups)} pictures for validation: "
                "change it, or give more pictures."
            )
        for part, source in sources.items():
            if source is not None:
                opened_part = open_pairs(source, self.caption_columns, self.storage, like=main)
                self.contents[part], self.groups[part] = opened_part, opened_part.groups
        tokenizer = known_tokenizer or self._trained_tokenizer(main)
        for part, contents in self.contents.items():
            if part == "train" or contents is not main:
                contents.encode(tokenizer, self.maximum_length, self.storage)
                counts = check_captions(contents, self.empty_captions)
                counts["captions_with_unknown_words"] = count_unknown_words(contents, tokenizer)
                self._counts |= (
                    counts if contents is main else {f"{part}_{name}": count for name, count in counts.items()}
                )
        self.tokenizer, self.vocabulary_size = tokenizer, tokenizer.vocabulary_size
        self.fingerprint = main.fingerprint

    def _prepare_stream(self, tokenizer: TextTokenizer | None) -> None:
        """Open the stream and look at its first pairs; validation and test data of their own are read as ever."""
        self.check_end()
        check_unlimited(self.source.max_pictures, "data.max_pictures")
        if tokenizer is None:
            raise UserError(
                "data.streaming reads captions as they come, and a tokenizer would be trained on all of them: set "
                "data.tokenizer, or start the text tower from weights that bring one."
            )
        if self.caption_columns is None and (self.source.path is not None or self.source.data_files is not None):
            raise UserError(
                f"It is not said which columns of {source_name(self.source)} hold captions: set data.caption_columns."
            )
        columns = tuple(SAMPLE_CAPTIONS if self.caption_columns is None else self.caption_columns)
        if not columns:
            raise UserError("data.caption_columns is empty: name at least one column of captions.")
        sources = self.held_out(self.source)
        share = 0.0 if sources["validation"] is not None else None
        rows, first, held_out = self.open_head(self.source, share=share)
        pictures, store = open_buffers(rows, first, self.source, self.storage)
        contents = PairBuffers(pictures, columns, tokenizer, self.maximum_length, self.empty_captions)
        contents.check(first)
        encoded, _, texts = contents.encode(first)
        name = source_name(self.source)
        check_known(unknown_pieces(encoded.tokens, tokenizer), len(encoded.tokens), tokenizer, name, texts)
        self._first, self._held_out, self._first_texts = first, held_out, encoded
        self._first_facts = store.facts
        storage = replace(self.storage, stored_size=pictures.square.side)
        for part, source in sources.items():
            if source is not None:
                own = open_pairs(source, self.caption_columns, storage)
                own.encode(tokenizer, self.maximum_length, storage)
                counts = check_captions(own, self.empty_captions)
                self._counts |= {f"{part}_{count}": number for count, number in counts.items()}
                self.contents[part], self.groups[part] = own, own.groups
        self.tokenizer, self.vocabulary_size = tokenizer, tokenizer.vocabulary_size
        self.open_batches(rows, contents, held_out)

    def _setup_stream(self) -> None:
        """The first pairs, and the galleries of those held out or of sources of their own."""
        contents = self._buffers
        first = contents.dataset(self._first, PairDataset, seed=self.seed)
        if isinstance(first, NoSamples):
            raise UserError(
                f"None of the first {len(self._first)} pictures of {source_name(self.source)} has a caption: set "
                "data.caption_columns."
            )
        self.train_dataset = first
        for part, own in self.contents.items():
            self.galleries[part] = gallery(own, self.groups[part])
        if self._held_out:
            held_out = contents.dataset(self._held_out, GalleryDataset)
            if not isinstance(held_out, NoSamples):
                self.galleries["validation"] = held_out
        if "validation" in self.galleries:
            self.galleries.setdefault("test", self.galleries["validation"])
            if "validation" in self.contents:
                self.contents.setdefault("test", self.contents["validation"])
        if is_first_process():
            texts = self._first_texts
            say_once(
                f"{source_name(self.source)} is streamed, pictures of '{contents.pictures.column}' with captions of "
                f"{' and '.join(map(repr, contents.columns))}: of its first {len(self._first) + len(self._held_out):,} "
                f"pictures {len(self._held_out):,} are for validation; captions of the others have "
                f"{len(texts.tokens):,} word pieces, "
                f"{share_told(unknown_pieces(texts.tokens, required(self.tokenizer)), len(texts.tokens))}."
            )

    @property
    def _buffers(self) -> PairBuffers:
        """What makes pairs of a stream's rows, once it is open."""
        return cast(PairBuffers, required(self.stream).contents)

    def _trained_tokenizer(self, contents: PairContents) -> WordPieceTokenizer:
        """One of the training captions and these settings, trained once."""
        captions = contents.captions_of(self.groups["train"])
        settings = TrainedTokenizer(self.vocabulary_size, self.lowercase, self.strip_accents, self.word_length)
        parts = [contents.fingerprint, str(settings)]
        name = hashlib.sha256("\n".join(parts).encode() + captions.tobytes()).hexdigest()[:16]
        directory = self.storage.directory / "tokenizers" / name
        texts = DocumentTexts(contents.captions.data.select(captions), CAPTION)
        return trained_once(directory, texts, settings)

    def setup(self, stage: str) -> None:
        """Gather the pictures of each part with their captions."""
        self.prepare_data()
        if hasattr(self, "train_dataset"):
            return
        if self.streaming:
            self._setup_stream()
            return
        self.train_dataset = training_pairs(self.contents["train"], self.groups["train"], self.seed)
        for part, contents in self.contents.items():
            self.galleries[part] = gallery(contents, self.groups[part])
            if len(self.galleries[part]) == 0:
                raise UserError(f"No picture for {part} has a caption: set data.caption_columns, or give more rows.")
        if "validation" in self.galleries:
            self.galleries.setdefault("test", self.galleries["validation"])
            self.contents.setdefault("test", self.contents["validation"])
        if is_first_process():
            self._tell()

    def _tell(self) -> None:
        """Say what was understood of the data."""
        main, parts = (
            self.contents["train"],
            {"train": PartSummary(len(self.train_dataset), keys=keys_of(self.train_dataset))},
        )
        for name in ("validation", "test"):
            gallery_of = self.galleries.get(name)
            if gallery_of is not None and not (name == "test" and gallery_of is self.galleries.get("validation")):
                own = self.contents[name].pictures.source if self.contents[name] is not main else None
                parts[name] = PartSummary(len(gallery_of), own, keys_of(gallery_of))
        columns = " and ".join(repr(column) for column in self.caption_columns or SAMPLE_CAPTIONS)
        summary = f"{len(main.keys):,} rows, {len(main.groups):,} pictures of '{main.pictures.encoded.column}'"
        summary += f" with {len(main.captions.data):,} captions of {columns}"
        tokens, tokenizer = required(main.texts).tokens, required(self.tokenizer)
        summary += f" ({len(tokens):,} word pieces, {share_told(unknown_pieces(tokens, tokenizer), len(tokens))})"
        say_once(data_line(main.pictures.source, summary, parts, "picture"))

    # -- loaders

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What a training batch holds."""
        texts = ("input_ids", "attention_mask", "padded", "caption_id", "caption_key")
        return ("images", "sample_id", "picture_key", *texts)

    @property
    def facts(self) -> PictureFacts:
        """What is known of the pictures, once prepared."""
        if self.stream is not None:
            return PictureFacts(self._buffers.pictures.square.side, self._first_facts["grey_share"])
        pictures = self.contents["train"].pictures
        return PictureFacts(pictures.square.side, pictures.store.facts["grey_share"])

    def val_dataloader(self) -> ResumableDataLoader | list:
        """Every validation picture once, with all its captions."""
        return self._in_order(self.galleries.get("validation"))

    def test_dataloader(self) -> ResumableDataLoader | list:
        """Every test picture once, with all its captions; the validation pictures if there is no test data."""
        return self._in_order(self.galleries.get("test"))

    def predict_dataloader(self) -> ResumableDataLoader | list:
        """As `evaluation_loader` of all pictures of the training source."""
        if self.streaming:
            raise UserError("predict answers every picture of a source once: set data.streaming to false for it.")
        contents = self.contents["train"]
        return self._in_order(gallery(contents, contents.groups))

    def evaluation_loader(self, stage: Stage) -> ResumableDataLoader:
        """Every picture of a part once, with all its captions, which say by `caption_picture` whose they are.

        Args:
            stage: Part of the data.

        Raises:
            UserError: If there is no such part.
        """
        self.setup("validate")
        if stage not in self.galleries:
            raise UserError(f"There are no {stage} pictures: set data.validation_share, or data.{stage}_path.")
        return self._in_order(self.galleries[stage])

    # -- telling

    def captions(self, stage: Stage, captions: list[int]) -> list[str]:
        """Texts of a part's captions, by their `caption_id`."""
        if stage not in self.contents:
            texts = self._buffers.encode(self._held_out)[2]
            return [texts[int(caption)] for caption in captions]
        return [
            text or "" for text in self.contents[stage].captions.data[[int(caption) for caption in captions]][CAPTION]
        ]

    def raw_samples(self, stage: Stage, indices: list[int]) -> "list[dict[str, Image | list[str]]]":
        """Whole pictures with their captions, to show to people.

        Args:
            stage: Whose source to look into.
            indices: Rows of it, as batches' `sample_id` gives them.

        Returns:
            `image`, RGB, and `captions` for each.
        """
        self.setup("validate")
        if stage not in self.contents:
            buffers = self._buffers
            return [
                {
                    "image": to_rgb(opened(buffers.pictures.picture(index))),
                    "captions": buffers.captions(buffers.pictures.row(index)),
                }
                for index in indices
            ]
        contents, rows = self.contents[stage], [int(index) for index in indices]
        return [
            {
                "image": to_rgb(opened(picture)),
                "captions": self.captions(stage, contents.captions_of(contents.keys[[row]]).tolist()),
            }
            for row, picture in zip(rows, contents.pictures.encoded.read(rows), strict=True)
        ]

    def named_samples(self, indices: list[int]) -> dict[str, list[str]]:
        """Columns to know the samples of `predict` by: `image`, the names of the files, empty where they have none.

        Args:
            indices: Rows of the source, as batches' `sample_id` gives them.
        """
        return {"image": self.contents["train"].pictures.encoded.file_names([int(index) for index in indices])}

    def describe(self) -> dict[str, Any]:
        """What the data is, for the record of a run."""
        if self.streaming:
            return self._describe_stream()
        main = self.contents["train"]
        texts, counts = required(main.texts), self.train_dataset.counts
        description: dict[str, Any] = {
            "source": main.pictures.source,
            "data_fingerprint": self.fingerprint,
            "tokenizer_hash": required(self.tokenizer).hash,
            "vocabulary_size": self.vocabulary_size,
            "pictures": len(main.groups),
            "rows_put_together": len(main.keys) - len(numpy.unique(main.keys)),
            "skipped_pictures": main.pictures.store.skipped,
            "stored_size": main.pictures.square.side,
            "captions": len(main.captions.data),
            "captions_per_picture": round(float(counts.mean()), 2),
            "truncated_captions": texts.truncated,
            "mean_caption_length": round(float(numpy.mean(texts.lengths)), 1),
            **self._counts,
            "training_pictures": len(self.train_dataset),
        }
        for part in ("validation", "test"):
            if part in self.groups:
                description[f"{part}_pictures"] = len(self.galleries[part])
                description[f"{part}_captions"] = len(self.galleries[part].captions)
        return description

    def _describe_stream(self) -> dict[str, Any]:
        """What is known of a stream."""
        description: dict[str, Any] = {
            "source": source_name(self.source),
            "data_fingerprint": self.fingerprint,
            "tokenizer_hash": required(self.tokenizer).hash,
            "vocabulary_size": self.vocabulary_size,
            "streaming": "yes",
            "shuffle_buffer": self.shuffle_buffer,
            "stored_size": self._buffers.pictures.square.side,
            "captions_per_picture": round(float(self.train_dataset.counts.mean()), 2),
            "mean_caption_length": round(float(numpy.mean(self._first_texts.lengths)), 1),
            **self._counts,
        }
        for part, held_out in self.galleries.items():
            if part == "validation" or held_out is not self.galleries.get("validation"):
                description[f"{part}_pictures"] = len(held_out)
                description[f"{part}_captions"] = len(held_out.captions)
        return description
