"""Pairs with texts or pictures beside them: what a contrastive training learns from while it replays earlier tasks."""

import hashlib
from collections.abc import Iterator
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader

from lit_pretrain.data.images.image_data_module import ImageDataModule
from lit_pretrain.data.loading import ResumableDataLoader, overfits
from lit_pretrain.data.pairs.pair_data_module import PairDataModule
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.byte_pair_tokenizer import BytePairTokenizer
from lit_pretrain.data.text.document_data_module import DocumentDataModule
from lit_pretrain.data.text.tokenizers_by_kind import load_tokenizer
from lit_pretrain.errors import UserError

PAIRS = "pairs"


class JointDataModule(LightningDataModule):
    """Batches of pairs, each with a batch of texts, of pictures, or of both.

    An epoch is one of the pairs; texts and pictures have epochs of their own, which go on from one of the pairs' to the
    next. A training batch is a mapping of `pairs`, `text` and `vision`; evaluation is of one after the other. Captions
    and texts have one tokenizer: the one that either part names, else the model's, else one that is trained on the
    texts.

    Args:
        pairs: Pictures with captions.
        text: Texts for `model.text_replay`; null for none.
        vision: Pictures for `model.vision_replay`; null for none.
    """

    def __init__(
        self, pairs: PairDataModule, text: DocumentDataModule | None = None, vision: ImageDataModule | None = None
    ) -> None:
        super().__init__()
        if text is None and vision is None:
            raise UserError("JointDataModule has neither data.text nor data.vision: give one, or take PairDataModule.")
        if text is not None and text.new_pieces:
            raise UserError(
                "data.text.new_pieces adds pieces to the vocabulary that a TextPretraining starts from, not to a "
                "tower's: set it to 0, pretrain on the texts with it first, and let the tower start from that run."
            )
        if text is not None and text.general is not None:
            raise UserError(
                "data.text.replay mixes texts for a pretraining on texts alone: give all of them as data.text, which "
                "is replayed beside the pairs itself."
            )
        named = {PAIRS: pairs, "text": text, "vision": vision}
        self.parts: dict[str, Any] = {name: part for name, part in named.items() if part is not None}
        for name, part in self.parts.items():
            if part.streaming:
                raise UserError(
                    f"data.{name}.streaming reads samples as they come, and JointDataModule hands out parts "
                    "beside each other by their lengths: set it to false, or stream pairs alone by PairDataModule."
                )

    # -- preparing

    def prepare_data(self) -> None:
        """Prepare every part, with one tokenizer for captions and texts."""
        for part in self.parts.values():
            part.trainer = self.trainer
        if "text" in self.parts:
            model = getattr(self.trainer, "lightning_module", None)
            share_tokenizer(self.parts[PAIRS], self.parts["text"], getattr(model, "tokenizer", None))
        for part in self.parts.values():
            part.prepare_data()

    def setup(self, stage: str) -> None:
        """Set every part up."""
        self.prepare_data()
        for part in self.parts.values():
            part.setup(stage)

    # -- loaders

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What a training batch holds."""
        return tuple(self.parts)

    @property
    def train_batches_per_epoch(self) -> int:
        """Training batches of this process in an epoch of the pairs."""
        return self.parts[PAIRS].train_batches_per_epoch

    def train_dataloader(self) -> CombinedLoader:
        """Batches of all parts together, for an epoch of the pairs."""
        loaders = {name: part.train_dataloader() for name, part in self.parts.items()}
        if overfits(self):
            # The same few batches of each part in every epoch: nothing goes on from where it stood.
            for loader in loaders.values():
                loader.batch_sampler.repeats = True
            return CombinedLoader(loaders, "min_size")
        batches = len(loaders[PAIRS])
        return CombinedLoader(
            {name: loader if name == PAIRS else ContinuedLoader(loader, batches) for name, loader in loaders.items()},
            "min_size",
        )

    def batch_at(self, epoch: int, batch_index: int, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
        """Make any training batch again; see `EpochDataModule.batch_at`.

        Args:
            epoch: Epoch of the pairs, from 0.
            batch_index: Batch within it, from 0.
            rank: Process that saw it.
            world_size: How many there were.
        """
        number = epoch * self.parts[PAIRS].batches_per_epoch(world_size) + batch_index
        batches = {}
        for name, part in self.parts.items():
            own = (epoch, batch_index) if name == PAIRS else divmod(number, part.batches_per_epoch(world_size))
            batches[name] = part.batch_at(*own, rank, world_size)
        return batches

    def batches_per_epoch(self, world_size: int) -> int:
        """Training batches of each of so many processes in an epoch of the pairs."""
        return self.parts[PAIRS].batches_per_epoch(world_size)

    def val_dataloader(self) -> CombinedLoader:
        """Every validation sample of one part after the other."""
        return CombinedLoader({name: part.val_dataloader() for name, part in self.parts.items()}, "sequential")

    def test_dataloader(self) -> CombinedLoader:
        """Every test sample of one part after the other; the validation samples of a part without test data."""
        return CombinedLoader({name: part.test_dataloader() for name, part in self.parts.items()}, "sequential")

    def predict_dataloader(self) -> Any:
        """That of the pairs."""
        return self.parts[PAIRS].predict_dataloader()

    # -- telling

    def named_samples(self, indices: list[int]) -> dict[str, list[str]]:
        """As the pairs', whose samples `predict` answers."""
        return self.parts[PAIRS].named_samples(indices)

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """Of captions and texts, once prepared."""
        return self.parts[PAIRS].tokenizer

    @property
    def fingerprint(self) -> str:
        """Of all parts together, once prepared."""
        lines = [f"{name} {part.fingerprint}" for name, part in self.parts.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What the data is, for the record of a run: of the pairs, and of the rest under their parts' names."""
        description = self.parts[PAIRS].describe()
        for name, part in self.parts.items():
            if name != PAIRS:
                description |= {f"{name}_{key}": value for key, value in part.describe().items()}
        return description | {"data_fingerprint": self.fingerprint}


def part_of(batch: dict[str, Any]) -> str:
    """Which part a batch of an evaluation is of, by what it holds."""
    if "caption_picture" in batch:
        return PAIRS
    return "text" if "input_ids" in batch else "vision"


def share_tokenizer(pairs: PairDataModule, texts: DocumentDataModule, model_tokenizer: TextTokenizer | None) -> None:
    """Give captions and texts one tokenizer.

    Args:
        pairs: With captions.
        texts: Its documents train a tokenizer where nobody brings one.
        model_tokenizer: The model's, or null.

    Raises:
        UserError: If two of them bring different ones, or one that texts alone cannot be learned with.
    """
    if texts.tokenizer is not None:
        return
    paths = {"pairs": pairs.tokenizer_path, "text": texts.tokenizer_path}
    named = {name: load_tokenizer(path) for name, path in paths.items() if path is not None}
    if len({part.hash for part in named.values()}) > 1:
        raise UserError(
            f"data.pairs.tokenizer is tokenizer {named['pairs'].hash}, and data.text.tokenizer {named['text'].hash}: "
            "one tower reads both, so set one of them to null, which takes the other's."
        )
    for name, part in named.items():
        if model_tokenizer is not None and part.hash != model_tokenizer.hash:
            raise UserError(
                f"data.{name}.tokenizer is tokenizer {part.hash}, and the tower of texts was trained with "
                f"{model_tokenizer.hash}: set it to null to take the model's own."
            )
    texts.tokenizer = model_tokenizer or next(iter(named.values()), None)
    if isinstance(texts.tokenizer, BytePairTokenizer):
        raise UserError(
            "Captions have CLIP's tokenizer, and tasks on texts hide words by special tokens that it has not: leave "
            "data.text and model.text_replay out."
        )
    texts.prepare_data()
    pairs.tokenizer, pairs.tokenizer_path = texts.tokenizer, pairs.tokenizer_path or texts.tokenizer_path


class ContinuedLoader:
    """Batches of a loader whose epochs follow one another without end, handed out beside another loader's.

    Its state is the loader's: the epoch and the number of batches handed out in it.

    Args:
        loader: Its sampler is told its own epochs, not the trainer's.
        batches: How many are asked for in an epoch of the trainer's.
    """

    def __init__(self, loader: ResumableDataLoader, batches: int) -> None:
        self.loader = loader
        self.batches = batches
        self._epoch = 0
        self._rest: Iterator[Any] | None = None

    def __len__(self) -> int:
        """Batches in an epoch of the trainer's."""
        return self.batches

    def __iter__(self) -> "ContinuedLoader":
        """Go on from where it stands."""
        return self

    def __next__(self) -> Any:
        """One batch; the next epoch's first if this one is through."""
        while True:
            if self._rest is None:
                self.loader.batch_sampler.set_epoch(self._epoch)
                self._rest = iter(self.loader)
            try:
                return next(self._rest)
            except StopIteration:
                self._epoch, self._rest = self._epoch + 1, None

    def state_dict(self) -> dict[str, int]:
        """Where the next batch stands."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._epoch, self._rest = state["epoch"], None
        self.loader.load_state_dict(state)
