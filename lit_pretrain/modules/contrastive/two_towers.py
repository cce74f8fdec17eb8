"""Two towers that embed texts and pictures where both meet: what they are asked for, trained or not."""

from collections.abc import Callable
from typing import cast

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.data.text.text_encoding import TextSettings, batch_of
from lit_pretrain.errors import UserError
from lit_pretrain.modules.base import BaseModule
from lit_pretrain.modules.contrastive.chunking import encode_in_chunks, split
from lit_pretrain.modules.contrastive.towers import Tower
from lit_pretrain.modules.contrastive.weights_hash import embedding_metadata
from lit_pretrain.modules.strategies import is_sharding
from lit_pretrain.objectives.objective import Batch
from lit_pretrain.required import required


class TwoTowers(BaseModule):
    """Embeds; a subclass makes and trains the towers.

    Attributes:
        text_tower: Of texts.
        vision_tower: Of pictures.
        tokenizer: Of the texts; null until it is known.
        augmentation: What is varied of pictures in training.
        chunk_size: Samples whose activations are held at a time; null holds all.
    """

    text_tower: Tower
    vision_tower: Tower
    tokenizer: TextTokenizer | None
    augmentation: ImageAugmentation
    chunk_size: int | None

    @property
    def towers(self) -> dict[str, Tower]:
        """Both, by their names."""
        return {"text": self.text_tower, "vision": self.vision_tower}

    @property
    def text_encoder(self) -> TextEncoder:
        """The encoder of texts, without its projection."""
        return cast(TextEncoder, self.text_tower.encoder)

    @property
    def vision_encoder(self) -> VisionEncoder:
        """The encoder of pictures, without its projection."""
        return cast(VisionEncoder, self.vision_tower.encoder)

    def tokenize(self, texts: list[str]) -> Batch:
        """Texts as `embed_texts` takes them, cut to what the tower has positions for.

        Raises:
            UserError: If there is no tokenizer.
        """
        self.check_tokenizer()
        settings = TextSettings(("text",), self.text_encoder.max_positions)
        return move_data_to_device(batch_of({"text": texts}, required(self.tokenizer), settings), self.device)

    def check_tokenizer(self) -> None:
        """See that texts can be told in word pieces.

        Raises:
            UserError: If they cannot.
        """
        if self.tokenizer is None:
            raise UserError(
                "The text tower has no tokenizer: put a tokenizer.json beside its weights, or pip install "
                "open_clip_torch, which brings CLIP's."
            )

    def embed_texts(self, batch: Batch) -> Tensor:
        """(T, E) embeddings of length 1 of `input_ids` and `attention_mask` (T, L), which may be said not `padded`."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        padded = batch.get("padded", True)
        return self.embed(self.text_tower, inputs, lambda part: part | {"padded": padded})

    def embed_pictures(self, images: Tensor, draws: dict[str, Tensor] | None = None) -> Tensor:
        """(B, E) embeddings of length 1.

        Args:
            images: Stored pictures (B, C, S, S), uint8; or floats in [0, 1] of the encoder's size, taken as they are.
            draws: What `augmentation` has drawn for stored pictures; null takes their middles.
        """

        def prepare(part: Batch) -> Batch:
            return {"images": self.vision_encoder.normalize(self.views(**part))}

        return self.embed(self.vision_tower, {"images": images} | (draws or {}), prepare)

    def embed(self, tower: Tower, inputs: Batch, prepare: Callable[[Batch], Batch]) -> Tensor:
        """Embeddings (B, E) of inputs, a chunk at a time.

        Args:
            tower: Whose.
            inputs: (B, ...) each.
            prepare: Makes the encoder's arguments of a chunk of them, so that there are never more pictures as floats
                than those of a chunk.
        """
        if tower.locked:
            # Nothing is carried on to it, so that no second pass is needed to keep its activations few.
            parts = split(inputs, self.chunk_size or len(next(iter(inputs.values()))))
            with torch.no_grad():
                features = torch.cat([tower.encoder(**prepare(part)) for part in parts])
            return tower.project(features)
        sharded = self._trainer is not None and is_sharding(self._trainer.strategy)
        return encode_in_chunks(lambda part: tower(prepare(part)), inputs, self.chunk_size, tower.parameters(), sharded)

    def views(self, images: Tensor, **draws: Tensor) -> Tensor:
        """What the encoder is shown of pictures, before they are normalised; see `embed_pictures`."""
        if images.is_floating_point():
            return images
        size = self.vision_encoder.image_size
        return self.augmentation.apply(images, size, draws) if draws else self.vision_encoder.frame(images)

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Embeddings of the pictures, or of the texts if there are none: `sample_id` (B,) and `embedding` (B, E)."""
        embedding = self.embed_pictures(batch["images"]) if "images" in batch else self.embed_texts(batch)
        return {"sample_id": batch["sample_id"], "embedding": embedding}

    def prediction_metadata(self) -> dict[str, str]:
        """What tells whose embeddings a file holds."""
        checkpoint = self._trainer.ckpt_path if self._trainer is not None else None
        return embedding_metadata(self.towers, checkpoint)
