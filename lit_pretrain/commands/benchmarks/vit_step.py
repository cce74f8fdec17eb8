"""Contestants of a ViT's rotation step: ours and timm's `VisionTransformer` with the objective written plainly."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.backbone import VisionEncoder, VisionTransformerConfig
from lit_pretrain.commands.benchmarks.setting import shape_of
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.modules import VisionPretraining
from lit_pretrain.objectives import Rotation, VisionObjective

# How those who train on small pictures crop them.
AUGMENTATION = ImageAugmentation(padding=4)


@dataclass(frozen=True)
class Shape:
    """What a measured ViT looks like.

    Attributes:
        name: For the table.
        image_size: Pixels of a picture's side.
        patch_size: Pixels of a patch's side.
        width: Features of a token.
        depth: Number of blocks.
        class_token: Whether there is one, and the classifier reads it; else the patches' mean.
    """

    name: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    class_token: bool = False

    @classmethod
    def of(cls, text: str) -> "Shape":
        """A shape by its name, or by its figures; a `UserError` if it is neither."""
        return shape_of(text, cls, SHAPES, "IMAGE/PATCH/WIDTH/DEPTH", "224/16/192/12")

    def encoder(self) -> VisionEncoder:
        """Ours of this shape."""
        return VisionEncoder(
            self.image_size,
            self.patch_size,
            transformer=VisionTransformerConfig(depth=self.depth, width=self.width),
            class_token=self.class_token,
            pooling="cls" if self.class_token else "mean",
        )


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("cifar", 32, 4, 192, 6),
        Shape("quickstart", 64, 8, 128, 4),
        Shape("vit-tiny", 96, 16, 192, 12, class_token=True),
    )
}


def random_pictures(shape: Shape, batch_size: int, device: torch.device) -> dict[str, Tensor]:
    """Pictures as objectives take them, in [0, 1]; coloured noise."""
    size = (batch_size, 3, shape.image_size, shape.image_size)
    return {"images": torch.rand(size, generator=torch.Generator().manual_seed(0)).to(device)}


def our_module(shape: Shape, compiled: bool, objective: VisionObjective | None = None) -> VisionPretraining:
    """One objective on an encoder of a shape: Rotation by all four angles, if none is given."""
    return VisionPretraining(
        shape.encoder(), [objective or Rotation(views="all")], AUGMENTATION, compile_blocks=compiled
    )


def timm_loss(
    module: VisionPretraining, batch: dict[str, Tensor], compiled: bool
) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """The model of timm of the same shape and weights, and the loss of turning the pictures by all four angles.

    Args:
        module: Ours, with Rotation, built.
        batch: Pictures in [0, 1], on the device that the model is to run on.
        compiled: Whether torch.compile is applied to the model.
    """
    import timm
    from torch.nn.functional import cross_entropy
    from torchvision.transforms.v2.functional import normalize

    images, encoder, classifier = batch["images"], module.encoder, module.objectives[0].classifier
    with tempfile.TemporaryDirectory() as directory:
        encoder.save_pretrained(directory)
        model: Any = timm.create_model(f"local-dir:{directory}", pretrained=True)
    model.reset_classifier(classifier.out_features)
    model.head.load_state_dict(classifier.state_dict())
    model.to(images.device).train()
    mean, std = list(encoder.channel_means), list(encoder.channel_stds)
    labels = torch.arange(4, device=images.device).repeat_interleave(len(images))
    forward = torch.compile(model) if compiled else model

    def loss() -> Tensor:
        turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
        return cross_entropy(forward(normalize(turned, mean, std)), labels)

    return model, loss
