"""What data modules that may read pictures have in common: how the pictures are kept."""

from typing import Any

from lit_pretrain.data.images.image_cache import Corrupt
from lit_pretrain.data.images.image_store import StorageSettings
from lit_pretrain.data.streamable_data_module import StreamableDataModule
from lit_pretrain.errors import check_number


class PictureDataModule(StreamableDataModule):
    """Pictures of any source, kept as squares of one size.

    Args:
        batch_size: Samples of a batch of one device.
        stored_size: Pixels of a side of the squares that are kept: the shorter side is resized, the middle cut out;
            null keeps the pictures as they are, if all are squares of one size.
        cache: Whether pictures are kept decoded on disk, which makes batches nearly free; null keeps them if they fit
            `cache_gigabytes` and the disk, false decodes them in every epoch.
        cache_gigabytes: Size up to which pictures are kept decoded if `cache` is null.
        corrupt: What becomes of pictures that cannot be decoded to their end: `error`, or `skip` to name and leave out.
        **settings: See `StreamableDataModule` and `EpochDataModule`.
    """

    def __init__(
        self,
        batch_size: int,
        stored_size: int | None = None,
        cache: bool | None = None,
        cache_gigabytes: float = 8.0,
        corrupt: Corrupt = "error",
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, **settings)
        check_number("data.stored_size", stored_size, least=2)
        check_number("data.cache_gigabytes", cache_gigabytes, least=0)
        if self.streaming and cache:
            self.refuse_in_stream(("cache", cache, "keeps all pictures decoded on the disk"))
        self.storage = StorageSettings(stored_size, cache, cache_gigabytes, corrupt, self.cache_directory)
