"""Contrastive pretraining in two processes (gloo, DDP), in chunks, in both: the whole batch's loss and gradients."""

import pytest
import torch
from child_processes import both_ranks
from lightning.pytorch import Callback
from small_pairs import make_encoders, make_pairs, make_rows, write_pairs

from lit_pretrain.modules import ContrastivePretraining
from lit_pretrain.objectives import Contrastive
from lit_pretrain.trainer import Trainer

# Losses, what becomes of duplicates (captions of one word, so that there are many), and what the towers share.
CASES = {
    "clip": ({"loss": "clip", "duplicates": "ignore"}, "none"),
    "clip, multi_positive, shared": ({"loss": "clip", "duplicates": "multi_positive"}, "blocks"),
    "siglip, masked, shared": ({"loss": "siglip", "duplicates": "mask"}, "blocks_except_norm"),
}
ARRANGEMENTS = [(1, 5), (2, None), (2, 3)]
BATCH = 16


class Watch(Callback):
    """Keeps the gradients of a step as the optimiser gets them, before they are clipped."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {name: one.grad.clone() for name, one in pl_module.named_parameters()}


def train(name, directory, processes, chunk_size):
    """The gradients of one step of 16 pairs, however they are shared out, and a validation after it."""
    loss, sharing = CASES[name]
    torch.manual_seed(0)
    module = ContrastivePretraining(
        **make_encoders(),
        share_weights=sharing,
        embedding_width=16,
        objective=Contrastive(**loss),
        chunk_size=chunk_size,
        gradient_checkpointing=processes > 1,
        seed=0,
    )
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="32-true",
        max_steps=1,
        log_every_n_steps=1,
        limit_val_batches=1.0,
        val_check_interval=1,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    data = make_pairs(directory / "pairs.parquet", directory / "caches", batch_size=BATCH // processes)
    trainer.fit(module, data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {"gradients": watch.gradients, "metrics": metrics}


def train_all(directory):
    """What one of two processes does."""
    two = [chunk_size for processes, chunk_size in ARRANGEMENTS if processes == 2]
    return {(name, chunk_size): train(name, directory, 2, chunk_size) for name in CASES for chunk_size in two}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Pairs whose captions are a title each or a word that many share."""
    directory = tmp_path_factory.mktemp("pairs")
    write_pairs(directory / "pairs.parquet", make_rows(40))
    return directory


@pytest.fixture(scope="module")
def whole(directory):
    """One process with the whole batch."""
    return {name: train(name, directory, 1, None) for name in CASES}


@pytest.fixture(scope="module")
def ranks(directory, whole):
    """What each of two processes came to; pictures were decoded before."""
    return both_ranks(train_all, directory)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS, ids=lambda one: f"{one[0]} processes, chunks of {one[1]}")
@pytest.mark.parametrize("name", CASES)
def test_any_arrangement_has_the_whole_batchs_loss_and_gradients(request, directory, whole, name, arrangement):
    processes, chunk_size = arrangement
    if processes == 1:
        found = [train(name, directory, 1, chunk_size)]
    else:
        found = [rank[(name, chunk_size)] for rank in request.getfixturevalue("ranks")]
    expected = whole[name]
    assert expected["metrics"]["train/duplicate_captions"] > 0.1
    for one in found:
        assert one["gradients"].keys() == expected["gradients"].keys()
        for parameter, gradient in expected["gradients"].items():
            assert gradient.abs().max() > 0, parameter
            torch.testing.assert_close(one["gradients"][parameter], gradient, rtol=1e-5, atol=1e-5, msg=parameter)
        # Retrieval over all pictures and the loss in groups of the whole batch, whoever has embedded them.
        assert one["metrics"] == pytest.approx(expected["metrics"], rel=1e-4, abs=1e-5)
