"""Contrastive pretraining with what is replayed: losses by hand, in two processes, going on, and what cannot be."""

import pytest
import torch
from child_processes import both_ranks
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from small_joint import (
    SENTENCE_WEIGHT,
    TEXT_WEIGHT,
    VISION_WEIGHT,
    make_joint,
    make_replaying,
    make_texts,
    write_joint,
)
from small_pairs import make_encoders, make_pairs, write_tokenizer
from torch.nn.functional import pad

from lit_pretrain.data import JointDataModule
from lit_pretrain.data.randomness import derive_seed
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, TextReplay
from lit_pretrain.modules.contrastive.towers import TowerConfig
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.objectives import MaskedLanguageModeling
from lit_pretrain.objectives.contrastive import Pairs
from lit_pretrain.objectives.objective import compute_objectives
from lit_pretrain.trainer import Trainer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_joint(tmp_path_factory.mktemp("joint"))


class Watch(Callback):
    """Keeps the gradients of a step as the optimiser gets them, before they are clipped."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {name: one.grad.clone() for name, one in pl_module.named_parameters()}


def fit(module, data, checkpoint=None, callbacks=(), **settings):
    watch = Watch()
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "precision": "32-true",
        "max_steps": 1,
        "log_every_n_steps": 1,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    trainer = Trainer(**defaults | settings, callbacks=[watch, *callbacks])
    trainer.fit(module, data, ckpt_path=checkpoint)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return metrics, watch.gradients


def drawn(*parts):
    return torch.Generator().manual_seed(derive_seed(*parts))


def by_hand(module, data, ranks):
    """The three losses of the first step, over the batches of so many processes."""
    batches = {name: [part.batch_at(0, 0, rank, ranks) for rank in range(ranks)] for name, part in data.parts.items()}
    pairs = {name: torch.cat([one[name] for one in batches["pairs"]]) for name in ("caption_key", "picture_key")}
    longest = max(one["input_ids"].shape[1] for one in batches["pairs"])
    captions = {
        name: torch.cat([pad(one[name], (0, longest - one[name].shape[1])) for one in batches["pairs"]])
        for name in ("input_ids", "attention_mask")
    }
    texts = module.embed_texts(captions)
    pictures = module.embed_pictures(torch.cat([one["images"] for one in batches["pairs"]]) / 255)
    contrastive = module.objective.compute(Pairs(texts, pictures, pairs["caption_key"], pairs["picture_key"])).loss

    # Means over all hidden positions, sentences and patches of all processes.
    terms = {}
    for name, encoder in (("text", module.text_encoder), ("vision", module.vision_encoder)):
        for rank, batch in enumerate(batches[name]):
            if name == "vision":
                batch = batch | {"images": batch["images"] / 255}
            generator = drawn("replay", name, 0, 0, 0, rank, "corruption")
            for key, output in compute_objectives(encoder, module.replays[name].objectives, batch, generator).items():
                count = output.statistics["loss"][1]
                terms.setdefault(key, []).append((output.loss * count, count))
    means = {key: sum(total for total, _ in pairs) / sum(count for _, count in pairs) for key, pairs in terms.items()}
    sentences = SENTENCE_WEIGHT * means["next_sentence_prediction"]
    text = means["masked_language_modeling"] + sentences
    return contrastive, text, means["masked_image_modeling"]


def expected_of(directory, ranks, **settings):
    """Losses and gradients by hand."""
    module, data = make_replaying(directory, **settings), make_joint(directory, ranks)
    data.setup("fit")
    contrastive, text, vision = by_hand(module, data, ranks)
    total = contrastive + TEXT_WEIGHT * text + VISION_WEIGHT * vision
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(total, parameters), strict=True))
    losses = {"loss": contrastive, "text/loss": text, "vision/loss": vision, "total_loss": total}
    return {f"train/{name}": value.item() for name, value in losses.items()}, gradients


def compare(found, expected):
    (metrics, gradients), (losses, by_hand_) = found, expected
    for name, value in losses.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    assert gradients.keys() == by_hand_.keys()
    for name, gradient in by_hand_.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_losses_and_gradients_by_hand(directory):
    expected = expected_of(directory, 1)
    compare(fit(make_replaying(directory), make_joint(directory)), expected)


SHARED = {"share_weights": "blocks_except_norm", "chunk_size": 3}


def train_rank(directory):
    """What one of two processes does: a step, and a validation after it."""
    settings = {"devices": 2, "strategy": "ddp", "limit_val_batches": 1.0, "val_check_interval": 1}
    return fit(make_replaying(directory, **SHARED), make_joint(directory, 2), **settings)


def test_two_processes_with_one_transformer_in_chunks(directory):
    expected = expected_of(directory, 2, **SHARED)
    found = both_ranks(train_rank, directory)
    for one in found:
        compare(one, expected)
    # Every validation sample once, whoever saw it, and what is derived of the means.
    metrics = found[0][0]
    assert metrics == found[1][0]
    perplexity = metrics["validation/text/masked_language_modeling/perplexity"]
    loss = metrics["validation/text/masked_language_modeling/loss"]
    assert perplexity == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
    total = loss + SENTENCE_WEIGHT * metrics["validation/text/next_sentence_prediction/loss"]
    assert metrics["validation/text/loss"] == pytest.approx(total, rel=0.1)
    assert metrics["validation/vision/masked_image_modeling/loss"] > 0
    assert 0 < metrics["validation/loss_over_chance"] < 2


def test_resumed_in_mid_epoch_is_the_same_to_the_bit(directory, tmp_path):
    # Epochs of 4 batches of pairs, 6 of pictures and other texts: step 6 is within all of them.
    settings = {"max_steps": 9, "log_every_n_steps": 3}
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    straight = make_replaying(directory)
    fit(straight, make_joint(directory), callbacks=[save], enable_checkpointing=True, **settings)
    checkpoint = tmp_path / "step=6.ckpt"
    resumed = make_replaying(directory)
    fit(resumed, make_joint(directory), checkpoint, **settings)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name

    # And without any data or config: with the heads, or one tower alone.
    loaded = ContrastivePretraining.from_checkpoint(checkpoint)
    assert loaded.state_dict().keys() == straight.state_dict().keys()
    assert loaded.describe()["text_replay"] == "0.5 x (masked_language_modeling + 3 x next_sentence_prediction)"
    tower = load_starting_point(f"{checkpoint}:text").encoder.state_dict()
    assert all(torch.equal(value, loaded.text_encoder.state_dict()[name]) for name, value in tower.items())
    with pytest.raises(UserError, match=r"does not fit .*vision_replay \(MaskedImageModeling there, None here\)"):
        fit(make_replaying(directory, parts=("text",)), make_joint(directory, parts=("text",)), checkpoint)


def test_either_alone_and_its_costs(directory):
    costs = {}
    for parts in ((), ("text",), ("vision",), ("text", "vision")):
        module = make_replaying(directory, parts)
        data = make_joint(directory, parts=parts) if parts else make_joint(directory).parts["pairs"]
        metrics, _ = fit(module, data)
        assert {name for name in ("text", "vision") if f"train/{name}/loss" in metrics} == set(parts)
        assert ("train/total_loss" in metrics) == bool(parts)
        batches = {name: part.batch_at(0, 0) for name, part in getattr(data, "parts", {}).items()}
        costs[parts] = module.step_cost(batches or data.batch_at(0, 0))
    pairs, text, vision, both = costs.values()
    assert {cost["samples"] for cost in costs.values()} == {8}
    assert text["tokens"] == pairs["tokens"] + 4 * 16 == both["tokens"] and vision["tokens"] == pairs["tokens"]
    assert both["flops"] == pytest.approx(text["flops"] + vision["flops"] - pairs["flops"])
    assert pairs["flops"] < vision["flops"] and pairs["flops"] < text["flops"]


def test_what_cannot_be_replayed(directory, tmp_path):
    def pairs():
        return make_pairs(directory / "pairs.parquet", directory / "caches")

    def unbuilt(**settings):
        return ContrastivePretraining(**make_encoders(), embedding_width=16, **settings)

    def replay():
        return TextReplay([MaskedLanguageModeling()])

    with pytest.raises(UserError, match="model.text_replay learns from texts, and the data has none: take Joint"):
        fit(unbuilt(text_replay=replay()), pairs())
    with pytest.raises(UserError, match="data.text gives texts that nothing learns from: set model.text_replay"):
        fit(unbuilt(), make_joint(directory, parts=("text",)))
    with pytest.raises(UserError, match="position"):
        long = JointDataModule(pairs(), make_texts(directory, sequence_length=32))
        fit(unbuilt(text_replay=replay()), long)
    module = unbuilt(text_replay=replay())
    module.tokenizer = make_replaying(directory).tokenizer
    other = make_texts(directory, tokenizer=write_tokenizer(tmp_path / "other"))
    with pytest.raises(UserError, match="data.text.tokenizer is tokenizer .* and the tower of texts was trained with"):
        fit(module, JointDataModule(pairs(), other))
    with pytest.raises(UserError, match="model.text.locked keeps the tower as it is, and model.text_replay"):
        unbuilt(text_replay=replay(), text=TowerConfig(locked=True))
    with pytest.raises(UserError, match="model.text_replay.weight is 0"):
        TextReplay([MaskedLanguageModeling()], weight=0)
    with pytest.raises(UserError, match="model.text_replay.objectives is empty"):
        TextReplay([])
