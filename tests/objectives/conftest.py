"""A small encoder, vocabulary and batch shared by the objectives' tests."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_pretrain.backbone import TextEncoder, TransformerConfig

VOCABULARY_SIZE = 50


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that is made, views left out."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        """As it is, and noted."""
        made = function(*arguments, **(settings or {}))
        read = {one.untyped_storage().data_ptr() for one in tree_leaves(arguments) if isinstance(one, torch.Tensor)}
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in read:
            self.elements = max(self.elements, made.numel())
        return made


@pytest.fixture
def vocabulary() -> SimpleNamespace:
    """[PAD] [UNK] [CLS] [SEP] [MASK] first; ids from 40 on continue a word."""
    return SimpleNamespace(
        vocabulary_size=VOCABULARY_SIZE,
        mask_id=4,
        special_ids=[0, 1, 2, 3, 4],
        continuation_mask=[one >= 40 for one in range(VOCABULARY_SIZE)],
        decode=lambda ids, keep_special=False: " ".join(map(str, ids)),
        id_to_token=str,
    )


@pytest.fixture
def encoder() -> TextEncoder:
    """Two blocks, 16 wide, with weights far from their start."""
    torch.manual_seed(0)
    encoder = TextEncoder(VOCABULARY_SIZE, transformer=TransformerConfig(depth=2, width=16, heads=2))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Sixteen sentence pairs of 6 to 24 tokens: [CLS] A [SEP] B [SEP] and padding."""
    generator = torch.Generator().manual_seed(3)
    rows, length = 16, 24
    input_ids = torch.randint(5, VOCABULARY_SIZE, (rows, length), generator=generator)
    lengths = torch.randint(6, length + 1, (rows,), generator=generator)
    lengths[0] = length
    places = torch.arange(length)
    attention_mask = places < lengths[:, None]
    input_ids[:, 0] = 2
    input_ids[:, 3] = 3
    input_ids.scatter_(1, lengths[:, None] - 1, 3)
    input_ids[~attention_mask] = 0
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": ((places > 3) & attention_mask).long(),
        "next_sentence_label": torch.arange(rows) % 2,
        "sample_id": torch.arange(rows),
    }


@pytest.fixture
def texts(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch as one text a sequence."""
    ids = torch.where(batch["input_ids"] == 3, 7, batch["input_ids"])
    lengths = batch["attention_mask"].sum(dim=1, keepdim=True)
    return {"input_ids": ids.scatter(1, lengths - 1, 3), "attention_mask": batch["attention_mask"].long()}


@pytest.fixture
def generator() -> torch.Generator:
    """A fixed source of draws."""
    return torch.Generator().manual_seed(11)


@pytest.fixture
def largest_tensor() -> LargestTensor:
    """To enter."""
    return LargestTensor()
