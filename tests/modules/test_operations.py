"""Costs of a step, against the passes that are really run and the operations that PyTorch counts."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.modules import ContrastivePretraining, FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.modules.contrastive.towers import TowerConfig
from lit_pretrain.modules.freezing import FreezingConfig
from lit_pretrain.objectives import (
    BagOfNgrams,
    BagOfWords,
    CausalLanguageModeling,
    ContrastiveSpans,
    MaskedImageModeling,
    MaskedLanguageModeling,
    NextSentencePrediction,
    ReplacedTokenDetection,
)
from lit_pretrain.objectives.contrastive import Pairs
from lit_pretrain.objectives.objective import compute_objectives, passes_run

VOCABULARY = SimpleNamespace(
    vocabulary_size=30, mask_id=4, special_ids=[0, 1, 2, 3, 4], continuation_mask=[False] * 30, hash="", to_json=str
)
MIXES = {
    "masked": MaskedLanguageModeling,
    "causal": CausalLanguageModeling,
    "sentences": NextSentencePrediction,
    "replaced": ReplacedTokenDetection,
    "spans": ContrastiveSpans,
    "words": BagOfWords,
    "hidden words": lambda: BagOfWords(token_dropout=0.3),
    "ngrams": BagOfNgrams,
}
# Sentence pairs are no texts to be cut in halves, and an objective stands in a mix once.
APART = [{"sentences", name} for name in ("spans", "words", "hidden words", "ngrams")] + [{"words", "hidden words"}]
ORDERED = [*itertools.permutations(MIXES, 1), *itertools.permutations(MIXES, 2), *itertools.combinations(MIXES, 3)]
POSSIBLE = [names for names in ORDERED if not any(pair <= set(names) for pair in APART)]


def make_encoder(depth: int = 3, width: int = 64) -> TextEncoder:
    """An encoder with few tokens to attend to beside its width, so that what attention does hardly counts."""
    transformer = TransformerConfig(depth=depth, width=width, heads=1)
    encoder = TextEncoder(30, transformer=transformer, max_positions=16, ngrams=2, ngram_rows=4)
    encoder.embeddings.ngrams.set_keys(torch.arange(4))
    return encoder


def make_vision() -> VisionEncoder:
    """As `make_encoder`, of pictures."""
    transformer = VisionTransformerConfig(depth=3, width=64, heads=1)
    return VisionEncoder(12, 4, transformer=transformer, class_token=False, pooling="mean")


def make_batch(samples: int = 4, length: int = 10) -> dict[str, torch.Tensor]:
    """Texts without padding."""
    ids = torch.randint(5, 30, (samples, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = 2, 3
    labels = torch.arange(samples) % 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "next_sentence_label": labels, "label": labels}


def test_passes_are_counted_as_they_are_run():
    encoder, batch, runs = make_encoder(depth=0, width=8), make_batch(), []
    forward = encoder.forward_features
    encoder.forward_features = lambda *args, **kwargs: runs.append(1) or forward(*args, **kwargs)
    for names in POSSIBLE:
        objectives = [MIXES[name]() for name in names]
        for objective in objectives:
            objective.build(encoder, VOCABULARY)
        runs.clear()
        compute_objectives(encoder, objectives, batch, torch.Generator().manual_seed(0))
        assert len(runs) == len(passes_run(objectives)), names
    assert len(passes_run([CausalLanguageModeling(), NextSentencePrediction()])) == 2


def text_step(objectives, freeze=None):
    """Pretraining on texts."""
    module = TextPretraining(make_encoder(), objectives, seed=0)
    module.tokenizer = VOCABULARY
    module.configure_model()
    if freeze:
        freeze(module.encoder)
    generator = torch.Generator()
    return (
        module,
        make_batch(),
        lambda batch: module.sum_losses(compute_objectives(module.encoder, module.objectives, batch, generator)),
    )


def picture_step():
    """Pretraining on pictures."""
    module = VisionPretraining(make_vision(), [MaskedImageModeling(0.5, 1, 64)], seed=0)
    module.configure_model()
    generator = torch.Generator()
    return (
        module,
        {"images": torch.rand(4, 3, 12, 12)},
        lambda batch: module.sum_losses(compute_objectives(module.encoder, module.objectives, batch, generator)),
    )


def tuning_step(blocks):
    """Fine-tuning on texts with some blocks frozen."""
    module = FineTuning(make_encoder(), freeze=FreezingConfig(blocks), seed=0)
    module.head, module.tokenizer = torch.nn.Linear(64, 2), VOCABULARY
    module.freeze_parts()
    batch = make_batch()
    return module, batch, lambda batch: module.logits(batch).square().sum()


def pair_step(locked, unlock_after=None):
    """Contrastive pretraining with one tower locked for good or for a while."""
    module = ContrastivePretraining(
        make_encoder(),
        make_vision(),
        embedding_width=8,
        vision=TowerConfig(locked=locked, unlock_after=unlock_after),
        augmentation=ImageAugmentation(crop="center"),
    )
    batch = make_batch() | {"images": torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)}

    def loss(batch):
        keys = torch.arange(4)
        texts, pictures = module.embed_texts(batch), module.embed_pictures(batch["images"])
        return module.objective.compute(Pairs(texts, pictures, keys, keys)).loss

    return module, batch, loss


def freeze_middle(encoder):
    """Gradients pass through what is frozen above what is trained."""
    encoder.transformer.blocks[1:].requires_grad_(False)


STEPS = {
    "causal and sentences": lambda: text_step([CausalLanguageModeling(), NextSentencePrediction()]),
    "halves": lambda: text_step([ContrastiveSpans(), BagOfWords()]),
    "frozen above": lambda: text_step([MaskedLanguageModeling()], freeze_middle),
    "masked pictures": picture_step,
    "all trained": lambda: tuning_step(0),
    "first block frozen": lambda: tuning_step(1),
    "linear probe": lambda: tuning_step("all"),
    "both towers": lambda: pair_step(False),
    "locked tower": lambda: pair_step(True),
    "tower that waits": lambda: pair_step(True, 5),
}


@pytest.mark.parametrize("name", STEPS)
def test_operations_are_those_that_pytorch_counts(name):
    torch.manual_seed(0)
    module, batch, loss = STEPS[name]()
    with FlopCounterMode(display=False) as counter:
        loss(batch).backward()
    # PyTorch counts nothing of attention on a CPU (2.6 % here), and makes no gradients of the lowest trained inputs.
    assert module.step_cost(batch)["flops"] == pytest.approx(counter.get_total_flops(), rel=0.07)
