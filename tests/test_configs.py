"""Every file under configs/ through the real entry: small ones train a few steps, those for GPUs are built on meta."""

import contextlib
import io
import os
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import yaml
from child_processes import Commands
from clip_models import QUICK, TEXT, VISION, make_clip, write_clip
from jsonargparse import ArgumentParser
from labelled_texts import SPELLING
from lightning import LightningDataModule, LightningModule

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.backbone.config import BERT_SIZES
from lit_pretrain.cli.class_parsers import made_once
from lit_pretrain.data.sources import sample_path
from lit_pretrain.modules import ContrastivePretraining
from lit_pretrain.objectives.batch import DataFacts

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
TRAINER = sorted((CONFIGS / "trainer").glob("*.yaml"))
SIZES = sorted((CONFIGS / "text" / "sizes").glob("*.yaml"))
# Of many trainings each: see tests/studies/.
STUDIES = [path for kind in ("studies", "sweeps") for path in sorted((CONFIGS / kind).glob("*.yaml"))]
EXPERIMENTS = sorted(set(CONFIGS.rglob("*.yaml")) - set(TRAINER) - set(SIZES) - set(STUDIES))
# All read the same speeches with the same tokenizer, so that one is trained.
PIECES = ["--data.vocabulary_size", "2000"]
# What stands for data that is not there offline, by the class of the data module.
FEW_ROWS = {
    "DocumentDataModule": ["--data.max_documents", "40", "--data.path", "null", "--data.split", "train", *PIECES],
    "ImageDataModule": ["--data.max_pictures", "80", "--data.path", "null", "--data.name", "null"],
    "PairDataModule": ["--data.max_pictures", "80", "--data.vocabulary_size", "100"],
    "LabelledDataModule": ["--data.label_budget", "60", "--data.name", "null"],
    "JointDataModule": ["--data.pairs.max_pictures", "80", "--data.text.max_documents", "40"],
}
FEW_ROWS["JointDataModule"] += ["--data.text.vocabulary_size", "2000", "--data.vision.max_pictures", "80"]
SMALL_BATCHES = {"JointDataModule": [f"--data.{part}.batch_size=4" for part in ("pairs", "text", "vision")]}
# The first emoji are all of one group.
EMOJI = ["--data.image_column", "image", "--data.label_column", "subgroup", "--data.test_split", "null"]
# The speeches and the emoji stand for labelled data.
SPEECHES = ["--data.text_column", "text", "--data.label_column", "party", "--data.test_split", "null"]
GROUPS = ["--data.image_column", "image", "--data.label_column", "group", "--data.test_split", "null"]
NUMBERS = ["--data.text_pair_column", "president", "--data.label_column", "year", "--data.task", "regression"]
FINE_TUNED = {
    "cifar10": [*GROUPS, "--data.stored_size", "32"],
    # The encoder that stands for the pretrained one has learned positions.
    "imdb": [*SPEECHES, "--data.maximum_length", "512"],
    "imdb_minilm": SPEECHES,
    # Whole speeches, so few.
    "own_text": ["--data.test_split", "null", "--data.label_budget", "15", "--data.validation_share", "0.05"],
    "sst2": [*SPEECHES, "--data.validation_split", "null"],
    "stsb": [*SPEECHES, *NUMBERS, "--data.validation_split", "null"],
}


def accelerator(path):
    return yaml.safe_load(path.read_text())["trainer"].get("accelerator", "auto")


ON_GPUS = [path for path in EXPERIMENTS if accelerator(path) == "gpu"]
ON_CPUS = [path for path in EXPERIMENTS if path not in ON_GPUS]


def data_class(path):
    return yaml.safe_load(path.read_text())["data"]["class_path"]


def name(path):
    return str(path.relative_to(CONFIGS).with_suffix(""))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One place for all, so that the speeches are tokenised once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        directory = tmp_path_factory.mktemp("runs")
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory))
        yield directory


@pytest.fixture(scope="module")
def command(runs):
    """Runs commands in a process of their own: so many models leave two hundred megabytes of odds and ends."""
    commands = Commands()
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def pretrained(runs, command):
    """A checkpoint of two steps of the vision quick start, for the configs that start from one."""
    arguments = ["--config", str(CONFIGS / "vision" / "quickstart.yaml"), "--trainer.max_steps", "2"]
    arguments += ["--trainer.limit_val_batches", "1", "--data.batch_size", "4", *FEW_ROWS["ImageDataModule"], *EMOJI]
    assert command("fit", *arguments) == 0
    (path,) = (runs / "vision-quickstart").glob("*/checkpoints/last.ckpt")
    return path


@pytest.fixture(scope="module")
def two_towers(runs, command):
    """Checkpoints of two steps of the towers that are pretrained alone, by name."""
    towers = {}
    for tower, few in (("text", "DocumentDataModule"), ("vision", "ImageDataModule")):
        arguments = ["--config", str(CONFIGS / "contrastive" / "pretrained" / f"{tower}.yaml"), *FEW_ROWS[few]]
        arguments += ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--data.batch_size", "4"]
        assert command("fit", *arguments) == 0
        (towers[tower],) = (runs / "towers").glob(f"{tower}-tower-*/checkpoints/last.ckpt")
    return towers


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A directory as that of MiniLM: BERT weights in transformers' format with their tokenizer."""
    directory = tmp_path_factory.mktemp("bert")
    small = TransformerConfig(depth=1, width=32, heads=2)
    TextEncoder(SPELLING.vocabulary_size, transformer=small, pooling="pooler").save_pretrained(directory)
    SPELLING.save(directory)
    return directory


@pytest.fixture(scope="module")
def speeches(tmp_path_factory):
    """The beginnings of the speeches, since a tokenizer that spells takes a second for each hundred whole ones."""
    path = tmp_path_factory.mktemp("speeches") / "speeches.parquet"
    rows = datasets.Dataset.from_parquet(str(sample_path()), cache_dir=str(path.parent))
    rows.map(lambda row: {"text": row["text"][:1000]}).to_parquet(str(path))
    return path


@cache
def resolved_text(*paths):
    """What `fit --print_config` prints."""
    arguments = [word for path in paths for word in ("--config", str(path))]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        assert main(["fit", *arguments, "--print_config"]) == 0
    return output.getvalue()


def resolved(*paths):
    """The same as settings, which may be changed."""
    return yaml.safe_load(resolved_text(*paths))


def on_meta(config):
    """The config's model and data, without memory for the weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    with made_once(), torch.device("meta"):
        made = parser.instantiate_classes(parser.parse_object({key: config[key] for key in ("model", "data")}))
        if hasattr(made.data, "vocabulary_size") and getattr(made.model, "tokenizer", None) is None:
            size = made.data.vocabulary_size
            made.model.tokenizer = SimpleNamespace(
                vocabulary_size=size, mask_id=4, special_ids=[0, 1, 2, 3, 4], continuation_mask=[False] * size
            )
        if isinstance(made.model, ContrastivePretraining):
            made.model.configure_model()
        else:
            made.model.build()
    return made.model, made.data


def test_there_is_something_of_each_kind():
    assert len(ON_CPUS) >= 14 and len(ON_GPUS) >= 12
    assert {path.stem for path in SIZES} == set(BERT_SIZES)


@pytest.mark.parametrize("path", [*EXPERIMENTS, *TRAINER, *SIZES], ids=name)
def test_the_header_gives_a_command_that_uses_the_file(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "python -m lit_pretrain fit --config configs/" in header
    assert str(path.relative_to(ROOT)) in header
    if path in ON_GPUS:
        assert "Not run by us" in header
    elif path in ON_CPUS:
        assert "Cost:" in header and "Expected at the end:" in header


@pytest.mark.parametrize("path", ON_CPUS, ids=name)
def test_a_config_for_cpus_trains(path, runs, command, request):
    arguments = ["--config", str(path), "--config", str(CONFIGS / "trainer" / "debug.yaml")]
    arguments += ["--trainer.max_steps", "2", *FEW_ROWS[data_class(path)]]
    arguments += SMALL_BATCHES.get(data_class(path), ["--data.batch_size", "4"])
    if data_class(path) == "ImageDataModule":
        arguments += [*EMOJI, "--data.validation_share", "0.2"]
    if path.parent.name == "cifar10":
        arguments += ["--data.stored_size", "32"]
    if "finetune" in str(path):
        arguments += FINE_TUNED.get(path.stem, ["--data.test_split", "null"])
        texts = yaml.safe_load(path.read_text())["data"]["init_args"].get("text_column")
        sample = "null" if path.stem.startswith("own_") or not texts else str(request.getfixturevalue("speeches"))
        arguments += ["--data.path", sample]
        arguments += ["--model.init_from", str(request.getfixturevalue("bert" if texts else "pretrained"))]
    if name(path) == "text/imdb_minilm":
        bert = str(request.getfixturevalue("bert"))
        arguments += ["--model.init_from", bert, "--model.objectives.teacher", bert]
    if path.stem == "continue":
        arguments += [
            "--model.init_from",
            str(request.getfixturevalue("bert" if path.parent.name == "text" else "pretrained")),
        ]
        arguments += ["--data.stored_size", "32"] if path.parent.name == "vision" else []
    if name(path) in ("text/imdb", "text/imdb_fast"):
        # Some speeches have fewer pairs of word pieces than all film reviews: 1.5 GB less.
        arguments += ["--model.encoder.ngram_rows", "2000"]
    if name(path) == "contrastive/cifar10":
        arguments += ["--data.path", "null", "--data.image_column", "image", "--data.caption_columns", "[subgroup]"]
    if path.stem == "both":
        for tower, checkpoint in request.getfixturevalue("two_towers").items():
            arguments += [f"--model.{tower}.init_from", str(checkpoint)]
    if "size" in yaml.safe_load(path.read_text())["model"]["init_args"].get("encoder", {}).get("init_args", {}):
        arguments += ["--model.encoder.size", "tiny"]
    if name(path) != "quickstart":
        # It keeps a traceback of every operation, for a third of the time.
        arguments += ["--trainer.detect_anomaly", "false"]
    before = set((runs / "debug").glob("*/run.json"))

    assert command("fit", *arguments) == 0

    assert len(set((runs / "debug").glob("*/run.json")) - before) == 1


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """What stands for public weights of CLIP and of a ViT, by the name of the config that starts from them."""
    directory = tmp_path_factory.mktemp("towers")
    clip = QUICK | {"vision_cfg": VISION | {"image_size": 224, "patch_size": 32}}
    clip |= {"text_cfg": TEXT | {"context_length": 77}}
    write_clip(directory / "flickr30k", make_clip(clip), clip)
    small = VisionTransformerConfig(depth=1, width=32, heads=2)
    VisionEncoder(224, 16, transformer=small, pooling="cls").save_pretrained(directory / "lit")
    return directory


@pytest.mark.parametrize("path", [path for path in ON_GPUS if path.parent.name == "contrastive"], ids=name)
def test_a_contrastive_config_for_gpus_is_built(path, runs, towers):
    config = resolved(path)
    arguments = config["model"]["init_args"]
    for tower in ("text", "vision"):
        if arguments[tower]["init_from"] is not None:
            arguments[tower]["init_from"] = str(towers / path.stem)
    model, data = on_meta(config)

    assert config["trainer"]["precision"] == "bf16-mixed" and model.compile_blocks
    assert all(parameter.is_meta for parameter in model.parameters())
    model.augmentation.check(data.storage.stored_size, model.vision_encoder.image_size)
    model.text_encoder.check_length(data.maximum_length)
    assert data.caption_columns and data.source.image_column
    locked = not any(parameter.requires_grad for parameter in model.vision_encoder.parameters())
    assert locked == (path.stem == "lit")
    if path.stem == "clip_vit_b32":
        # As timm's vit_base_patch32_224 without its classifier: 88,224,232 - 769,000.
        assert sum(parameter.numel() for parameter in model.vision_encoder.parameters()) == 87_455_232
        config = model.text_encoder.config
        assert (config.depth, config.width, config.resolved_heads) == BERT_SIZES["base"]
    if path.stem == "siglip":
        assert model.objective.logit_bias is not None and model.chunk_size < data.batch_size
    if path.stem == "flickr30k":
        assert model.embedding_width == 24 and model.tokenizer.vocabulary_size == 49_408


@pytest.mark.parametrize("path", [path for path in ON_GPUS if path.parent.name != "contrastive"], ids=name)
def test_a_config_for_gpus_is_built(path, runs):
    config = resolved(path)
    model, data = on_meta(config)

    assert config["trainer"]["precision"] == "bf16-mixed" and model.compile_blocks
    assert all(parameter.is_meta for parameter in model.parameters())
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    if data_class(path) == "ImageDataModule":
        facts = DataFacts(stored_size=data.stored_size or model.encoder.image_size)
        model.augmentation.check(facts.stored_size, model.encoder.image_size)
        for objective in model.objectives:
            objective.check_data(model.encoder, facts)
        if "imagenet" in str(path):
            # As timm's vit_small_patch16_224 without class token and classifier: 21,665,664 - 2 x 384.
            assert encoder == 21_664_896
        return
    model.encoder.check_length(data.sequence_length)
    for objective in model.objectives:
        objective.check_data(model.encoder, DataFacts(data.batch_fields, data.layout, data.sequence_length))
    if "bert_base" in path.stem:
        # As bert-base-uncased: 109,482,240 with its pooler.
        assert encoder == 109_482_240
    else:
        names = [name for name, _ in model.encoder.transformer.blocks.named_parameters()]
        assert not [name for name in names if name.endswith("bias") and "norm" not in name]


@pytest.mark.parametrize("path", SIZES, ids=name)
def test_a_size_is_added_to_a_config(path, runs):
    model, _ = on_meta(resolved(CONFIGS / "text" / "mlm_nsp.yaml", path))
    config = model.encoder.config
    assert (config.depth, config.width, config.resolved_heads) == BERT_SIZES[path.stem]
    # What the fragment does not name stays.
    assert config.dropout == 0.1 and len(model.objectives) == 2


def test_the_batch_script_starts_a_training_on_all_nodes_that_is_queued_anew(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nshift 2\necho $@\n")
    srun.chmod(0o755)
    script = CONFIGS / "trainer" / "slurm.sh"
    assert {"#SBATCH --signal=SIGUSR1@120", "#SBATCH --requeue"} < set(script.read_text().splitlines())
    job = {"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "4"}
    environment = job | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(script), "--config", "configs/quickstart.yaml"]
    words = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert words[:6] == ["python", "-m", "lit_pretrain", "fit", "--config", "configs/quickstart.yaml"]
    assert words[6:] == [
        *("--config", "configs/trainer/nodes.yaml", "--trainer.num_nodes", "3", "--trainer.devices", "4")
    ]


@pytest.mark.parametrize("path", TRAINER, ids=name)
def test_a_fragment_changes_the_trainer_and_nothing_else(path, runs):
    base = resolved(CONFIGS / "quickstart.yaml")
    config = resolved(CONFIGS / "quickstart.yaml", path)
    wanted = yaml.safe_load(path.read_text())["trainer"]
    wanted.pop("logger", None)
    assert {key: config["trainer"][key] for key in wanted} == wanted
    for setting in ("compile_blocks", "gradient_checkpointing"):  # how a step is computed, not what it comes to
        config["model"]["init_args"][setting] = base["model"]["init_args"][setting]
    if path.stem == "debug":
        # A warm-up in steps may be longer than what is left of the training.
        config["model"]["init_args"]["schedule"] |= {
            name: base["model"]["init_args"]["schedule"][name] for name in ("warm_up", "decay")
        }
    assert config["model"] == base["model"] and config["data"] == base["data"]
