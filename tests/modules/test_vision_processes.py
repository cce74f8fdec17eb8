"""Pretraining on pictures in two processes (gloo, DDP): alike in both, and all that is used is trained.

That they are as one process with all the pictures is seen in test_joined_batch.py, of all but Muon.
"""

import pytest
import torch
from child_processes import both_ranks
from small_pictures import make_encoder, make_pictures, write_pictures

from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.modules import VisionPretraining
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.objectives import Colorization, Jigsaw, LeJEPA, MaskedImageModeling, PatchLocation, Rotation
from lit_pretrain.trainer import Trainer

TOKEN = {"class_token": True, "registers": 2, "pooling": "cls"}
MAP = {"pooling": "map"}
# Objectives, what the encoder is beside, and which of its parts no objective uses.
CASES = {
    "a mix": ([Rotation, PatchLocation, Colorization, MaskedImageModeling, lambda: Jigsaw(8)], TOKEN, ()),
    "rotation": ([Rotation], MAP, ()),
    "rotation, muon": ([Rotation], {}, ()),
    # A crop of one patch leaves its pooling nothing to choose among.
    "crops": ([PatchLocation], MAP | {"norm_after_pooling": True}, ("pooler.attention.latent",)),
    "tokens": ([lambda: PatchLocation(mode="tokens")], {}, ("embeddings.position",)),
    "tokens, map": ([lambda: PatchLocation(mode="tokens")], MAP, ("embeddings.position", "pooler.")),
    "tokens, class token": ([lambda: PatchLocation(mode="tokens")], TOKEN, ()),
    "tokens, class token without position": (
        [lambda: PatchLocation(mode="tokens")],
        TOKEN | {"class_position": False},
        ("embeddings.position",),
    ),
    "colorization": ([Colorization], MAP | {"norm_after_pooling": True}, ("pooler.", "pooled_norm.")),
    "masked": ([MaskedImageModeling], MAP, ("pooler.",)),
    "lejepa": ([lambda: LeJEPA(views=2, directions=16, hidden_width=16, projection_width=8)], {}, ()),
}
# torch.optim.Muon turns gradients in bfloat16, so that a last bit of them may change a step by a hundredth.
BY_MUON = ["rotation, muon"]


def train(name, directory, processes):
    """Four steps and a validation of a case; 8 pictures a step, however many processes share them."""
    objectives, encoder, _ = CASES[name]
    torch.manual_seed(0)
    module = VisionPretraining(
        make_encoder(image_size=24, **encoder),
        [make() for make in objectives],
        augmentation=ImageAugmentation(flip=0.0),
        seed=0,
        optimizer=AdamWConfig(algorithm="muon" if name in BY_MUON else "adamw"),
        gradient_checkpointing=processes > 1,
    )
    before = {key: value.clone() for key, value in module.encoder.state_dict().items()}
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="32-true",
        max_steps=4,
        val_check_interval=4,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    data = make_pictures(directory / "pictures.parquet", directory / "caches", batch_size=8 // processes)
    trainer.fit(module, data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("validation/")}
    trainable = all(parameter.requires_grad for parameter in module.encoder.parameters())
    return {"before": before, "after": module.state_dict(), "metrics": metrics, "trainable": trainable}


def train_again(directory):
    """Whether a module whose pooling is idle trains after a validation, and once more; and what DDP was told."""
    module = VisionPretraining(make_encoder(image_size=24, **MAP), [MaskedImageModeling()], seed=0)
    data = make_pictures(directory / "pictures.parquet", directory / "caches", batch_size=4)
    trained, kept = [], []
    for _ in range(2):
        settings = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "precision": "32-true", "max_steps": 1}
        trainer = Trainer(**settings, limit_val_batches=1, logger=False, enable_checkpointing=False)
        trainer.validate(module, data, verbose=False)
        before = module.objectives[0].decoder.prediction.weight.clone()
        trainer.fit(module, data)
        trained.append(not torch.equal(before, module.objectives[0].decoder.prediction.weight))
        kept.append(
            {name: trainer.strategy._ddp_kwargs[name] for name in ("broadcast_buffers", "gradient_as_bucket_view")}
        )
    return {"trained": trained, "kept": kept}


def train_all(directory):
    """What one of two processes does."""
    return {name: train(name, directory, 2) for name in CASES} | {"again": train_again(directory)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The pictures; decoded here once, beside them."""
    directory = tmp_path_factory.mktemp("pictures")
    write_pictures(directory / "pictures.parquet", size=24)
    return directory


@pytest.fixture(scope="module")
def ranks(directory):
    """What each of two processes came to, by case."""
    return both_ranks(train_all, directory)


@pytest.mark.parametrize("name", CASES)
def test_processes_agree_and_train_all_that_is_used(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert first["metrics"] == second["metrics"]
    assert all(torch.equal(value, second["after"][key]) for key, value in first["after"].items())
    idle = CASES[name][2]
    for key, value in first["before"].items():
        same = torch.equal(value, first["after"][f"encoder.{key}"])
        assert same == key.startswith(idle) if idle else not same, key
    # Whoever takes the encoder afterwards can train all of it.
    assert first["trainable"]


def test_a_part_may_be_idle_in_any_fit_and_constant_buffers_stay_where_they_are(ranks):
    for rank in ranks:
        assert rank["again"]["trained"] == [True, True]
        assert rank["again"]["kept"] == 2 * [{"broadcast_buffers": False, "gradient_as_bucket_view": True}]


@pytest.mark.parametrize("name", BY_MUON)
def test_two_processes_are_as_one_but_for_a_tenth_of_the_way(ranks, directory, name):
    alone, shared = train(name, directory, 1), ranks[0][name]
    for key, start in alone["before"].items():
        way = alone["after"][f"encoder.{key}"] - start
        difference = shared["after"][f"encoder.{key}"] - alone["after"][f"encoder.{key}"]
        # Muon orthogonalises in bf16, which makes much of rounding: 0.06 where this process has one thread.
        assert difference.norm() < 0.1 * way.norm(), key
