"""Contestants of CLIP's training step: ours and `open_clip`'s model with its loss, as its training loop has them."""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.commands.benchmarks.contest import Contestant
from lit_pretrain.commands.benchmarks.setting import shape_of
from lit_pretrain.commands.benchmarks.step import LEARNING_RATE, manner, training_step
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.data.labelled.labelled_sampler import padded_length
from lit_pretrain.modules import ContrastivePretraining
from lit_pretrain.modules.contrastive.towers import TowerConfig
from lit_pretrain.modules.optimization import AdamWConfig, make_optimizer
from lit_pretrain.objectives.contrastive import LARGEST_SCALE, Pairs
from lit_pretrain.weights.open_clip import CONFIG, WEIGHTS
from lit_pretrain.weights.open_clip_settings import settings_of_config

CONTEXT = 77
# Of the lengths of Conceptual Captions (Sharma et al. 2018): 10.3 words with a deviation of 4.5.
SPREAD = 4.5 / 10.3


@dataclass(frozen=True)
class ClipShape:
    """What a measured CLIP looks like.

    Attributes:
        name: For the table.
        image_size: Pixels of a picture's side.
        patch_size: Pixels of a patch's side.
        width: Features of a patch.
        depth: Blocks of the picture tower.
        text_width: Features of a word piece.
        text_depth: Blocks of the text tower.
    """

    name: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    text_width: int
    text_depth: int

    @classmethod
    def of(cls, text: str) -> "ClipShape":
        """A shape by its name, or by its figures; a `UserError` if it is neither."""
        form = "IMAGE/PATCH/WIDTH/DEPTH/TEXT_WIDTH/TEXT_DEPTH"
        return shape_of(text, cls, SHAPES, form, "224/32/768/12/512/12")

    def config(self, vocabulary_size: int) -> dict:
        """The config of open_clip's model of this shape, from which ours is made too."""
        return {
            "embed_dim": self.text_width,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "width": self.width,
                "layers": self.depth,
                "head_width": math.gcd(self.width, 64),
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary_size,
                "width": self.text_width,
                "layers": self.text_depth,
                "heads": max(1, self.text_width // 64),
            },
        }


SHAPES = {
    shape.name: shape
    for shape in (
        ClipShape("quickstart", 64, 8, 128, 3, 128, 2),
        ClipShape("small", 112, 16, 384, 6, 256, 6),
        ClipShape("vit-b32", 224, 32, 768, 12, 512, 12),
    )
}


def random_pairs(
    shape: ClipShape, pairs: int, mean_length: int, vocabulary_size: int, device: torch.device
) -> dict[str, Tensor]:
    """Coloured noise with random captions whose lengths differ as captions' do, padded to the longest.

    Args:
        shape: Gives the pictures' size.
        pairs: Of the batch.
        mean_length: Tokens of a caption, those that begin and end it included; all are so long if it fills the context.
        vocabulary_size: The last two ids begin and end a caption.
        device: Where the batch lies.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.full((pairs,), mean_length)
    if mean_length < CONTEXT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            gamma = torch.distributions.Gamma(SPREAD**-2, SPREAD**-2 / (mean_length - 2))
            lengths = (2 + gamma.sample((pairs,))).round().long().clamp(3, CONTEXT)
    width = padded_length(int(lengths.max()), CONTEXT)
    places = torch.arange(width)
    ids = torch.randint(1, vocabulary_size - 2, (pairs, width), generator=generator)
    ids[:, 0] = vocabulary_size - 2
    ids[places == lengths[:, None] - 1] = vocabulary_size - 1
    real = places < lengths[:, None]
    size = (pairs, 3, shape.image_size, shape.image_size)
    batch = {
        "images": torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
        "input_ids": ids.masked_fill(~real, 0),
        "attention_mask": real,
        "caption_key": torch.arange(pairs),
        "picture_key": torch.arange(pairs),
    }
    return {name: value.to(device) for name, value in batch.items()}


def our_module(
    shape: ClipShape, vocabulary_size: int, compiled: bool, peer: torch.nn.Module | None = None
) -> ContrastivePretraining:
    """Two towers of a shape; pictures are taken as they are.

    Args:
        shape: Of both.
        vocabulary_size: Word pieces.
        compiled: Whether the blocks are compiled.
        peer: open_clip's model whose weights are taken; null for new ones.
    """
    settings: dict[str, Any] = {"augmentation": ImageAugmentation(crop="center", flip=0.0), "compile_blocks": compiled}
    config = shape.config(vocabulary_size)
    if peer is None:
        towers: dict[str, Any] = {
            "text_encoder": TextEncoder.from_settings(settings_of_config(config, "text", shape.name)),
            "vision_encoder": VisionEncoder.from_settings(settings_of_config(config, "vision", shape.name)),
        }
        module = ContrastivePretraining(**towers, embedding_width=config["embed_dim"], **settings)
    else:
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / CONFIG).write_text(json.dumps(config))
            torch.save(peer.state_dict(), Path(directory) / WEIGHTS[1])
            start = TowerConfig(init_from=directory)
            module = ContrastivePretraining(text=start, vision=start, **settings)
    # What the module asks of a tokenizer before a training, for random word pieces.
    module.tokenizer = cast(Any, SimpleNamespace(vocabulary_size=vocabulary_size))
    return module


def our_loss(module: ContrastivePretraining, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    """The loss of a training step of a module, always of the same batch; the module is made ready for it here."""
    device = batch["images"].device
    module.configure_model()
    module.to(device).train()
    generator = torch.Generator(device=device)

    def loss() -> Tensor:
        images = module.augmentation.vary(batch["images"], module.vision_encoder.image_size, generator)
        texts, pictures = module.embed_texts(batch), module.embed_pictures(images)
        return module.objective.compute(Pairs(texts, pictures, batch["caption_key"], batch["picture_key"])).loss

    return loss


def our_step(module: ContrastivePretraining, loss: Callable[[], Tensor], dtype: torch.dtype) -> Contestant:
    """The step of a module as `fit` runs it."""
    optimizer = make_optimizer(module.trained_modules(), AdamWConfig(learning_rate=LEARNING_RATE))
    name = f"ours, {manner(module.compile_blocks)}"
    clamp = module.objective.clamp
    return Contestant(name, training_step(loss, module.parameters(), optimizer, module.device, dtype, clamp))


def open_clip_model(shape: ClipShape, vocabulary_size: int) -> torch.nn.Module:
    """open_clip's model of a shape, with new weights."""
    from open_clip import CLIP

    return CLIP(**shape.config(vocabulary_size))


def open_clip_loss(
    model: torch.nn.Module, module: ContrastivePretraining, batch: dict[str, Tensor], compiled: bool
) -> Callable[[], Tensor]:
    """CLIP's loss by open_clip, of the same batch as its loader would hand it over.

    Pictures are normalised and captions padded to the context beforehand, which favours the peer.

    Args:
        model: open_clip's.
        module: Ours, whose normalisation is used.
        batch: Ours.
        compiled: Whether torch.compile is applied to the model.
    """
    from open_clip import ClipLoss

    device, ids = batch["images"].device, batch["input_ids"]
    model.to(device).train()
    images = module.to(device).vision_encoder.normalize(batch["images"].float() / 255)
    texts = torch.nn.functional.pad(ids, (0, CONTEXT - ids.shape[1]))
    forward, criterion = torch.compile(model) if compiled else model, ClipLoss()
    return lambda: criterion(*forward(images, texts))


def clamped(model: Any) -> Callable[[], None]:
    """What open_clip does after each step: the scale stays within 1 and 100."""

    @torch.no_grad()
    def clamp() -> None:
        model.logit_scale.clamp_(0.0, math.log(LARGEST_SCALE))

    return clamp
