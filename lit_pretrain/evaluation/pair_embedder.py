"""Embeds any texts and pictures with the two towers of a contrastive pretraining, as they were in its validation."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_pretrain.data.text.text_encoding import EncodedTexts, TextSettings, encode_texts
from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.progress_bar import with_bar
from lit_pretrain.measures.finite import check_finite
from lit_pretrain.required import required

if TYPE_CHECKING:
    from lit_pretrain.modules.contrastive.contrastive_pretraining import ContrastivePretraining

# Texts, or pictures, that are embedded at a time.
AT_ONCE = 128
TEXT = "text"


class PairEmbedder:
    """Embeds with both towers, which are run as in evaluation and left as they were.

    Args:
        module: With its weights, on any device.
        bf16: Whether matrices are multiplied in bf16.
    """

    def __init__(self, module: "ContrastivePretraining", bf16: bool = False) -> None:
        self.module, self.bf16 = module, bf16

    @property
    def maximum_length(self) -> int:
        """Tokens of a text at most, special tokens included: as many as were trained with."""
        return self.module.inputs.get("maximum_length", self.module.text_encoder.max_positions)

    @property
    def stored_size(self) -> int:
        """Pixels of a side of the squares that pictures become, before their middle is taken."""
        return self.module.vision_encoder.framed_size

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Texts as word pieces; says how many were cut."""
        self.module.check_tokenizer()
        data = datasets.Dataset.from_dict(
            {TEXT: list(texts)}, features=datasets.Features({TEXT: datasets.Value("string")})
        )
        settings = TextSettings((TEXT,), self.maximum_length)
        return encode_texts(data, numpy.arange(len(texts)), required(self.module.tokenizer), settings)

    @torch.no_grad()
    def embed_texts(self, encoded: EncodedTexts) -> Tensor:
        """(T, E) of length 1 on the CPU, in the texts' order; those of like length are embedded together."""
        order = numpy.argsort(-encoded.lengths, kind="stable")
        embeddings = torch.empty(len(encoded), self.module.embedding_width)
        with self._evaluating():
            starts = range(0, len(order), AT_ONCE)
            for start in with_bar(starts, len(starts), "texts"):
                places = order[start : start + AT_ONCE]
                batch = move_data_to_device(encoded.batch(places), self.module.device)
                embeddings[torch.from_numpy(places)] = self.module.embed_texts(batch).float().cpu()
        return check_finite(embeddings, "embeddings of texts")

    @torch.no_grad()
    def embed_pictures(self, batches: Iterable[Tensor]) -> Tensor:
        """(N, E) of length 1 on the CPU.

        Args:
            batches: (B, 3, S, S) uint8 each, of `stored_size`; their middles are taken.
        """
        embeddings = [torch.empty(0, self.module.embedding_width)]
        with self._evaluating():
            for images in batches:
                for part in images.split(AT_ONCE):
                    framed = self.module.vision_encoder.frame(part.to(self.module.device))
                    embeddings.append(self.module.embed_pictures(framed).float().cpu())
        return check_finite(torch.cat(embeddings), "embeddings of pictures")

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.module.training
        self.module.eval()
        try:
            with torch.autocast(self.module.device.type, torch.bfloat16, enabled=self.bf16):
                yield
        finally:
            self.module.train(training)


def open_pair(reference: str | Path) -> tuple["ContrastivePretraining", Path]:
    """A contrastive pretraining with its weights, and its checkpoint.

    Args:
        reference: "last", a run's name or id, "RUN:best", or a file; or a CLIP in open_clip's format, as a directory, a
            file of weights, or "owner/name" on the hub.

    Raises:
        UserError: If there is no such checkpoint, or it is of another kind.
    """
    from lit_pretrain.modules import ContrastivePretraining
    from lit_pretrain.modules.checkpoints import read_checkpoint
    from lit_pretrain.tracking.find import find_checkpoint
    from lit_pretrain.tracking.paths import shown_path

    if is_public_pair(str(reference)):
        return ContrastivePretraining.from_pretrained(str(reference)), Path(reference)
    path = find_checkpoint(str(reference))
    kind = read_checkpoint(path)["lit_pretrain"]["module"]
    if kind != ContrastivePretraining.__name__:
        raise UserError(
            f"{shown_path(path)} is a checkpoint of {kind}, which does not compare texts with pictures: give one of "
            f"{ContrastivePretraining.__name__}."
        )
    return ContrastivePretraining.from_checkpoint(path), path


def is_public_pair(reference: str) -> bool:
    """Whether a reference names both towers of a CLIP in open_clip's format, and no checkpoint or run of ours.

    Raises:
        UserError: If it is "owner/name", and the hub does not answer.
    """
    from lit_pretrain.modules.starting_points import WEIGHT_SUFFIXES
    from lit_pretrain.tracking.find import find_checkpoint
    from lit_pretrain.weights import huggingface_vit, open_clip

    path = Path(reference).expanduser()
    if path.is_dir() or path.is_file() and path.suffix in WEIGHT_SUFFIXES:
        return open_clip.is_checkpoint(path) or (path.is_dir() and huggingface_vit.model_type(path) == "clip")
    if reference.count("/") != 1 or path.exists() or path.suffix == ".ckpt" or reference.startswith((".", "/")):
        return False
    try:
        find_checkpoint(reference)
    except UserError:
        return open_clip.find_on_hub(reference) is not None
    return False
