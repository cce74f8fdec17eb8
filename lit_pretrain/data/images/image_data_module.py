"""Pictures for pretraining on images: any source, decoded once, labels where there are any."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy

from lit_pretrain.data.images.image_dataset import ImageDataset, keys_of
from lit_pretrain.data.images.image_source import ImageSource
from lit_pretrain.data.images.image_store import StoredPictures, store_pictures
from lit_pretrain.data.images.picture_buffers import PictureBuffers, open_buffers
from lit_pretrain.data.images.picture_data_module import PictureDataModule
from lit_pretrain.data.images.pictures import opened, to_rgb
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.labelled.labels import budget_size, stratified_choice
from lit_pretrain.data.loading import ResumableDataLoader
from lit_pretrain.data.notices import is_first_process, say_once
from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.data.sources import has_splits, source_name
from lit_pretrain.data.splits import split_rows
from lit_pretrain.data.stream_source import check_unlimited
from lit_pretrain.data.summary import PartSummary, data_line, label_warnings, labels_told
from lit_pretrain.errors import UserError, check_length, check_number
from lit_pretrain.picture_facts import PictureFacts
from lit_pretrain.required import required

if TYPE_CHECKING:
    from PIL.Image import Image

Stage = Literal["train", "validation", "test"]


class ImageDataModule(PictureDataModule):
    """Pictures as clean batches of uint8 squares; what varies them works on the device.

    Args:
        path: Hub name, folder of pictures, file (parquet, arrow, csv, json), saved data set, or builder (imagefolder,
            parquet, csv, json) for `data_files`; null without `data_files` is the bundled sample, emoji. Tables of file
            names may give them relative to the table's own folder.
        name: Configuration of a data set on the hub, or of a directory's README.md.
        data_files: Files or patterns.
        split: Split to read; validation pictures are taken from it. A directory has the splits that its README.md or
            the names in it say (train/ and val/, train-*.parquet); files named by themselves have none.
        test_path: A labelled test set of its own; null with `test_data_files` and `test_split` null too lets the
            validation pictures serve.
        test_data_files: Files or patterns of the test set.
        test_split: Split of the test set; by itself, another split of `path`.
        image_column: Column of pictures, of their bytes or of their file names; null takes the only one of pictures.
        label_column: Column of classes, strings, integers or booleans; null for no labels. A folder's pictures are
            labelled with the names of their directories by `label`, or with the columns of a metadata.csv, .jsonl or
            .parquet in the folder, whose column file_name says which picture a row is of.
        batch_size: Pictures of a batch of one device.
        label_budget: Only so many training pictures, or such a share of them below 1, drawn with the seed so that
            classes keep their shares; null for all.
        max_pictures: Only so many pictures from the start of the source, and of the test set; null for all.
        **settings: `stored_size`, `cache`, `cache_gigabytes` and `corrupt`, see `PictureDataModule`; `streaming` and
            `shuffle_buffer`, see `StreamableDataModule`; `workers`, `validation_share`, `cache_directory`, `seed`,
            `delimiter` and `encoding`, see `EpochDataModule`.
    """

    samples_name = "pictures"
    contents_name = "pictures"

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        data_files: str | list[str] | None = None,
        split: str = "train",
        test_path: str | None = None,
        test_data_files: str | list[str] | None = None,
        test_split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        batch_size: int = 128,
        label_budget: int | float | None = None,
        max_pictures: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, **settings)
        check_number("data.max_pictures", max_pictures, least=1)
        check_length("data.label_budget", label_budget, above_zero=True)
        if label_budget is not None and label_column is None:
            raise UserError("data.label_budget needs labels: set data.label_column too, or data.max_pictures instead.")
        columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
        columns |= {"max_pictures": max_pictures, **self.table_form}
        self.source = ImageSource(path, name, data_files, split, **columns)
        self.test_source: ImageSource | None = None
        if test_path is not None or test_data_files is not None:
            builder = path if test_path is None and path in set(ImageSource.builders.values()) else test_path
            named: dict[str, Any] = {"prefix": "test_", "split_given": test_split is not None}
            self.test_source = ImageSource(builder, None, test_data_files, test_split or "test", **named, **columns)
        elif test_split is not None:
            self.test_source = ImageSource(path, name, data_files, test_split, prefix="test_", **columns)
        self.splits_needed = test_path is None and test_data_files is None and test_split is not None
        self.stored_size = self.storage.stored_size
        self.label_budget = label_budget
        self.pictures: StoredPictures | None = None
        self.test_pictures: StoredPictures | None = None
        self.fingerprint = ""

    # -- preparing

    def prepare_data(self) -> None:
        """Read the sources and decode the pictures, whatever is not there yet."""
        if self.pictures is not None:
            return
        if self.splits_needed and not has_splits(self.source):
            raise UserError(
                f"{source_name(self.source)} has no splits, so data.test_split cannot name one: set data.test_path or "
                "data.test_data_files."
            )
        pictures = self._open_stream() if self.streaming else store_pictures(self.source, self.storage)
        if self.test_source is not None:
            self.test_pictures = store_pictures(self.test_source, self.storage, like=pictures)
        self.pictures = pictures
        if not self.streaming:
            self.fingerprint = pictures.fingerprint
        self.stored_size = pictures.square.side

    def _open_stream(self) -> StoredPictures:
        """Open the stream; what is returned are the pictures that are looked at first."""
        self.check_end()
        self.refuse_in_stream(
            ("label_budget", self.label_budget, "draws from all labels"),
            ("label_column", self.source.label_column, "has classes that must all be known before"),
        )
        check_unlimited(self.source.max_pictures, "data.max_pictures")
        rows, first, held_out = self.open_head(self.source)
        contents, store = open_buffers(rows, first, self.source, self.storage)
        self.open_batches(rows, contents, held_out)
        self._held_out = contents.make(held_out, 0) if held_out else None
        square, encoded = contents.square, store.pictures
        return StoredPictures(source_name(self.source), store, square, self.fingerprint, None, encoded)

    def setup(self, stage: str) -> None:
        """Split the pictures, and draw those that the label budget allows."""
        self.prepare_data()
        if hasattr(self, "train_dataset"):
            return
        if self.streaming:
            self._setup_stream()
            return
        train, validation = split_rows(self._stored.total, self.validation_share, "pictures")
        train, validation = self._stored.places(train), self._stored.places(validation)
        if self.validation_share > 0 and not (len(train) and len(validation)):
            raise UserError(
                f"data.validation_share of {self.validation_share} leaves {len(train)} pictures for training and "
                f"{len(validation)} for validation: change it, or give more pictures."
            )
        self.train_dataset = self._stored.dataset(train)
        if self.label_budget is not None:
            labels = self.train_dataset.member_labels()
            count = budget_size(self.label_budget, len(labels), len(numpy.unique(labels)))
            chosen = stratified_choice(labels, count, sample_generator(self.seed, "label budget"))
            self.train_dataset = self._stored.dataset(train[chosen])
        self.validation_dataset = self._stored.dataset(validation) if len(validation) else None
        self.test_dataset = self.test_pictures.dataset() if self.test_pictures is not None else self.validation_dataset
        if is_first_process():
            self._tell()

    def _setup_stream(self) -> None:
        """The pictures that were looked at first, and those of them that are for validation."""
        self.train_dataset, self.validation_dataset = self._stored.dataset(), self._held_out
        self.test_dataset = self.test_pictures.dataset() if self.test_pictures is not None else self.validation_dataset
        if is_first_process():
            held_out = len(self._held_out) if self._held_out is not None else 0
            say_once(
                f"{self._stored.source} is streamed, pictures of '{self._stored.encoded.column}': of its first "
                f"{len(self.train_dataset) + held_out:,} pictures {held_out:,} are for validation."
            )

    @property
    def _stored(self) -> StoredPictures:
        """The pictures, once prepared."""
        assert self.pictures is not None
        return self.pictures

    def _tell(self) -> None:
        """Say what was understood of the data."""
        pictures = self._stored
        parts = {"train": PartSummary(len(self.train_dataset), keys=keys_of(self.train_dataset))}
        if self.validation_dataset is not None:
            parts["validation"] = PartSummary(len(self.validation_dataset), keys=keys_of(self.validation_dataset))
        if self.test_pictures is not None:
            test = required(self.test_dataset)
            parts["test"] = PartSummary(len(test), self.test_pictures.source, keys_of(test))
        summary = f"{pictures.total:,} rows, pictures of '{pictures.encoded.column}'"
        if pictures.labels is not None:
            for doubt in label_warnings(pictures.labels):
                say_once(doubt)
            summary += f", {labels_told(required(self.label_facts), pictures.labels.column)}"
        say_once(data_line(pictures.source, summary, parts, "picture"))

    # -- loaders

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What a batch holds."""
        return ("images", "sample_id") if self.source.label_column is None else ("images", "sample_id", "label")

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes by number, once prepared; null without labels."""
        return self.pictures.labels.classes if self.pictures is not None and self.pictures.labels is not None else None

    @property
    def label_facts(self) -> LabelFacts | None:
        """What a head needs to know of the labels, once prepared; null without labels."""
        if self.classes is None:
            return None
        self.setup("validate")
        dataset = self.train_dataset
        return required(self._stored.labels).take(dataset.images.rows[dataset.members]).facts()

    @property
    def facts(self) -> PictureFacts:
        """What is known of the pictures, once prepared."""
        return PictureFacts(self._stored.square.side, self._stored.store.facts["grey_share"])

    def val_dataloader(self) -> ResumableDataLoader | list:
        """Every validation picture once, in the same order always."""
        return self._in_order(self.validation_dataset)

    def test_dataloader(self) -> ResumableDataLoader | list:
        """Every test picture once; the validation pictures if there is no test set."""
        return self._in_order(self.test_dataset)

    def predict_dataloader(self) -> ResumableDataLoader:
        """All pictures of the source, in its order."""
        if self.streaming:
            raise UserError("predict answers every picture of a source once: set data.streaming to false for it.")
        return self._in_order(self._stored.dataset())

    def evaluation_loader(self, stage: Stage) -> ResumableDataLoader:
        """Every picture of a part once, in the order of the source.

        Args:
            stage: `train` is what the label budget allows.

        Raises:
            UserError: If there is no such part.
        """
        return self._in_order(self._part(stage))

    def _part(self, stage: Stage) -> ImageDataset:
        self.setup("validate")
        parts = {"train": self.train_dataset, "validation": self.validation_dataset, "test": self.test_dataset}
        if (part := parts[stage]) is None:
            raise UserError(f"There are no {stage} pictures: set data.validation_share.")
        return part

    # -- telling

    def labelled_arrays(self, which: Stage, limit: int | None = None) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Pictures and their labels for an evaluation, the same at every call and whatever the seed.

        Args:
            which: Part of the data; `train` is what the label budget allows.
            limit: At most so many, chosen so that classes keep their shares; null for all.

        Returns:
            (N, 3, S, S) uint8 and (N,) int64, in the order of the source.

        Raises:
            UserError: If there are no labels, or no such part.
        """
        self.setup("validate")
        if self.classes is None:
            raise UserError("The pictures have no labels: set data.label_column.")
        dataset = self._part(which)
        indices = numpy.arange(len(dataset))
        if limit is not None and limit < len(dataset):
            generator = sample_generator("labelled arrays", which)
            indices = stratified_choice(dataset.member_labels(), limit, generator, every_class=False)
        batch = dataset.batch(indices)
        return batch["images"].numpy(), batch["label"].numpy()

    def raw_samples(self, stage: Stage, indices: Sequence[int]) -> "list[dict[str, Image]]":
        """Whole pictures, as large as they are, to show to people.

        Args:
            stage: Whose source to look into.
            indices: Rows of it, as batches' `sample_id` gives them.

        Returns:
            `image`, RGB, for each.
        """
        self.prepare_data()
        if self.stream is not None and not (stage == "test" and self.test_pictures is not None):
            contents = cast(PictureBuffers, self.stream.contents)
            return [{"image": to_rgb(opened(contents.picture(index)))} for index in indices]
        pictures = self.test_pictures if stage == "test" and self.test_pictures is not None else self._stored
        encoded = pictures.encoded.read([int(index) for index in indices])
        return [{"image": to_rgb(opened(picture))} for picture in encoded]

    def describe(self) -> dict[str, str | int | float]:
        """What the data is, for the record of a run."""
        pictures, facts = self._stored, self._stored.store.facts
        description: dict[str, str | int | float] = {
            "source": pictures.source,
            "data_fingerprint": self.fingerprint,
            "pictures": facts["pictures"],
            "skipped_pictures": pictures.store.skipped,
            "stored_size": pictures.square.side,
            "kept_decoded": "yes" if pictures.cached else "no",
            "grey_share": round(facts["grey_share"], 4),
            "mean": " ".join(f"{value:.4f}" for value in facts["mean"]),
            "std": " ".join(f"{value:.4f}" for value in facts["std"]),
            "validation_pictures": len(self.validation_dataset) if self.validation_dataset is not None else 0,
        }
        if self.streaming:
            # How many there are nobody knows.
            del description["pictures"]
            description |= {"streaming": "yes", "shuffle_buffer": self.shuffle_buffer}
        else:
            description["training_pictures"] = len(self.train_dataset)
        if self.classes is not None:
            description["classes"] = len(self.classes)
        if self.test_pictures is not None:
            description |= {"test_source": self.test_pictures.source, "test_pictures": len(required(self.test_dataset))}
            description["test_fingerprint"] = self.test_pictures.fingerprint
        return description
