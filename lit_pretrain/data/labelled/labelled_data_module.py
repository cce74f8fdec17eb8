"""Labelled texts, pairs of texts or pictures, for fine-tuning and for evaluation."""

from typing import Any, Literal, cast

import numpy
from lightning.pytorch.trainer.states import TrainerFn

from lit_pretrain.data.columns import padded_numbers
from lit_pretrain.data.images.image_source import ImageSource
from lit_pretrain.data.labelled.held_out_data_module import HeldOutDataModule
from lit_pretrain.data.labelled.label_facts import TASKS, LabelFacts, Task
from lit_pretrain.data.labelled.labelled_dataset import LabelledDataset
from lit_pretrain.data.labelled.labelled_parts import LabelSettings, Part, share_out
from lit_pretrain.data.labelled.labelled_sampler import LengthBatchSampler
from lit_pretrain.data.labelled.labelled_source import (
    Contents,
    LabelledTextSource,
    PictureContents,
    TextContents,
)
from lit_pretrain.data.loading import ResumableDataLoader
from lit_pretrain.data.notices import is_first_process, say_once
from lit_pretrain.data.sources import Source
from lit_pretrain.data.summary import PartSummary, data_line, label_warnings, labels_told
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.text_encoding import EncodedTexts, TextSettings, Truncation, choose_tokenizer
from lit_pretrain.errors import UserError, check_length, check_number
from lit_pretrain.picture_facts import PictureFacts
from lit_pretrain.required import required

Stage = Literal["train", "validation", "test"]


class LabelledDataModule(HeldOutDataModule):
    """Samples with labels as batches: texts of like length, padded to the longest of a batch, or pictures.

    Args:
        path: Hub name, file (parquet, arrow, csv, json; for pictures a folder too), saved data set, or builder for
            `data_files`; null without `data_files` is a bundled sample, the State of the Union speeches or emoji.
        name: Configuration of a data set on the hub, or of a directory's README.md.
        data_files: Files or patterns.
        split: Split to train on, or to predict. A directory has the splits that its README.md or the names in it say
            (train.csv, test-*.parquet, train/ and val/); files named by themselves have none.
        text_column: Column of texts; null without `image_column` is `text`. A text that is missing, empty or white
            space stays, as [CLS] [SEP], and is counted in the run's record.
        text_pair_column: Column of second texts, for tasks on pairs.
        image_column: Column of pictures, of their bytes or of their file names, instead of texts.
        label_column: Column of labels: classes, strings, integers or booleans (a class each), floats (a number to
            predict), or lists of strings, integers or classes (any number of classes each). Only `predict` needs none.
        task: `single_label`, `multi_label` or `regression`, where the column's type would say otherwise (integers that
            are numbers to predict, say); null lets the type decide.
        tokenizer: Directory or file of a WordPiece tokenizer; null is the model's own.
        maximum_length: Tokens of a sequence at most, special tokens included.
        truncation: What is kept of a single text that is longer: `head`, its beginning, or `head_tail`, a quarter of
            the room from its beginning and the rest from its end. Of a pair, the longer text loses its end first.
        batch_size: Samples of a batch of one device.
        label_budget: Only so many training samples, or such a share of them below 1, drawn with the seed: with a class
            each, classes keep their shares. For one seed a smaller budget's samples are among a larger one's.
        label_separator: What stands between several classes in one text ("|" in "red|blue"), to learn any number of
            them a row; null takes each text as one class.
        **settings: `validation_path`, `validation_data_files`, `validation_split`, `test_path`, `test_data_files` and
            `test_split`, see `HeldOutDataModule`; `stored_size`, `cache`, `cache_gigabytes` and `corrupt`, see
            `PictureDataModule`; `workers`, `validation_share`, `cache_directory`, `seed`, `delimiter` and `encoding`,
            see `EpochDataModule`.
    """

    # Samples of like length share a step of so many.
    cut_anywhere = False

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        data_files: str | list[str] | None = None,
        split: str = "train",
        text_column: str | None = None,
        text_pair_column: str | None = None,
        image_column: str | None = None,
        label_column: str | None = "label",
        task: Task | None = None,
        tokenizer: str | None = None,
        maximum_length: int = 128,
        truncation: Truncation = "head",
        batch_size: int = 32,
        label_budget: int | float | None = None,
        label_separator: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, **settings)
        if self.streaming:
            raise UserError(
                "data.streaming reads samples as they come, and fine-tuning must know all labels before: set it to "
                "false (unlabelled texts, pictures and pairs are pretrained on as streams)."
            )
        check_number("data.maximum_length", maximum_length, least=8)
        check_length("data.label_budget", label_budget, above_zero=True)
        if task is not None and task not in TASKS:
            raise UserError(f"data.task is {task}: give {', '.join(TASKS[:-1])} or {TASKS[-1]}, or null.")
        if label_separator is not None and task not in (None, "multi_label"):
            raise UserError(f"data.label_separator gives any number of classes, and data.task is {task}: drop one.")
        if label_separator == "":
            raise UserError("data.label_separator is empty: give what stands between classes, or null.")
        if image_column is not None and (text_column is not None or text_pair_column is not None):
            raise UserError("data.image_column and data.text_column are both set: learn from pictures or from texts.")
        if text_pair_column is not None and truncation == "head_tail":
            raise UserError("data.truncation head_tail is for single texts: set it to head for pairs.")
        self.text: TextSettings | None = None
        if image_column is None:
            columns = (text_column or "text", *([text_pair_column] if text_pair_column is not None else []))
            self.text = TextSettings(columns, maximum_length, truncation)
            self.source: Source = LabelledTextSource(path, name, data_files, split, **self.table_form)
        else:
            self.source = ImageSource(path, name, data_files, split, image_column=image_column, **self.table_form)
        self.label_settings = LabelSettings(
            label_column, task, self.validation_share, label_budget, self.seed, label_separator
        )
        self.tokenizer_path = tokenizer
        self.tokenizer: TextTokenizer | None = None
        self.label_facts: LabelFacts | None = None
        self.fingerprint = ""
        self.contents: Contents | None = None
        self.parts: dict[str, Part] = {}

    # -- preparing

    def prepare_data(self) -> None:
        """Open the sources, read the labels, and decode pictures that are not kept yet."""
        if self.trainer is None:
            self._prepare(labelled=self.label_settings.column is not None)
        else:
            self._prepare(labelled=self.trainer.state.fn != TrainerFn.PREDICTING)

    def setup(self, stage: str) -> None:
        """Tokenise what the stage needs."""
        self._prepare(labelled=stage != "predict")
        for part in {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, (stage,)):
            self._dataset(part)

    def _prepare(self, labelled: bool) -> None:
        if self.text is not None:
            # Before anything slow: a tokenizer that cannot be used.
            model_tokenizer = getattr(getattr(self.trainer, "lightning_module", None), "tokenizer", None)
            tokenizer = choose_tokenizer(self.tokenizer_path, self.tokenizer, model_tokenizer)
            if self.tokenizer is not None and self.tokenizer.hash != tokenizer.hash:
                for part in self.parts.values():
                    part.forget_samples()
            self.tokenizer = tokenizer
        if labelled and self.label_settings.column is None:
            raise UserError("There are no labels to learn from: set data.label_column.")
        if self.contents is None:
            self.contents = self._open(self.source)
        if labelled and self.label_facts is None:
            sources = self.held_out(self.source)
            others = {part: self._open(source) for part, source in sources.items() if source is not None}
            parts = share_out(self.contents, others, self.label_settings)
            self.parts |= parts.parts
            self.label_facts, self.fingerprint = parts.facts, parts.fingerprint
            if is_first_process():
                self._tell()
        if "predict" not in self.parts:
            self.contents.make_ready(like=self.contents)
            everything = self.contents.there(numpy.arange(len(self.contents.data)))
            self.parts["predict"] = Part(self.contents, everything)
            self.fingerprint = self.fingerprint or self.contents.fingerprint

    def _tell(self) -> None:
        """Say what was understood of the data."""
        train = self.parts["train"]
        contents, column = required(self.contents), required(self.label_settings.column)
        for doubt in label_warnings(required(train.labels), padded_numbers(contents.opened, column)):
            say_once(doubt)
        parts: dict[str, PartSummary] = {}
        for name in ("train", "validation", "test"):
            part = self.parts.get(name)
            if part is not None and not any(part is self.parts[name] for name in parts):
                own = part.contents.source if part.contents is not contents else None
                parts[name] = PartSummary(len(part.rows), own, part.contents.keys(part.rows))
        labels = labels_told(required(self.label_facts), column)
        summary = f"{len(contents.data):,} rows, {contents.columns}, {labels}"
        say_once(data_line(contents.source, summary, parts))

    def _open(self, source: Source) -> Contents:
        if self.text is None:
            return PictureContents(cast(ImageSource, source), self.storage)
        return TextContents(source, self.text, self.cache_directory)

    def _dataset(self, part: str, by_length: bool = False) -> LabelledDataset | None:
        return self.parts[part].dataset(self.tokenizer, by_length) if part in self.parts else None

    @property
    def train_dataset(self) -> LabelledDataset | None:
        """Training samples that the label budget allows, in the order of their source, once prepared."""
        return self._dataset("train")

    @property
    def validation_dataset(self) -> LabelledDataset | None:
        """Validation samples, in the order of their source, once prepared; null if there are none."""
        return self._dataset("validation")

    @property
    def test_dataset(self) -> LabelledDataset | None:
        """Test samples, in the order of their source, once prepared: the validation samples if there are no others."""
        return self._dataset("test")

    # -- loaders

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What a training batch holds."""
        texts = ("input_ids", "attention_mask", "token_type_ids", "padded")
        contents = ("images",) if self.text is None else texts
        return (*contents, "sample_id", "label")

    def val_dataloader(self) -> ResumableDataLoader | list:
        """Every validation sample once, the longest texts first."""
        return self._loader("validation", by_length=True)

    def test_dataloader(self) -> ResumableDataLoader | list:
        """Every test sample once, the longest texts first; the validation samples if there is no test data."""
        return self._loader("test", by_length=True)

    def predict_dataloader(self) -> ResumableDataLoader | list:
        """All samples of the source in its order, without labels."""
        self._prepare(labelled=False)
        return self._loader("predict", by_length=False)

    def evaluation_loader(self, stage: Stage) -> ResumableDataLoader:
        """Every sample of a part once, in the order of its source.

        Args:
            stage: `train` is what the label budget allows.

        Raises:
            UserError: If there is no such part.
        """
        return self._in_order(self._part(stage).dataset(self.tokenizer))

    def _train_sampler(self) -> LengthBatchSampler:
        self._part("train")
        return LengthBatchSampler(required(self.train_dataset), self.batch_size, self.seed)

    def _loader(self, part: str, by_length: bool) -> ResumableDataLoader | list:
        return self._in_order(self._dataset(part, by_length))

    def _part(self, stage: str) -> Part:
        self._prepare(labelled=stage != "predict")
        if stage not in self.parts:
            raise UserError(
                f"There is no {stage} data: set data.{'test' if stage == 'test' else 'validation'}_path, or "
                "data.validation_share above 0."
            )
        return self.parts[stage]

    # -- telling

    @property
    def classes(self) -> list[str]:
        """Names of the classes by number, once prepared; empty for regression."""
        return self.label_facts.classes if self.label_facts is not None else []

    @property
    def facts(self) -> PictureFacts | None:
        """What is known of the pictures, once prepared; null for texts."""
        if not isinstance(self.contents, PictureContents):
            return None
        pictures = self.contents.stored
        return PictureFacts(pictures.square.side, pictures.store.facts["grey_share"])

    def raw_samples(self, stage: Stage | Literal["predict"], indices: list[int]) -> list[dict[str, Any]]:
        """Samples to show to people.

        Args:
            stage: Whose source to look into.
            indices: Rows of it, as batches' `sample_id` gives them.

        Returns:
            `text` (and `text_pair`), or `image`, for each.
        """
        return self._part(stage).contents.raw([int(index) for index in indices])

    def named_samples(self, indices: list[int]) -> dict[str, list[str]]:
        """Columns to know the samples of `predict` by: `text` (and `text_pair`), or `image`, the names of the files.

        Args:
            indices: Rows of the source, as batches' `sample_id` gives them.
        """
        return self._part("predict").contents.named([int(index) for index in indices])

    def describe(self) -> dict[str, str | int | float]:
        """What the data is, for the record of a run."""
        description: dict[str, str | int | float] = {
            "source": required(self.contents).source,
            "data_fingerprint": self.fingerprint,
        }
        if self.text is not None:
            description |= {"tokenizer_hash": required(self.tokenizer).hash, "maximum_length": self.text.maximum_length}
        if self.label_facts is not None:
            description |= {"task": self.label_facts.task, "training_samples": len(self.parts["train"].rows)}
            if self.classes:
                description["classes"] = len(self.classes)
        names = {"train": "training", "validation": "validation", "test": "test", "predict": "predicted"}
        for stage, part in self.parts.items():
            if stage in ("validation", "test"):
                description |= {f"{stage}_samples": len(part.rows), f"{stage}_source": part.contents.source}
                description[f"{stage}_fingerprint"] = part.contents.fingerprint
            if self.text is not None and part.samples is not None:
                samples = cast(EncodedTexts, part.samples)
                description[f"{names[stage]}_truncated_share"] = round(samples.truncated / max(1, len(samples)), 4)
                description[f"{names[stage]}_mean_length"] = round(float(samples.lengths.mean()), 1)
                description[f"{names[stage]}_empty_texts"] = samples.empty
        if self.text is not None and "train" in self.parts and self.parts["train"].samples is not None:
            description["padding_share"] = round(self._train_sampler().padding_share(self.text.maximum_length), 4)
        return description
