"""FSDP in two processes (gloo): every block a unit, and what is trained is what one process trains."""

import csv
import runpy

import pytest
import torch
from child_processes import both_ranks
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from small_pairs import make_encoders, make_pairs, make_rows, write_pairs
from text_corpus import make_data as make_texts
from text_corpus import write_corpus
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from lit_pretrain.__main__ import main
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
KINDS = ("fsdp", "fsdp2")
# Checkpoints of one strategy that another goes on from, and where its own lies then.
RESUMED = {
    ("text-ddp.ckpt", "fsdp2"): "ddp-fsdp2.ckpt",
    ("text-fsdp2.ckpt", "ddp"): "fsdp2-ddp.ckpt",
    ("shards.ckpt", "fsdp2"): "shards-fsdp2.ckpt",
}


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
        modern["first_attention_norm"] = False
        encoder = TextEncoder(transformer=TransformerConfig(2, 32, 2, **modern), positions="rotary", segments=0)
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
    trainer.save_checkpoint(directory / f"{name}-{strategy}.ckpt")
    if (name, strategy) == ("text", "fsdp2"):
        trainer.strategy._save_distributed_checkpoint = True
        for _ in range(2):
            # In the place of itself.
            trainer.save_checkpoint(directory / "shards.ckpt")
    return {
        "blocks": sum(is_unit(one) for one in module.modules()),
        "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        "parameters": module.describe()["parameters"],
    }


def is_unit(part):
    """Whether a part is a block that is sharded by itself."""
    inner = (
        part.module if isinstance(part, FullyShardedDataParallel) else part if isinstance(part, FSDPModule) else None
    )
    return isinstance(inner, Block)


def load_shards(directory, kind):
    """Validation's figures of a checkpoint with averages, and another that goes on from it for a step."""
    path = directory / f"text-{kind}.ckpt"
    (measured,) = make_trainer("text", kind).validate(*make("text", directory, 2), ckpt_path=path, verbose=False)
    go_on(path, kind, directory / f"resumed-{kind}.ckpt")
    return measured


def go_on(path, kind, end):
    """Train a third step from a checkpoint."""
    trainer = make_trainer("text", kind, steps=3)
    trainer.fit(*make("text", path.parent, 1 if kind == "auto" else 2), ckpt_path=path)
    trainer.save_checkpoint(end)


def train_all(directory):
    """What one of two processes does."""
    results = {(name, kind): train(name, directory, kind) for kind in KINDS for name in CASES}
    results["text", "ddp"] = train("text", directory, "ddp")
    results |= {kind: load_shards(directory, kind) for kind in KINDS}
    for (path, kind), end in RESUMED.items():
        go_on(directory / path, kind, directory / end)
    return results


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_two_shards_train_what_one_process_trains(ranks, whole, directory, name, kind):
    # What is masked depends on the processes, so that texts are compared with as many by DDP.
    like, alike = ("ddp", ranks[0]["text", "ddp"]) if name == "text" else ("auto", whole[name])
    expected, found = (contents(directory / f"{name}-{one}.ckpt") for one in (like, kind))
    assert found.keys() == expected.keys() and (name == "text") == any(key.startswith("average ") for key in found)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)
    for rank in ranks:
        assert rank[name, kind]["blocks"] == CASES[name]
        assert rank[name, kind]["parameters"] == alike["parameters"]
        assert rank[name, kind]["metrics"] == pytest.approx(alike["metrics"], rel=1e-3, abs=1e-4)
    # The gradient's norm is that of all shards together.
    tables = [directory / "logs" / f"{name}-{one}" / "metrics.csv" for one in (like, kind)]
    expected, found = (logged(path, "train/gradient_norm") for path in tables)
    assert len(found) == 2 and found == pytest.approx(expected, rel=1e-3)
    expected, found = (logged(path, "train/update_ratio") for path in tables)
    assert len(found) == 2 and found == pytest.approx(expected, rel=1e-3)


def logged(path, name):
    """A figure's values in a table of figures."""
    with path.open() as file:
        found = [row.get(name) for row in csv.DictReader(file)]
    return [float(value) for value in found if value]


def contents(path):
    """Weights, and averages of those of them that are averaged."""
    saved = torch.load(path, weights_only=True)
    averages = saved.get(AVERAGE, {"weights": {}})["weights"]
    return saved["state_dict"] | {f"average {name}": value for name, value in averages.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_averages_are_loaded_into_shards(ranks, directory, kind):
    for rank in ranks:
        expected = rank["text", kind]["metrics"]["validation/loss"]
        assert rank[kind]["validation/loss"] == pytest.approx(expected, rel=1e-5)
    before, after = (contents(directory / f"{name}-{kind}.ckpt") for name in ("text", "resumed"))
    names = [name for name in before if name.startswith("average ")]
    # The third step's decay, by which the average has taken in the weights that the resumed training went on with.
    for name in names:
        expected = 0.25 * before[name] + 0.75 * after[name.removeprefix("average ")]
        torch.testing.assert_close(after[name], expected, msg=name)
    assert any(not torch.equal(before[name], after[name]) for name in names)


def test_any_strategy_goes_on_from_the_checkpoints_of_any_other(ranks, directory):
    expected = contents(directory / "resumed-fsdp2.ckpt")
    for end in RESUMED.values():
        found = contents(directory / end)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=f"{end} {key}")


def test_shards_become_a_file_that_everything_reads(ranks, directory, monkeypatch, capsys):
    shards, file = directory / "shards.ckpt", directory / "consolidated.ckpt"
    assert sorted(path.suffix for path in shards.iterdir()) == ["", ".distcp", ".distcp", ".pt"]
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]
    with pytest.raises(UserError, match="consolidate_checkpoint .*shards.ckpt"):
        TextPretraining.from_checkpoint(shards)
    monkeypatch.setattr("sys.argv", ["", str(shards), "--output_file", str(file)])
    runpy.run_module("lightning.fabric.utilities.consolidate_checkpoint", run_name="__main__")
    whole, found = contents(directory / "text-fsdp2.ckpt"), contents(file)
    assert found.keys() == whole.keys() and all(torch.equal(found[name], value) for name, value in whole.items())
    modules = [TextPretraining.from_checkpoint(path) for path in (file, directory / "text-fsdp2.ckpt")]
    for name, parameter in modules[0].named_parameters():
        assert torch.equal(parameter, modules[1].get_parameter(name)), name
    assert main(["export", "--ckpt", str(file), "--to", str(directory / "exported")]) == 0, capsys.readouterr().err
    assert TextEncoder.from_pretrained(str(directory / "exported")).width == 32
    # One process goes on from it as from the file that was saved whole.
    for path in (file, directory / "text-fsdp2.ckpt"):
        go_on(path, "auto", directory / f"{path.stem}-alone.ckpt")
    first, second = (contents(directory / f"{name}-alone.ckpt") for name in ("consolidated", "text-fsdp2"))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert not torch.equal(first["encoder.embeddings.token.weight"], whole["encoder.embeddings.token.weight"])


def test_what_would_train_a_model_in_every_process_is_refused():
    with pytest.raises(UserError, match="ModelParallelStrategy.*take fsdp"):
        Trainer(accelerator="cpu", devices=2, strategy=ModelParallelStrategy(), logger=False)
