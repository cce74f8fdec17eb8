"""No step of any module waits for the device, neither in training nor in evaluation: on a GPU that is not there.

Objectives by themselves are tested so beside what else holds for them.
"""

from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch
from fake_device import NoWaiting, to_fake_cuda
from lightning import LightningModule
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import lit_pretrain.objectives
from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.loading import FOLLOWING
from lit_pretrain.modules import ContrastivePretraining, FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.modules.fine_tuning.picture_mixing import MixingConfig
from lit_pretrain.modules.optimization import AdamWConfig, make_optimizer
from lit_pretrain.modules.statistics import MeanStatistics
from lit_pretrain.objectives import (
    BagOfNgrams,
    BagOfWords,
    CausalLanguageModeling,
    Colorization,
    Contrastive,
    ContrastiveSpans,
    FeatureDistillation,
    Jigsaw,
    LeJEPA,
    MaskedImageModeling,
    MaskedLanguageModeling,
    NextSentencePrediction,
    Objective,
    PatchLocation,
    ReplacedTokenDetection,
    Rotation,
    SentenceOrder,
    VisionObjective,
)

PIECES = 50
VARIED = ImageAugmentation("resized", brightness=0.2, contrast=0.2, saturation=0.2)
FACTS = {
    "one of three": LabelFacts("single_label", ["a", "b", "c"], [6, 3, 1], 10),
    "several of three": LabelFacts("multi_label", ["a", "b", "c"], [6, 3, 1], 10),
    "number": LabelFacts("regression", samples=3, mean=2.0, std=2.0),
}


def text_encoder(**settings: object) -> TextEncoder:
    """One block, with n-grams."""
    transformer = TransformerConfig(depth=1, width=16, heads=2, dropout=0.1)
    encoder = TextEncoder(PIECES, transformer=transformer, ngrams=3, ngram_rows=8, **settings)
    encoder.embeddings.ngrams.set_keys(torch.arange(8) + 2**21)
    return encoder


def vision_encoder() -> VisionEncoder:
    """One block, with stochastic depth."""
    transformer = VisionTransformerConfig(depth=1, width=16, heads=2, stochastic_depth=0.1)
    return VisionEncoder(image_size=24, patch_size=4, transformer=transformer)


def text_pretraining(*objectives: object) -> TextPretraining:
    """With the vocabulary that objectives ask for."""
    module = TextPretraining(text_encoder(), list(objectives))
    module.tokenizer = SimpleNamespace(
        vocabulary_size=PIECES, mask_id=4, special_ids=[0, 1, 2, 3, 4], continuation_mask=[False] * 40 + [True] * 10
    )
    return module


def distillation() -> TextPretraining:
    """With a teacher, whose features are there already."""
    objective = FeatureDistillation("teacher", teacher_width=16)
    teacher = SimpleNamespace(width=16, features=lambda batch, vocabulary, device: torch.zeros(4, 16, device=device))
    objective._teacher = teacher
    return text_pretraining(objective)


def fine_tuning(encoder: torch.nn.Module, task: str, **settings: object) -> FineTuning:
    """To a task, as if the data had told it."""
    module = FineTuning(encoder, label_smoothing=0.1, **settings)
    module.facts, module.tokenizer = FACTS[task], SimpleNamespace(vocabulary_size=PIECES)
    return module


def contrastive(**settings: object) -> ContrastivePretraining:
    """Two towers that know their vocabulary."""
    module = ContrastivePretraining(text_encoder(), vision_encoder(), objective=Contrastive(**settings))
    module.built = True
    return module


MODULES = {
    "pairs of texts": lambda: text_pretraining(
        MaskedLanguageModeling(), NextSentencePrediction(), ReplacedTokenDetection(whole_word=True)
    ),
    "pairs in order": lambda: text_pretraining(SentenceOrder(), MaskedLanguageModeling()),
    "segments": lambda: text_pretraining(
        CausalLanguageModeling(), ContrastiveSpans(), BagOfWords(), BagOfNgrams(), MaskedLanguageModeling()
    ),
    "halves of a teacher's": distillation,
    "pictures": lambda: VisionPretraining(
        vision_encoder(),
        [Rotation(), PatchLocation(), Colorization(), MaskedImageModeling(decoder_width=16), Jigsaw(8), LeJEPA(2)],
        VARIED,
    ),
    "pictures, other modes": lambda: VisionPretraining(
        vision_encoder(),
        [Rotation("random"), PatchLocation("tokens", drop_colour="channels"), Colorization(cell_share=0.5)],
        ImageAugmentation(padding=2),
    ),
    **{
        f"fine-tuning on texts, {task}": lambda task=task: fine_tuning(
            text_encoder(), task, token_dropout=0.1, class_weights=None if task == "number" else [1.0, 2.0, 3.0]
        )
        for task in FACTS
    },
    "fine-tuning on mixed pictures": lambda: fine_tuning(
        vision_encoder(), "one of three", augmentation=VARIED, mixing=MixingConfig(mixup=0.8, cutmix=1.0)
    ),
    **{
        f"{loss}, {duplicates}": lambda loss=loss, duplicates=duplicates: contrastive(loss=loss, duplicates=duplicates)
        for loss, duplicates in (("clip", "ignore"), ("clip", "mask"), ("clip", "multi_positive"), ("siglip", "mask"))
    },
}


def test_every_objective_and_encoder_is_among_them() -> None:
    found = {type(part) for make in MODULES.values() for part in make().modules()}
    kinds = {getattr(lit_pretrain.objectives, name) for name in lit_pretrain.objectives.__all__}
    wanted = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Objective)}
    assert found >= wanted - {Objective, VisionObjective} | {Contrastive, TextEncoder, VisionEncoder}


def batch_for(module: LightningModule) -> dict[str, torch.Tensor]:
    """On the device, as the loaders' batches are there when a step begins."""
    ids = torch.ones(4, 12, dtype=torch.long, device="cuda")
    keys = ids[:, 0]
    batch = {"sample_id": keys, "input_ids": ids, "attention_mask": ids.bool(), "token_type_ids": ids}
    batch |= {"next_sentence_label": keys, "caption_key": keys, "picture_key": keys, "picture": keys}
    batch |= {"caption_picture": keys, "caption_id": keys}
    batch["images"] = torch.zeros(4, 3, 28, 28, dtype=torch.uint8, device="cuda")
    if isinstance(module, FineTuning):
        shape, kind = {
            "single_label": ((4,), torch.long),
            "multi_label": ((4, 3), torch.float32),
            "regression": ((4,), torch.float32),
        }[module.facts.task]
        batch["label"] = torch.zeros(shape, dtype=kind, device="cuda")
    return batch


@pytest.mark.parametrize("name", MODULES)
def test_no_step_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = MODULES[name]()
    module.configure_model()
    mode, looked_at, means = FakeTensorMode(allow_non_fake_inputs=True), [], {}

    def statistics_for(stage: str, names: Iterable[str]) -> MeanStatistics:
        if stage not in means:
            with unset_fake_temporarily():
                means[stage] = to_fake_cuda(MeanStatistics(list(names)), mode)
        return means[stage]

    # What such a GPU cannot do: random generators, events, values to look at, and copies of states (torchmetrics).
    monkeypatch.setattr(module, "statistics_for", statistics_for)
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: looked_at.append("recorded")))
    monkeypatch.setattr(module, "generator_for", lambda *parts: None)
    monkeypatch.setattr(module, "stop_if_not_finite", lambda: looked_at.append(module._watched))
    settings = {
        "global_step": 3,
        "global_rank": 0,
        "world_size": 1,
        "accumulate_grad_batches": 2,
        "num_training_batches": 4,
        "strategy": None,
        "optimizers": [make_optimizer(module.trained_modules(), AdamWConfig(), fused=False)],
    }
    module._trainer = SimpleNamespace(**settings)
    monkeypatch.setattr(type(module), "trainer", property(lambda self: self._trainer))
    to_fake_cuda(module, mode)
    module._device = torch.device("cuda", 0)
    with mode, torch.no_grad():
        batch = batch_for(module)
        module.train().training_step(batch, 0)  # what is made once may wait
        with NoWaiting():
            module.training_step({**batch, FOLLOWING: [dict(batch)]}, 2)  # the first of two accumulated batches
            module.eval().validation_step(batch, 0)
    # A step looks at the losses of the one before, which were copied behind the kernels that made them.
    assert looked_at[0] is None and looked_at[1] == "recorded"
    first, watched = looked_at[2], module._watched
    assert first is not watched and first._values.device.type == watched._values.device.type == "cpu"
