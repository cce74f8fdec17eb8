"""What differs between fine-tuning on text and on pictures: how a batch becomes the encoder's input, and what it costs.

Everything else of `FineTuning` is the same for both.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.errors import UserError
from lit_pretrain.modules.operations import encoder_operations, picture_operations
from lit_pretrain.objectives.gathering import processes
from lit_pretrain.objectives.masking import visible_tokens
from lit_pretrain.objectives.objective import Batch, clean_inputs

# Tokens that are read at a time without gradients: a batch of long texts would take more memory than most steps.
TOKENS_AT_ONCE = 2**16


def part_of(value: Any, rows: slice) -> Any:
    """Some rows of an encoder's input that has rows."""
    return value[rows] if isinstance(value, Tensor) else value


class Texts:
    """Single texts and pairs of texts.

    Args:
        token_dropout: Share of the tokens that are hidden in training.
    """

    name = "text"

    def __init__(self, token_dropout: float = 0.0) -> None:
        self.token_dropout = token_dropout
        self.maximum_length = 512
        self.truncation: Literal["head", "head_tail"] = "head"

    def check(self, data: Any) -> None:
        """Refuse data without texts.

        Raises:
            UserError: In one sentence.
        """
        if "input_ids" not in data.batch_fields:
            raise UserError(
                "The encoder is one of texts, and the data holds pictures: set data.text_column of a "
                "LabelledDataModule, or start from an encoder of pictures."
            )

    def fit_to(self, data: Any, encoder: TextEncoder, training: bool) -> None:
        """Keep how the data cuts its texts; refuse lengths that the encoder has no positions for."""
        encoder.check_length(data.text.maximum_length)
        self.maximum_length, self.truncation = data.text.maximum_length, data.text.truncation

    def varied(self, encoder: TextEncoder, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """A training batch's inputs: texts as they are, without the tokens that are hidden."""
        inputs = clean_inputs(batch)
        if self.token_dropout:
            seen = visible_tokens(inputs["attention_mask"], self.token_dropout, generator)
            inputs |= {"positions": seen.indices, "attention_mask": seen.valid.to(inputs["attention_mask"].dtype)}
        return inputs

    def encode(self, encoder: TextEncoder, inputs: dict[str, Tensor]) -> Tensor:
        """Pooled features (B, D)."""
        return encoder(**inputs)

    def features(self, encoder: TextEncoder, batch: Batch) -> Tensor:
        """Pooled features (B, D) of a batch as it is; without gradients, of so many tokens at a time."""
        inputs = clean_inputs(batch)
        samples, length = inputs["input_ids"].shape
        rows = max(1, TOKENS_AT_ONCE // length)
        # Processes whose parameters are shared have to make as many passes each, and their texts differ in length.
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or samples <= rows or processes() > 1:
            return encoder(**inputs)
        starts = range(0, samples, rows)
        parts = [
            {name: part_of(value, slice(start, start + rows)) for name, value in inputs.items()} for start in starts
        ]
        return torch.cat([encoder(**part) for part in parts])

    def statistics(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """(sum, count) of the share of the tokens that are padding."""
        mask = batch["attention_mask"]
        total = torch.full((), mask.numel(), device=mask.device)
        return {"padding_share": (total - mask.sum(), total)}

    def as_samples(self, texts: Any) -> list[Any]:
        """Samples as a list: one text, or a tuple of two, which is a pair of texts, is a single one."""
        return [texts] if isinstance(texts, str | tuple) else list(texts)

    def batch_of(self, samples: list[Any], encoder: TextEncoder, tokenizer: Any) -> dict[str, Tensor]:
        """Texts, or pairs of texts, as a batch."""
        from lit_pretrain.data.text.text_encoding import TextSettings, batch_of

        pairs = [tuple(sample) if isinstance(sample, list | tuple) else (sample,) for sample in samples]
        if len({len(pair) for pair in pairs}) != 1 or not all(isinstance(text, str) for pair in pairs for text in pair):
            raise UserError("Samples to be answered are texts, or all of them pairs of texts.")
        columns = ("text", "text_pair")[: len(pairs[0])]
        texts = dict(zip(columns, map(list, zip(*pairs, strict=True)), strict=True))
        truncation: Literal["head", "head_tail"] = self.truncation if len(columns) == 1 else "head"
        return batch_of(texts, tokenizer, TextSettings(columns, self.maximum_length, truncation))

    def step_cost(self, encoder: TextEncoder, batch: Batch) -> dict[str, float]:
        """Samples, tokens (padding included) and floating-point operations of a training batch."""
        samples, length = batch["input_ids"].shape
        flops = samples * encoder_operations(encoder, length)
        return {"samples": samples, "tokens": samples * length, "flops": flops}

    def describe(self, encoder: TextEncoder) -> dict[str, Any]:
        """Facts for the record of a run."""
        return {"positions": encoder.positions, "vocabulary_size": encoder.vocabulary_size}

    def settings(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"maximum_length": self.maximum_length, "truncation": self.truncation}

    def take(self, settings: dict[str, Any]) -> None:
        """Of a checkpoint."""
        self.maximum_length, self.truncation = settings["maximum_length"], settings["truncation"]


class Pictures:
    """Pictures, varied on the device in training.

    Args:
        augmentation: What is varied.
    """

    name = "pictures"

    def __init__(self, augmentation: ImageAugmentation) -> None:
        self.augmentation = augmentation

    def fit_to(self, data: Any, encoder: VisionEncoder, training: bool) -> None:
        """Refuse pictures that are smaller than the crop; how they are framed is what the encoder is trained with."""
        self.augmentation.check(data.facts.stored_size, encoder.image_size)
        encoder.frame_as_stored(data.facts.stored_size, training)

    def check(self, data: Any) -> None:
        """Refuse data without pictures.

        Raises:
            UserError: In one sentence.
        """
        if "images" not in data.batch_fields:
            raise UserError(
                "The encoder is one of pictures, and the data holds texts: set data.image_column, or start from an "
                "encoder of texts."
            )

    def varied(self, encoder: VisionEncoder, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """A training batch's inputs: `images` (B, C, S, S) in [0, 1], cropped, flipped, ..."""
        return {"images": self.augmentation.vary(batch["images"], encoder.image_size, generator)}

    def encode(self, encoder: VisionEncoder, inputs: dict[str, Tensor]) -> Tensor:
        """Pooled features (B, D)."""
        return encoder(encoder.normalize(inputs["images"]))

    def features(self, encoder: VisionEncoder, batch: Batch) -> Tensor:
        """Pooled features (B, D) of the pictures' middles."""
        return encoder(encoder.normalize(encoder.frame(batch["images"])))

    def statistics(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Nothing more is counted."""
        return {}

    def as_samples(self, pictures: Any) -> list[Any]:
        """Samples as a list: one picture, or one file's name, is a single one."""
        return list(pictures) if isinstance(pictures, list | tuple) else [pictures]

    def batch_of(self, samples: list[Any], encoder: VisionEncoder, tokenizer: Any) -> dict[str, Tensor]:
        """Pictures of Pillow's, or files, as a batch of squares that `encoder.frame` takes the middle of."""
        import numpy
        import PIL.Image
        import PIL.ImageOps

        from lit_pretrain.data.images.pictures import EncodedPicture, Square, UnreadablePictureError, decode, to_rgb

        side, squares = encoder.framed_size, []
        for row, sample in enumerate(samples):
            if isinstance(sample, PIL.Image.Image):
                fitted = PIL.ImageOps.fit(to_rgb(sample), (side, side), PIL.Image.Resampling.BICUBIC)
                squares.append(numpy.asarray(fitted).transpose(2, 0, 1))
                continue
            if not isinstance(sample, str | Path):
                raise UserError("Samples to be answered are pictures of Pillow's, or names of their files.")
            try:
                squares.append(decode(EncodedPicture(row, str(sample), str(sample)), Square(side)))
            except UnreadablePictureError as error:
                raise UserError(f"{error}: give pictures that can be read.") from error
        return {"images": torch.from_numpy(numpy.stack(squares))}

    def step_cost(self, encoder: VisionEncoder, batch: Batch) -> dict[str, float]:
        """Pictures and floating-point operations of a training batch."""
        samples = len(batch["images"])
        return {"samples": samples, "flops": samples * picture_operations(encoder)}

    def describe(self, encoder: VisionEncoder) -> dict[str, Any]:
        """Facts for the record of a run."""
        return {"image_size": encoder.image_size, "patch_size": encoder.patch_size}

    def settings(self) -> dict[str, Any]:
        """What a checkpoint keeps: nothing."""
        return {}

    def take(self, settings: dict[str, Any]) -> None:
        """Of a checkpoint."""


Modality = Texts | Pictures


def make_modality(encoder: nn.Module, augmentation: ImageAugmentation, token_dropout: float = 0.0) -> Modality:
    """Of an encoder.

    Raises:
        UserError: If tokens are to be hidden of pictures, or of texts whose encoder reads no mask, or all of them.
    """
    if not 0.0 <= token_dropout < 1.0:
        raise UserError(f"model.token_dropout is {token_dropout}: give a share from 0 to below 1.")
    if isinstance(encoder, TextEncoder):
        if token_dropout and encoder.causal:
            raise UserError("model.token_dropout hides tokens by a mask, which causal encoders ignore: leave it out.")
        return Texts(token_dropout)
    if token_dropout:
        raise UserError("model.token_dropout hides tokens of texts: leave it out for pictures.")
    return Pictures(augmentation)
