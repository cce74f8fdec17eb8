"""What data modules for fine-tuning and for pairs have in common: validation and test data of their own."""

from typing import Any

from lit_pretrain.data.images.picture_data_module import PictureDataModule
from lit_pretrain.data.labelled.labelled_source import AnySource, other_part


class HeldOutDataModule(PictureDataModule):
    """Training data, with other sources of validation and test data where they are named.

    Args:
        batch_size: Samples of a batch of one device.
        validation_path: Validation data of its own; null with `validation_data_files` and `validation_split` null too
            takes `validation_share` of the training data.
        validation_data_files: Files or patterns of the validation data.
        validation_split: Split of the validation data; by itself, another split of `path`.
        test_path: Test data of its own; null with `test_data_files` and `test_split` null too lets the validation data
            serve.
        test_data_files: Files or patterns of the test data.
        test_split: Split of the test data; by itself, another split of `path`.
        **settings: See `PictureDataModule` and `EpochDataModule`.
    """

    def __init__(
        self,
        batch_size: int,
        validation_path: str | None = None,
        validation_data_files: str | list[str] | None = None,
        validation_split: str | None = None,
        test_path: str | None = None,
        test_data_files: str | list[str] | None = None,
        test_split: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, **settings)
        self.other_sources = {
            "validation": (validation_path, validation_data_files, validation_split),
            "test": (test_path, test_data_files, test_split),
        }

    def held_out(self, main: AnySource) -> dict[str, AnySource | None]:
        """The sources of `validation` and `test`, null where none is named.

        Args:
            main: Source of the training data.

        Raises:
            UserError: If a split is named of a source that has none.
        """
        return {part: other_part(main, part, *named) for part, named in self.other_sources.items()}
