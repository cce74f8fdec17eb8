"""FSDP in two processes (gloo): every block a unit, and what is trained is what one process trains."""

import pytest
import torch
from child_processes import both_ranks
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from small_pairs import make_encoders, make_pairs, make_rows, write_pairs
from text_corpus import make_data as make_texts
from text_corpus import write_corpus
from torch.distributed.fsdp import FullyShardedDataParallel

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.transformer import Block
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, TextPretraining
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.objectives import Contrastive, MaskedLanguageModeling, NextSentencePrediction
from lit_pretrain.trainer import Trainer

# What the towers share (or a text alone), and how many blocks are units of their own then.
CASES = {"none": 4, "blocks": 0, "blocks_except_norm": 0, "text": 2}
BATCH = 16


class OnProcessors(FSDPStrategy):
    """Lightning allows its own class on GPUs alone, and PyTorch must be told that this is not one."""

    def _setup_model(self, model):
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


class Examples(Callback):
    """Runs the encoder where no step does, as what shows examples does."""

    def on_validation_end(self, trainer, pl_module):
        assert all(pl_module.examples(2).values())


def make(name, directory, processes):
    """A module with a decay that shows, and its data: 16 samples a step, an odd number of batches to validate with."""
    torch.manual_seed(0)
    settings = {"optimizer": AdamWConfig(learning_rate=3e-3, weight_decay=10.0), "seed": 0}
    settings["gradient_checkpointing"] = processes > 1
    if name == "text":
        encoder = TextEncoder(transformer=TransformerConfig(depth=2, width=32, heads=2), max_positions=32)
        objectives = [MaskedLanguageModeling(), NextSentencePrediction()]
        data = make_texts(directory / "texts.json", directory, sequence_length=16, batch_size=BATCH // processes)
        return TextPretraining(encoder, objectives, **settings), data
    module = ContrastivePretraining(
        **make_encoders(),
        share_weights=name,
        embedding_width=16,
        objective=Contrastive("siglip"),
        chunk_size=3,
        **settings,
    )
    return module, make_pairs(directory / "pairs.parquet", directory / "caches", batch_size=BATCH // processes)


def train(name, directory, strategy):
    """Two steps, in chunks, and a validation."""
    processes = 1 if strategy == "auto" else 2
    module, data = make(name, directory, processes)
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=OnProcessors(process_group_backend="gloo") if strategy == "fsdp" else strategy,
        precision="32-true",
        max_steps=2,
        val_check_interval=2,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[Examples()] if name == "text" else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
    units = [one for one in module.modules() if isinstance(one, FullyShardedDataParallel)]
    trainer.save_checkpoint(directory / f"{name}-{strategy}.ckpt")
    return {
        "blocks": sum(isinstance(one.module, Block) for one in units),
        "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        "parameters": module.describe()["parameters"],
    }


def train_all(directory):
    """What one of two processes does."""
    return {name: train(name, directory, "fsdp") for name in CASES} | {"text, ddp": train("text", directory, "ddp")}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sharded")
    write_pairs(directory / "pairs.parquet", make_rows(40))
    write_corpus(directory / "texts.json", documents=24)
    return directory


@pytest.fixture(scope="module")
def whole(directory):
    """One process with the whole batch."""
    return {name: train(name, directory, "auto") for name in CASES if name != "text"}


@pytest.fixture(scope="module")
def ranks(directory, whole):
    return both_ranks(train_all, directory)


@pytest.mark.parametrize("name", CASES)
def test_two_shards_train_what_one_process_trains(ranks, whole, directory, name):
    # What is masked depends on the processes, so that texts are compared with as many by DDP.
    like, alike = ("ddp", ranks[0]["text, ddp"]) if name == "text" else ("auto", whole[name])
    expected = torch.load(directory / f"{name}-{like}.ckpt", weights_only=True)["state_dict"]
    found = torch.load(directory / f"{name}-fsdp.ckpt", weights_only=True)["state_dict"]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)
    for rank in ranks:
        assert rank[name]["blocks"] == CASES[name]
        assert rank[name]["parameters"] == alike["parameters"]
        assert rank[name]["metrics"] == pytest.approx(alike["metrics"], rel=1e-3, abs=1e-4)


def test_what_would_train_a_model_in_every_process_is_refused():
    with pytest.raises(UserError, match="ModelParallelStrategy.*take fsdp"):
        Trainer(accelerator="cpu", devices=2, strategy=ModelParallelStrategy(), logger=False)
