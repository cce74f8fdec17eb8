"""Pictures for pretraining and fine-tuning: any source, decoded once into a memory-mapped cache when it fits."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy
from lightning import LightningDataModule
from torch import Tensor

from lit_pretrain.data.built_once import default_cache_directory
from lit_pretrain.data.decoding import decode_blocks, find_square, no_readable
from lit_pretrain.data.image_cache import Corrupt, image_fingerprint, open_or_build
from lit_pretrain.data.image_dataset import DecodingStore, ImageDataset, PictureStore
from lit_pretrain.data.image_source import EncodedPictures, ImageSource, open_pictures
from lit_pretrain.data.labels import budget_size, check_classes, stratified_choice, with_classes
from lit_pretrain.data.loading import EpochBatchSampler, ResumableDataLoader
from lit_pretrain.data.picture_statistics import PictureStatistics
from lit_pretrain.data.pictures import Square
from lit_pretrain.data.randomness import default_seed, sample_generator
from lit_pretrain.data.sources import has_splits, shown
from lit_pretrain.data.splits import split_rows
from lit_pretrain.errors import UserError
from lit_pretrain.objectives.vision_objective import PictureFacts

# Pictures from which facts are estimated where there is no cache.
ESTIMATED_ON = 256


class ImageDataModule(LightningDataModule):
    """A collection of pictures as clean batches of uint8 squares.

    Args:
        path: Hub name, folder of pictures, table (parquet, csv, json), saved data set, or builder for `data_files`;
            null without `data_files` is the bundled sample, 1,914 emoji.
        name: Configuration of a data set on the hub.
        data_files: Files or patterns.
        split: Split to read; validation pictures are taken from it.
        test_path: As `path`, of a test set; null with `test_data_files` and `test_split` null: validation serves.
        test_data_files: Files or patterns of a test set, read as `path` is.
        test_split: Split of the same source that is the test set.
        image_column: Column of pictures; null takes the only one.
        label_column: Column of labels (classes, strings, integers or booleans); null for none. Of a folder, `label`
            are the names of the pictures' directories.
        stored_size: Pixels of a side of the squares that are kept: the shorter side is resized, the middle kept; null
            takes the pictures' own size, which must be the same for all.
        cache: Whether pictures are decoded once into a memory-mapped cache; null does so if it fits `cache_gigabytes`
            and the disk; else they are decoded in workers.
        cache_gigabytes: Largest cache that is made unasked.
        corrupt: Pictures that cannot be decoded are an `error`, or `skip`: named, counted and left out.
        batch_size: Pictures of a batch of one device.
        workers: Processes that make batches ahead; 0 is best with a cache, decoding deserves some.
        validation_share: Share of the pictures for validation, at least one.
        label_budget: Only so many (or such a share, below 1) of the training pictures, each class keeping its share;
            null for all.
        cache_directory: Where decoded pictures are kept; null is caches/ under the runs directory.
        seed: Source of the order and of the label budget's draw; null takes seed_everything's.
        max_pictures: Only so many pictures from the start of the source; null for all.
    """

    allow_zero_length_dataloader_with_multiple_devices = True

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
        stored_size: int | None = None,
        cache: bool | None = None,
        cache_gigabytes: float = 8.0,
        corrupt: Corrupt = "error",
        batch_size: int = 128,
        workers: int = 0,
        validation_share: float = 0.05,
        label_budget: int | float | None = None,
        cache_directory: str | None = None,
        seed: int | None = None,
        max_pictures: int | None = None,
    ) -> None:
        super().__init__()
        for label, value, least in (("batch_size", batch_size, 1), ("stored_size", stored_size, 2)):
            if value is not None and value < least:
                raise UserError(f"data.{label} is {value}: give at least {least}.")
        if not 0.0 <= validation_share < 1.0:
            raise UserError(f"data.validation_share is {validation_share}: give a share from 0 to below 1.")
        if label_budget is not None and label_column is None:
            raise UserError("data.label_budget needs labels to keep the classes' shares: set data.label_column too.")
        self.source = ImageSource(
            path,
            name,
            data_files,
            split,
            image_column=image_column,
            label_column=label_column,
            max_pictures=max_pictures,
        )
        self.test_source = self._test_source(test_path, test_data_files, test_split)
        self.stored_size = stored_size
        self.use_cache = cache
        self.cache_gigabytes = cache_gigabytes
        self.corrupt = corrupt
        self.batch_size = batch_size
        self.workers = workers
        self.validation_share = validation_share
        self.label_budget = label_budget
        self.cache_directory = Path(cache_directory) if cache_directory else default_cache_directory()
        self.seed = default_seed() if seed is None else seed
        self.classes: list[str] | None = None
        self.facts: PictureFacts | None = None
        self.fingerprint = ""
        self._store: PictureStore | None = None
        self._described: dict[str, Any] = {}

    def _test_source(
        self, path: str | None, data_files: str | list[str] | None, split: str | None
    ) -> ImageSource | None:
        """Where test pictures come from, or null."""
        if path is None and data_files is None and split is None:
            return None
        changed: dict[str, Any] = {"prefix": "test_", "max_pictures": None}
        if path is not None or data_files is not None:
            changed |= {"path": path if path is not None else self.source.path, "data_files": data_files}
        return replace(self.source, **changed, split=split or self.source.split)

    # -- preparing

    def prepare_data(self) -> None:
        """Read the source and decode its pictures, whatever is not done yet."""
        if self._store is not None:
            return
        test = self.test_source
        same_place = test is not None and (test.path, test.data_files) == (self.source.path, self.source.data_files)
        if same_place and not has_splits(self.source):
            raise UserError(
                f"data.test_split is '{test.split}', but {shown(self.source)} has no splits by name: give "
                "data.test_path or data.test_data_files, or take it out."
            )
        pictures = open_pictures(self.source, self.cache_directory / "huggingface")
        if pictures.labels is not None:
            check_classes(pictures.labels)
            self.classes = pictures.labels.classes
        square = find_square(pictures, self.stored_size)
        self.stored_size = square.side
        self._pictures = pictures
        self._store, described = self._open_store(pictures, square)
        grey_share = described.pop("grey_share")
        self.facts = PictureFacts(square.side, grey_share)
        self.fingerprint = image_fingerprint(pictures, square, self.corrupt)
        self._described = described | {"source": shown(self.source), "grey_share": round(grey_share, 4)}

    def _open_store(self, pictures: EncodedPictures, square: Square) -> tuple[PictureStore, dict[str, Any]]:
        """The cache, or what decodes on the way; and what is known of the pictures."""
        size = len(pictures) * 3 * square.side**2
        directory = self.cache_directory / "pictures" / image_fingerprint(pictures, square, self.corrupt)
        use_cache = self.use_cache
        if use_cache is None:
            self.cache_directory.mkdir(parents=True, exist_ok=True)
            there = directory.is_dir()
            free = shutil.disk_usage(self.cache_directory).free
            use_cache = there or size <= min(self.cache_gigabytes * 1e9, 0.9 * free)
        if use_cache:
            store = open_or_build(pictures, square, self.corrupt, directory)
            if store.skipped:
                listing = directory.with_name(f"{directory.name}.unreadable.txt")
                print(f"{store.skipped} pictures that cannot be read are left out; {listing} names them.", flush=True)
            facts = dict(store.facts)
        else:
            store = DecodingStore(pictures, square, self.corrupt)
            facts = {"stored_size": square.side, "pictures": len(pictures), **self._estimated(pictures, square)}
        facts |= {name: str([round(one, 4) for one in facts[name]]) for name in ("mean", "std")}
        return store, facts

    @staticmethod
    def _estimated(pictures: EncodedPictures, square: Square) -> dict[str, Any]:
        """Facts of some pictures at even distances."""
        rows = numpy.unique(numpy.linspace(0, len(pictures) - 1, ESTIMATED_ON).astype(int)).tolist()
        statistics, unreadable = PictureStatistics(), []
        for block in decode_blocks(pictures, rows, square):
            statistics.add(block.statistics)
            unreadable += block.unreadable
        if statistics.pictures == 0:
            raise no_readable(pictures, unreadable)
        return statistics.facts()

    def setup(self, stage: str) -> None:
        """Split the pictures, and open the test set where it is needed."""
        self.prepare_data()
        if not hasattr(self, "train_dataset"):
            count = len(self._store.rows)
            train, validation = split_rows(count, self.validation_share, "pictures")
            labels = self._pictures.labels.values if self._pictures.labels is not None else None
            if self.label_budget is not None:
                values = labels[self._store.rows[train]]
                size = budget_size(self.label_budget, len(train), len(numpy.unique(values)))
                train = train[stratified_choice(values, size, sample_generator(self.seed, "label budget"))]
            self.train_dataset = ImageDataset(self._store, train, labels)
            self.validation_dataset = ImageDataset(self._store, validation, labels) if len(validation) else None
        if stage == "test" and self.test_source is not None and not hasattr(self, "test_dataset"):
            self.test_dataset = self._open_test()

    def _open_test(self) -> ImageDataset:
        """The test pictures, of the same size and classes."""
        pictures = open_pictures(self.test_source, self.cache_directory / "huggingface")
        store, _ = self._open_store(pictures, Square(self.stored_size))
        labels = with_classes(pictures.labels, self.classes).values if pictures.labels is not None else None
        return ImageDataset(store, numpy.arange(len(store.rows)), labels)

    # -- loaders

    def _train_sampler(self) -> EpochBatchSampler:
        return EpochBatchSampler(self.train_dataset, self.batch_size, self.seed, shuffle=True)

    @property
    def train_batches_per_epoch(self) -> int:
        """Training batches of this process in an epoch."""
        return len(self._train_sampler())

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What a batch holds."""
        return ("images", "sample_id") if self.source.label_column is None else ("images", "sample_id", "label")

    def train_dataloader(self) -> ResumableDataLoader:
        """Shuffled batches, an order of its own for every epoch."""
        sampler = self._train_sampler()
        if len(sampler) == 0:
            raise UserError(
                f"The {len(self.train_dataset)} training pictures do not fill one batch of all devices: lower "
                "data.batch_size, or give more pictures."
            )
        return ResumableDataLoader(self.train_dataset, sampler, self.workers)

    def val_dataloader(self) -> ResumableDataLoader | list:
        """Every validation picture once, in the same order always."""
        return [] if self.validation_dataset is None else self._evaluation_loader(self.validation_dataset)

    def test_dataloader(self) -> ResumableDataLoader | list:
        """Every picture of the test set; the validation pictures if there is none."""
        return self._evaluation_loader(self.test_dataset) if hasattr(self, "test_dataset") else self.val_dataloader()

    def predict_dataloader(self) -> ResumableDataLoader:
        """Every picture of the source, in its order."""
        return self._evaluation_loader(ImageDataset(self._store, numpy.arange(len(self._store.rows))))

    def _evaluation_loader(self, dataset: ImageDataset) -> ResumableDataLoader:
        return ResumableDataLoader(dataset, EpochBatchSampler(dataset, self.batch_size, 0, shuffle=False), self.workers)

    def batch_at(self, epoch: int, batch_index: int, rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
        """Make any training batch again.

        Args:
            epoch: Epoch, from 0.
            batch_index: Batch within the epoch, from 0.
            rank: Process that saw it.
            world_size: How many there were.
        """
        return self.train_dataset.__getitems__(self._train_sampler().batch(epoch, batch_index, rank, world_size))

    # -- pictures without a loader

    def pictures(self, count: int) -> Tensor:
        """Up to `count` training pictures at even distances, (N, 3, S, S) uint8, the same in every process."""
        return self.train_dataset.at(evenly(len(self.train_dataset), count))["images"]

    def labelled_arrays(
        self, which: Literal["train", "validation", "test"], limit: int | None = None
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Pictures (N, 3, S, S) uint8 at even distances, and their classes (N,).

        Args:
            which: Part to take them from; without a test set, `test` is the validation part.
            limit: How many at most.

        Raises:
            UserError: If there are no labels, or no such part.
        """
        if which == "test" and self.test_source is not None:
            self.setup("test")
        dataset = {"train": self.train_dataset, "validation": self.validation_dataset}.get(which)
        if which == "test":
            dataset = getattr(self, "test_dataset", self.validation_dataset)
        if dataset is None:
            raise UserError(f"There are no {which} pictures: set data.validation_share above 0.")
        if dataset.labels is None:
            raise UserError("The pictures have no labels: set data.label_column.")
        batch = dataset.at(evenly(len(dataset), limit))
        return batch["images"].numpy(), batch["label"].numpy()

    # -- telling

    def describe(self) -> dict[str, str | int | float]:
        """What the data is, for the record of a run."""
        facts = self._described | {
            "data_fingerprint": self.fingerprint,
            "cached": not isinstance(self._store, DecodingStore),
            "training_pictures": len(self.train_dataset),
            "validation_pictures": len(self.validation_dataset) if self.validation_dataset is not None else 0,
        }
        return facts | ({"classes": len(self.classes)} if self.classes else {})


def evenly(length: int, count: int | None) -> numpy.ndarray:
    """Up to `count` indices below `length` at even distances; all for null."""
    if count is None or count >= length:
        return numpy.arange(length)
    return numpy.arange(count) * length // count
