"""FSDP in two processes (gloo): every block a unit, and what is trained is what one process trains."""

import csv

import pytest
import torch
from child_processes import both_ranks
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from small_pairs import make_encoders, make_pairs, make_rows, write_pairs
from text_corpus import make_data as make_texts
from text_corpus import write_corpus
from torch.distributed.fsdp import FullyShardedDataParallel

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.backbone.transformer import Block
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, TextPretraining
from lit_pretrain.modules.averaging import AVERAGE, AverageConfig
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
        # The second block is local.
        modern = {"norm_order": "pre", "activation": "geglu", "norm_bias": False, "attention_window": 4}
        encoder = TextEncoder(transformer=TransformerConfig(2, 32, 2, **modern), max_positions=32)
        objectives = [MaskedLanguageModeling(), NextSentencePrediction()]
        data = make_texts(directory / "texts.json", directory, sequence_length=16, batch_size=BATCH // processes)
        return TextPretraining(encoder, objectives, average=AverageConfig(0.9), **settings), data
    module = ContrastivePretraining(
        **make_encoders(),
        share_weights=name,
        embedding_width=16,
        objective=Contrastive("siglip"),
        chunk_size=3,
        **settings,
    )
    return module, make_pairs(directory / "pairs.parquet", directory / "caches", batch_size=BATCH // processes)


def make_trainer(name, strategy, steps=2, logger=False):
    """Two steps, in chunks, and a validation."""
    return Trainer(
        accelerator="cpu",
        devices=1 if strategy == "auto" else 2,
        strategy=OnProcessors(process_group_backend="gloo") if strategy == "fsdp" else strategy,
        precision="32-true",
        max_steps=steps,
        val_check_interval=2,
        num_sanity_val_steps=0,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[Examples()] if name == "text" else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
    )


def train(name, directory, strategy):
    """What comes of it, and a checkpoint."""
    module, data = make(name, directory, 1 if strategy == "auto" else 2)
    logger = CSVLogger(directory, name="logs", version=f"{name}-{strategy}")
    trainer = make_trainer(name, strategy, logger=logger)
    trainer.fit(module, data)
    units = [one for one in module.modules() if isinstance(one, FullyShardedDataParallel)]
    trainer.save_checkpoint(directory / f"{name}-{strategy}.ckpt")
    return {
        "blocks": sum(isinstance(one.module, Block) for one in units),
        "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        "parameters": module.describe()["parameters"],
    }


def load_shards(directory):
    """Validation's figures of a checkpoint with averages, and another that goes on from it for a step."""
    path = directory / "text-fsdp.ckpt"
    (measured,) = make_trainer("text", "fsdp").validate(*make("text", directory, 2), ckpt_path=path, verbose=False)
    trainer = make_trainer("text", "fsdp", steps=3)
    trainer.fit(*make("text", directory, 2), ckpt_path=path)
    trainer.save_checkpoint(directory / "resumed.ckpt")
    return measured


def train_all(directory):
    """What one of two processes does."""
    results = {name: train(name, directory, "fsdp") for name in CASES} | {"text, ddp": train("text", directory, "ddp")}
    return results | {"loaded": load_shards(directory)}


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
    expected, found = (contents(directory / f"{name}-{one}.ckpt") for one in (like, "fsdp"))
    assert found.keys() == expected.keys() and (name == "text") == any(key.startswith("average ") for key in found)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)
    for rank in ranks:
        assert rank[name]["blocks"] == CASES[name]
        assert rank[name]["parameters"] == alike["parameters"]
        assert rank[name]["metrics"] == pytest.approx(alike["metrics"], rel=1e-3, abs=1e-4)
    # The gradient's norm is that of all shards together.
    expected, found = (norms(directory / "logs" / f"{name}-{one}" / "metrics.csv") for one in (like, "fsdp"))
    assert len(found) == 2 and found == pytest.approx(expected, rel=1e-3)


def norms(path):
    """Norms of the gradient in a table of figures."""
    with path.open() as file:
        found = [row.get("train/gradient_norm") for row in csv.DictReader(file)]
    return [float(value) for value in found if value]


def contents(path):
    """Weights, and averages of those of them that are averaged."""
    saved = torch.load(path, weights_only=True)
    averages = saved.get(AVERAGE, {"weights": {}})["weights"]
    return saved["state_dict"] | {f"average {name}": value for name, value in averages.items()}


def test_averages_are_loaded_into_shards(ranks, directory):
    for rank in ranks:
        assert rank["loaded"]["validation/loss"] == pytest.approx(rank["text"]["metrics"]["validation/loss"], rel=1e-5)
    before, after = (contents(directory / f"{name}.ckpt") for name in ("text-fsdp", "resumed"))
    names = [name for name in before if name.startswith("average ")]
    # The third step's decay, by which the average has taken in the weights that the resumed training went on with.
    for name in names:
        expected = 0.25 * before[name] + 0.75 * after[name.removeprefix("average ")]
        torch.testing.assert_close(after[name], expected, msg=name)
    assert any(not torch.equal(before[name], after[name]) for name in names)


def test_what_would_train_a_model_in_every_process_is_refused():
    with pytest.raises(UserError, match="ModelParallelStrategy.*take fsdp"):
        Trainer(accelerator="cpu", devices=2, strategy=ModelParallelStrategy(), logger=False)
