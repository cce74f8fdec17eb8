"""`export` of checkpoints that real short fits made, read back by transformers, timm and onnxruntime themselves."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import child_processes
import numpy
import onnx
import onnxruntime
import open_clip
import pytest
import timm
import torch
import yaml
from clip_models import QUICK, make_clip, write_clip
from safetensors.torch import load_file, save_file
from small_modernbert import save_modernbert
from small_pairs import TRANSFORMER, make_pairs, make_rows, write_pairs
from small_pictures import draw, make_pictures, write_pictures
from small_pictures import make_encoder as make_picture_encoder
from small_roberta import small_roberta_tokenizer
from small_training import small_config, write_config
from text_corpus import make_data, make_encoder, write_corpus
from tokenizers import normalizers, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaModel,
    pipeline,
)

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.backbone.pooling import mean_pool
from lit_pretrain.commands.exports import export_directory, onnx_format, timm_format, transformers_format
from lit_pretrain.commands.exports.check import ExportMismatchError, judge, seeded_texts
from lit_pretrain.commands.exports.subject import Subject
from lit_pretrain.data import LabelledDataModule
from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, from_pieces
from lit_pretrain.evaluation.pair_embedder import PairEmbedder
from lit_pretrain.modules import ContrastivePretraining, FineTuning, TextPretraining, VisionPretraining
from lit_pretrain.modules.contrastive.towers import TowerConfig
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.objectives import (
    CausalLanguageModeling,
    Contrastive,
    MaskedImageModeling,
    MaskedLanguageModeling,
    ReplacedTokenDetection,
)
from lit_pretrain.trainer import Trainer

SMALL = VisionTransformerConfig(depth=1, width=32, heads=2)
TEXTS = ["The senate pays new roads.", "A farmer remembers.", "Every citizen needs peace abroad, many schools!"]


def fit(module, data, path: Path, steps: int = 4) -> Path:
    """Train for a few steps and save."""
    settings = {"accelerator": "cpu", "precision": "32-true", "logger": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=steps, enable_progress_bar=False, enable_model_summary=False, **settings)
    trainer.fit(module, data)
    trainer.save_checkpoint(path)
    return path


class Made:
    """Checkpoints by their name, each trained when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.corpus = write_corpus(directory / "corpus.jsonl")
        self.pictures = write_pictures(directory / "pictures.parquet", count=48)
        self.labels = directory / "labels.jsonl"
        rows = [json.loads(line)["text"].split(". ") for line in self.corpus.read_text().splitlines()]
        with self.labels.open("w") as file:
            for index, (first, second, *_) in enumerate(rows):
                row = {"text": first, "next": second, "kind": ["pays", "other"]["pays" not in first]}
                row |= {
                    "number": 100.0 + 7 * (index % 5),
                    "kinds": ["a"] if index % 2 else ["a", "b", "c"][index % 3 :],
                }
                file.write(json.dumps(row) + "\n")
        self.paths: dict[str, Path] = {}

    def __call__(self, name: str) -> Path:
        if name not in self.paths:
            self.paths[name] = getattr(self, name)(self.directory / f"{name}.ckpt")
        return self.paths[name]

    def run(self, path: Path) -> Path:
        """A whole run, in MLflow, of BERT's two objectives."""
        config = small_config(self.corpus, {"max_steps": 20, "enable_model_summary": False})
        config["trainer"]["logger"]["init_args"] |= {"run_name": "bert", "runs_directory": str(self.directory / "runs")}
        assert main(["fit", "--config", str(write_config(path.with_suffix(".yaml"), config))]) == 0
        (found,) = self.directory.glob("runs/small/bert-*/checkpoints/last.ckpt")
        return found

    def rotary(self, path: Path) -> Path:
        """With all that BERT has not, local layers among it."""
        transformer = {"depth": 2, "width": 32, "heads": 2, "norm": "rms", "attention_window": 4}
        others = {"positions": "rotary", "local_rotary_base": 99.0, "segments": 0, "ngrams": 3, "ngram_rows": 97}
        encoder = TextEncoder(transformer=TransformerConfig(**transformer), **others)
        module = TextPretraining(encoder, [ReplacedTokenDetection()], seed=0)
        return fit(module, make_data(self.corpus, self.directory), path)

    def pooler(self, path: Path) -> Path:
        module = TextPretraining(make_encoder(pooling="pooler"), [MaskedLanguageModeling()], seed=0)
        return fit(module, make_data(self.corpus, self.directory), path)

    def causal(self, path: Path) -> Path:
        module = TextPretraining(make_encoder(), [CausalLanguageModeling()], seed=0)
        return fit(module, make_data(self.corpus, self.directory), path)

    def tuned(self, path: Path, **settings: object) -> Path:
        columns = {name: settings.pop(name) for name in list(settings) if name.endswith("column")}
        data = {"path": str(self.labels), "batch_size": 8, "validation_share": 0.2, "seed": 0}
        data["maximum_length"] = settings.pop("maximum_length", 32)
        module = FineTuning(optimizer=AdamWConfig(learning_rate=1e-2), seed=0, **settings)
        caches = str(self.directory / "caches")
        return fit(module, LabelledDataModule(**data, cache_directory=caches, **columns), path, steps=10)

    def pairs(self, path: Path) -> Path:
        columns = {"text_pair_column": "next", "label_column": "kind"}
        return self.tuned(path, init_from=str(self("run")), pooling="cls", **columns)

    def roberta(self, path: Path) -> Path:
        """A public RoBERTa, fine-tuned on pairs."""
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        tokenizer = small_roberta_tokenizer()
        rows = {"vocab_size": tokenizer.vocabulary_size + 3, "max_position_embeddings": 66, "type_vocab_size": 1}
        RobertaModel(RobertaConfig(**sizes, **rows)).save_pretrained(self.directory / "roberta")
        tokenizer.save(self.directory / "roberta")
        columns = {"text_pair_column": "next", "label_column": "kind"}
        source = str(self.directory / "roberta")
        return self.tuned(path, init_from=source, pooling="cls", maximum_length=64, **columns)

    def modern(self, path: Path) -> Path:
        """A public ModernBERT that goes on, with its head."""
        source = save_modernbert(ModernBertForMaskedLM, self.directory / "modernbert")
        module = TextPretraining(init_from=str(source), objectives=[MaskedLanguageModeling(whole_word=True)], seed=0)
        return fit(module, make_data(self.corpus, self.directory), path)

    def modern_pairs(self, path: Path) -> Path:
        self("modern")
        columns = {"text_pair_column": "next", "label_column": "kind"}
        return self.tuned(path, init_from=str(self.directory / "modernbert"), token_dropout=0.3, **columns)

    def several(self, path: Path) -> Path:
        return self.tuned(path, init_from=str(self("pooler")), label_column="kinds")

    def number(self, path: Path) -> Path:
        return self.tuned(path, init_from=str(self("run")), label_column="number")

    def rotary_number(self, path: Path) -> Path:
        return self.tuned(path, init_from=str(self("rotary")), label_column="number")

    def masked(self, path: Path) -> Path:
        module = VisionPretraining(make_picture_encoder(mean=(0.4, 0.5, 0.6)), [MaskedImageModeling()], seed=0)
        return fit(module, make_pictures(self.pictures, self.directory), path)

    def pair(self, path: Path, **settings: object) -> Path:
        """As CLIP's, but with word pieces and a bias of the patches."""
        transformer = TRANSFORMER | {"activation": "gelu_tanh", "bias": False, "feed_forward_width": 77}
        text = TextEncoder(
            None, None, TransformerConfig(**transformer), "learned", 16, 2, False, "end_of_text", causal=True
        )
        vision = VisionEncoder(
            16, 4, transformer=VisionTransformerConfig(**transformer), pooling="cls", std=(0.3, 0.2, 0.25)
        )
        given = {"text_encoder": text, "vision_encoder": vision, "objective": Contrastive("siglip")}
        module = ContrastivePretraining(**settings or given, embedding_width=24, seed=0)
        data = make_pairs(write_pairs(self.directory / "pairs.parquet", make_rows(24)), self.directory)
        return fit(module, data, path, steps=2)

    def towers(self, path: Path) -> Path:
        """Of no CLIP's form: a BERT and a ViT with means."""
        vision = make_picture_encoder(class_token=False)
        return self.pair(path, text_encoder=make_encoder(max_positions=16), vision_encoder=vision)

    def clip(self, path: Path) -> Path:
        towers = {name: QUICK[name] | {"layers": 1} for name in ("vision_cfg", "text_cfg")}
        source = write_clip(self.directory / "clip", make_clip(QUICK | towers), QUICK | towers)
        start = TowerConfig(init_from=str(source))
        module = ContrastivePretraining(text=start, vision=start, seed=0)
        data = make_pairs(self.directory / "pairs.parquet", self.directory, stored_size=32)
        write_pairs(self.directory / "pairs.parquet", make_rows(24))
        return fit(module, data, path, steps=2)

    def named(self, path: Path) -> Path:
        module = FineTuning(VisionEncoder(16, 8, transformer=SMALL, pooling="map", std=(0.3, 0.2, 0.25)), seed=0)
        return fit(module, make_pictures(self.pictures, self.directory), path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")


def export(checkpoint: Path, target: Path, *arguments: str) -> Path:
    assert main(["export", "--ckpt", str(checkpoint), "--to", str(target), *arguments]) == 0
    return target


@pytest.fixture(scope="module")
def command():
    """Runs commands in a process of their own, since what makes and reads graphs stays in memory."""
    commands = child_processes.Commands()
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def graphs(made, command, tmp_path_factory):
    """Exports as ONNX, each made once."""
    directory = tmp_path_factory.mktemp("graphs")

    def graph(name: str) -> Path:
        target = directory / name
        if not target.exists():
            assert command("export", "--ckpt", str(made(name)), "--to", str(target), "--format", "onnx") == 0
        return target

    return graph


def session_of(directory: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])


def front_matter(directory: Path) -> dict:
    return yaml.safe_load((directory / "README.md").read_text().split("---\n")[1])


# -- text in transformers


def test_a_pretrained_bert_fills_masks_in_transformers_and_its_card_tells_the_run(made, tmp_path, capsys):
    rows = tmp_path / "rows.json"
    target = export(made("run"), tmp_path / "exports" / "bert", "--json", str(rows))

    printed = capsys.readouterr().out
    assert "BertForPreTraining" in printed and "differ by" in printed and "seeded" in printed
    table = {row["output"]: row for row in json.loads(rows.read_text())}
    assert set(table) == {"token_features", "pooled_embedding", "word_logits", "next_sentence_logits"}
    assert all(0 <= row["difference"] < 1e-5 and row["library"].startswith("transformers ") for row in table.values())

    module = TextPretraining.from_checkpoint(made("run"))
    tokenizer, model = AutoTokenizer.from_pretrained(target), AutoModel.from_pretrained(target)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert tokenizer.model_max_length == 32 and inputs["input_ids"][0].tolist()[0] == module.tokenizer.cls_id
    with torch.no_grad():
        theirs = model(**inputs).last_hidden_state
        ours = module.encoder.forward_features(**inputs)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert len(pipeline("fill-mask", model=str(target))("the [MASK] pays new roads.")) == 5

    card = (target / "README.md").read_text()
    assert front_matter(target)["library_name"] == "transformers" and "license" not in front_matter(target)
    assert {"lit_pretrain", "masked-language-modeling"} <= set(front_matter(target)["tags"])
    fingerprint = module_record(made("run"))["data_fingerprint"]
    for part in (str(made.corpus), fingerprint, "| optimiser steps | 20 |", "| seed of everything | 3 |", "0.15"):
        assert part in card
    line = next(line for line in card.splitlines() if line.startswith("| validation/loss |"))
    here, best, last = (float(cell) for cell in line.split("|")[2:5])
    assert here == last >= best > 0
    assert "could not be read" not in card and "License: not stated" in card
    # No half of it lies beside it, and whoever may read files here may read it.
    assert [path.name for path in target.parent.iterdir()] == ["bert"]
    assert (target / "model.safetensors").stat().st_mode == (target / "README.md").stat().st_mode


def answers_again(directory: Path, module: FineTuning, samples: list) -> list[dict]:
    """What a fine-tuning that starts from an export answers before any step, its classes being in another order."""
    again = FineTuning(init_from=str(directory))
    again.facts = replace(module.facts, classes=module.facts.classes[::-1])
    again.configure_model()
    again.modality.take(module.modality.settings())
    assert again.start.head is not None and again.encoder.pooling == module.encoder.pooling
    return again.eval().predict(samples)


def module_record(path: Path) -> dict:
    return torch.load(path, weights_only=True)["lit_pretrain"]


@pytest.mark.parametrize("name", ["pairs", "roberta"])
def test_a_classifier_of_pairs_answers_in_transformers_as_here(name, made, tmp_path):
    target = export(made(name), tmp_path / "pairs")
    pairs = [("The army pays a fair wage.", "The army builds."), ("A farmer needs peace abroad.", "It pays.")]
    module = FineTuning.from_checkpoint(made(name))
    expected = module.predict(pairs)
    for source in (target, made(name)):
        for one, other in zip(answers_again(source, module, pairs), expected, strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    classifier = pipeline("text-classification", model=str(target), top_k=None)
    for row, (text, text_pair) in zip(expected, pairs, strict=True):
        answers = {one["label"]: one["score"] for one in classifier({"text": text, "text_pair": text_pair})}
        assert answers == pytest.approx(row["probability"], abs=1e-5)
        assert set(answers) == {"pays", "other"}
    card = (target / "README.md").read_text()
    if name == "pairs":
        # From the fine-tuning to the run that it started from.
        assert "TextPretraining" in card and "at step 20" in card and "MaskedLanguageModeling + NextSentence" in card
    assert "train on from the checkpoint" in card


def test_several_classes_are_told_by_berts_own_pooler(made, tmp_path):
    target = export(made("several"), tmp_path / "several")
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"] and "multi_label" in config["problem_type"]
    module = FineTuning.from_checkpoint(made("several"))
    (row,) = module.predict(TEXTS[:1])
    (again,) = answers_again(target, module, TEXTS[:1])
    assert again["probability"] == pytest.approx(row["probability"], abs=1e-5)
    (answers,) = pipeline("text-classification", model=str(target), top_k=None)(TEXTS[:1])
    assert {one["label"]: one["score"] for one in answers} == pytest.approx(row["probability"], abs=1e-5)


def test_a_number_from_the_mean_lies_beside_the_encoder_in_its_own_unit(made, tmp_path, capsys):
    target = export(made("number"), tmp_path / "number")
    assert "classifier/model.safetensors" in capsys.readouterr().out
    inputs = AutoTokenizer.from_pretrained(target)(TEXTS, padding=True, return_tensors="pt")
    model, head = (
        AutoModel.from_pretrained(target, add_pooling_layer=False),
        load_file(target / "classifier/model.safetensors"),
    )
    with torch.no_grad():
        tokens, real = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    values = ((tokens * real).sum(1) / real.sum(1)) @ head["weight"].T + head["bias"]
    module = FineTuning.from_checkpoint(made("number"))
    expected = [row["value"] for row in module.predict(TEXTS)]
    assert [row["value"] for row in answers_again(target, module, TEXTS)] == pytest.approx(expected, rel=1e-5)
    assert values[:, 0].tolist() == pytest.approx(expected, rel=1e-5) and 80 < min(expected) < 150


def test_masks_alone_need_no_second_head(made, tmp_path):
    target = export(made("pooler"), tmp_path / "pooler")
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    assert len(pipeline("fill-mask", model=str(target))("the [MASK] pays.")) == 5


def test_a_modernbert_goes_on_is_tuned_and_stays_one(made, tmp_path, capsys):
    made("modern")
    told = capsys.readouterr()
    assert "(heads taken: masked_language_modeling)" in told.out + told.err
    target = export(made("modern"), tmp_path / "modern")
    printed = capsys.readouterr().out
    assert "ModernBertForMaskedLM" in printed and "word_logits" in printed
    tokenizer = AutoTokenizer.from_pretrained(target)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    module = TextPretraining.from_checkpoint(made("modern"))
    assert inputs["input_ids"][0].tolist()[::-1][0] == tokenizer.pad_token_id == module.tokenizer.pad_id > 250
    assert len(pipeline("fill-mask", model=str(target))("the [MASK] pays.")) == 5
    # An export is a start as the public directory is.
    start = load_starting_point(str(target))
    assert set(start.format_heads) > {"cls.predictions.bias"} and start.tokenizer.hash == module.tokenizer.hash

    target = export(made("modern_pairs"), tmp_path / "pairs")
    pairs = [("The army pays a fair wage.", "The army builds."), ("A farmer needs peace abroad.", "It pays.")]
    module = FineTuning.from_checkpoint(made("modern_pairs"))
    for one, other in zip(answers_again(target, module, pairs), module.predict(pairs), strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    assert (target / "classifier/model.safetensors").exists()
    assert json.loads((target / "config.json").read_text())["architectures"] == ["ModernBertModel"]

    causal = TextPretraining(
        init_from=str(made.directory / "modernbert"), objectives=[CausalLanguageModeling()], seed=0
    )
    path = fit(causal, make_data(made.corpus, made.directory), tmp_path / "causal.ckpt", steps=1)
    assert main(["export", "--ckpt", str(path), "--to", str(tmp_path / "causal")]) == 2
    assert "ModernBERT has no place for tokens that see only those before them" in capsys.readouterr().err


def test_what_was_taught_causally_is_exported_so(made, tmp_path, capsys):
    target = export(made("causal"), tmp_path / "causal")
    assert "BertLMHeadModel" in capsys.readouterr().out
    module = TextPretraining.from_checkpoint(made("causal"))
    tokenizer = AutoTokenizer.from_pretrained(target)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours = module.encoder.forward_features(**inputs, causal=True)
        assert not torch.allclose(ours, module.encoder.forward_features(**inputs), atol=1e-3)
        theirs = AutoModel.from_pretrained(target, add_pooling_layer=False)(**inputs).last_hidden_state
        head = module.objectives[0].head.logits(ours, module.encoder.embeddings.token.weight)
        words = AutoModelForCausalLM.from_pretrained(target)(**inputs).logits
        again = TextEncoder.from_pretrained(target).forward_features(**inputs)
    for found in (theirs, again):
        assert torch.allclose(found[real], ours[real], atol=1e-5)
    assert torch.allclose(words[real], head[real], atol=1e-5)


# -- pictures in timm


def test_pictures_give_the_same_in_timm(made, tmp_path):
    target = export(made("masked"), tmp_path / "masked")
    model = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    assert data["mean"] == pytest.approx((0.4, 0.5, 0.6)) and data["input_size"] == (3, 16, 16)
    encoder = VisionPretraining.from_checkpoint(made("masked")).encoder
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model(images), encoder(images), atol=1e-5)
    assert front_matter(target)["pipeline_tag"] == "image-feature-extraction"


def test_a_classifier_of_pictures_keeps_its_names_in_timm(made, tmp_path):
    target = export(made("named"), tmp_path / "named")
    model = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
    assert model.num_classes == 3 and list(model.pretrained_cfg["label_names"]) == ["apple", "leaf", "sea"]
    module = FineTuning.from_checkpoint(made("named"))
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = module.head(module.encoder(module.encoder.normalize(images)))
        assert torch.allclose(model(module.encoder.normalize(images)), expected, atol=1e-5)
    pictures = [draw(label, numpy.random.default_rng(label)) for label in range(3)]
    for one, other in zip(answers_again(target, module, pictures), module.predict(pictures), strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


# -- ONNX


def test_a_rotary_encoder_with_a_number_runs_in_onnxruntime_at_any_length(made, graphs):
    session, module = session_of(graphs("rotary_number")), FineTuning.from_checkpoint(made("rotary_number"))
    assert module.encoder.embeddings.ngrams.table.abs().sum() > 0.0
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask"]
    for texts in (TEXTS[1:2], [" ".join(TEXTS * 3), *TEXTS]):
        batch = module.modality.batch_of(texts, module.encoder, module.tokenizer)
        inputs = {name: batch[name].long().numpy() for name in ("input_ids", "attention_mask")}
        value, embedding = session.run(None, inputs)
        assert value[:, 0].tolist() == pytest.approx([row["value"] for row in module.predict(texts)], rel=1e-5)
        assert torch.allclose(torch.from_numpy(embedding), module.features(batch).detach(), atol=1e-5)


def test_a_graph_of_pictures_takes_them_as_they_are(made, graphs):
    directory, module = graphs("named"), FineTuning.from_checkpoint(made("named"))
    images = torch.rand(5, 3, 16, 16)
    logits, probabilities, embedding = session_of(directory).run(None, {"images": images.numpy()})
    with torch.no_grad():
        pooled = module.encoder(module.encoder.normalize(images))
    assert torch.allclose(torch.from_numpy(embedding), pooled, atol=1e-5)
    assert torch.allclose(torch.from_numpy(probabilities), module.head(pooled).softmax(dim=-1), atol=1e-5)
    assert logits.shape == (5, 3) and json.loads((directory / "config.json").read_text())["labels"][0] == "apple"


def test_a_graph_of_causal_text_gives_tokens_and_is_checked_again_after_damage(made, graphs, tmp_path):
    directory = shutil.copytree(graphs("causal"), tmp_path / "copy")
    module = TextPretraining.from_checkpoint(made("causal"))
    inputs = {"input_ids": torch.tensor([[2, 20, 30, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    inputs["token_type_ids"] = torch.tensor([[0, 0, 1, 1]])
    tokens, _ = session_of(directory).run(None, {name: value.numpy() for name, value in inputs.items()})
    expected = module.encoder.forward_features(**inputs, causal=True).detach()
    assert torch.allclose(torch.from_numpy(tokens), expected, atol=1e-5)

    subject = Subject.open(str(made("causal")))
    assert judge(onnx_format.check(subject, directory), "onnxruntime")
    model = onnx.load(directory / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.raw_data = bytes(len(tensor.raw_data))
    onnx.save(model, directory / "model.onnx")
    with pytest.raises(ExportMismatchError, match="token_features by"):
        judge(onnx_format.check(subject, directory), "onnxruntime")


# -- two towers


@pytest.mark.parametrize("name", ["pair", "clip"])
def test_two_towers_compare_texts_and_pictures_in_open_clip(name, made, command, tmp_path, capsys):
    target = tmp_path / "both"
    assert command("export", "--ckpt", str(made(name)), "--to", str(target)) == 0
    assert "(CLIP)" in capsys.readouterr().out
    module = ContrastivePretraining.from_checkpoint(made(name))
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{target}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{target}")
    texts = ["A red number 7", "some sea, " * 20, ""]
    picture = draw(1, numpy.random.default_rng(0), module.vision_encoder.image_size)
    pixels = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None]
    with torch.no_grad():
        found = model.eval().encode_text(tokenizer(texts), normalize=True)
        assert torch.allclose(found, module.embed_texts(module.tokenize(texts)), atol=1e-5)
        found = model.encode_image(transform(picture)[None], normalize=True)
        assert torch.allclose(found, module.embed_pictures(pixels / 255), atol=1e-5)
    assert model.logit_scale.item() == pytest.approx(module.objective.log_scale.item())
    card = (target / "README.md").read_text()
    assert front_matter(target)["library_name"] == "open_clip" and "the text tower from" in card or name == "pair"
    if name == "clip":
        # What was started from, and what it became, are read in the same way.
        again = ContrastivePretraining.from_pretrained(target)
        assert all(
            torch.equal(one, again.state_dict()[key]) for key, one in module.state_dict().items() if "bias" not in key
        )
    else:
        assert model.logit_bias.item() == pytest.approx(module.objective.logit_bias.item())


def run_card(directory: Path) -> dict:
    """What the code in an export's card makes."""
    code = (directory / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict = {}
    exec(code.replace("DIRECTORY", str(directory)).replace('"and another"', repr("many words " * 40)), found)
    return found


def test_two_towers_are_two_graphs_that_cut_long_texts(made, graphs):
    directory, module = graphs("clip"), ContrastivePretraining.from_checkpoint(made("clip"))
    found = run_card(directory)
    assert found["texts"]["input_ids"].shape == (2, 16) == (2, module.inputs["maximum_length"])
    batch = PairEmbedder(module).encode(["one text", "many words " * 40]).batch(numpy.arange(2))
    with torch.no_grad():
        texts, pictures = module.embed_texts(batch), module.embed_pictures(torch.zeros(1, 3, 32, 32))
    assert torch.allclose(torch.from_numpy(found["text_embeds"]), texts, atol=1e-5)
    assert torch.allclose(torch.from_numpy(found["image_embeds"]), pictures, atol=1e-5)
    expected = module.objective.log_scale.exp() * pictures @ texts.T
    assert torch.allclose(torch.from_numpy(found["logits"]), expected.detach(), atol=1e-4)
    for name, axes in (("text_model.onnx", ["batch", "tokens"]), ("vision_model.onnx", ["batch", 3, 32, 32])):
        session = onnxruntime.InferenceSession(directory / name, providers=["CPUExecutionProvider"])
        assert all(one.shape == axes for one in session.get_inputs())
        assert session.get_outputs()[-1].shape == ["batch", 24]


def test_a_tower_is_exported_by_itself(made, tmp_path):
    target = export(f"{made('towers')}:text", tmp_path / "text")
    module = ContrastivePretraining.from_checkpoint(made("towers"))
    inputs = AutoTokenizer.from_pretrained(target)(["a red number 7", "sea"], padding=True, return_tensors="pt")
    weight = load_file(target / "projection" / "model.safetensors")["weight"]
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(target, add_pooling_layer=False)(**inputs).last_hidden_state
        theirs = torch.nn.functional.normalize(mean_pool(tokens, inputs["attention_mask"]) @ weight.T, dim=-1)
        assert torch.allclose(theirs, module.embed_texts(inputs), atol=1e-5)

        target = export(f"{made('towers')}:vision", tmp_path / "vision")
        model, images = timm.create_model(f"local-dir:{target}", pretrained=True).eval(), torch.rand(2, 3, 16, 16)
        theirs = torch.nn.functional.normalize(model(module.vision_encoder.normalize(images)), dim=-1)
        assert torch.allclose(theirs, module.embed_pictures(images), atol=1e-5)


# -- what goes wrong


@pytest.mark.parametrize(("name", "form"), [("run", transformers_format), ("masked", timm_format)])
def test_damage_between_writing_and_checking_leaves_nothing(name, form, made, tmp_path, monkeypatch, capsys):
    real = form.check

    def damaged(subject, directory):
        tensors = load_file(directory / "model.safetensors")
        last = next(key for key in sorted(tensors) if "mlp.fc2.weight" in key or "output.dense.weight" in key)
        tensors[last][0, 0] += 0.5
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return real(subject, directory)

    monkeypatch.setattr(form, "check", damaged)
    assert main(["export", "--ckpt", str(made(name)), "--to", str(tmp_path / "place" / "export")]) == 1
    errors = capsys.readouterr().err
    assert "they differ in" in errors and "token_features by" in errors and errors.count("\n") == 1
    assert list((tmp_path / "place").iterdir()) == []


def test_another_tokenizer_is_seen(made, tmp_path, monkeypatch, capsys):
    real = transformers_format.check

    def damaged(subject, directory):
        path = directory / "tokenizer.json"
        path.write_text(path.read_text().replace('"lowercase":true', '"lowercase":false'))
        settings = json.loads((directory / "tokenizer_config.json").read_text()) | {"do_lower_case": False}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        return real(subject, directory)

    monkeypatch.setattr(transformers_format, "check", damaged)
    assert main(["export", "--ckpt", str(made("run")), "--to", str(tmp_path / "export")]) == 1
    assert "tokenizer" in capsys.readouterr().err and not (tmp_path / "export").exists()


WORDS = [f"{first}{second}{third}" for first in "bdfgkl" for second in "aeiou" for third in "bdfgklmnprst"]
OTHERS = {
    "case": {"lowercase": False},
    "accents": {"lowercase": True, "strip_accents": False},
    "Chinese": {"lowercase": True, "split_chinese": False},
}


@pytest.mark.parametrize("kind", [*OTHERS, "punctuation", "what is left out"])
def test_the_checks_texts_tell_any_two_tokenizers_apart(kind):
    pieces = [
        *SPECIAL_TOKENS,
        *WORDS,
        "ca",
        "ça",
        "the",
        "The",
        "end",
        "END",
        "3",
        ",",
        "14",
        "東",
        "京",
        "東京",
        "##b",
        "a",
    ]
    module = SimpleNamespace(encoder=make_encoder(max_positions=512))
    ours = WordPieceTokenizer(from_pieces(pieces, lowercase=True))
    other = from_pieces(pieces, **OTHERS.get(kind, {"lowercase": True}))
    if kind == "punctuation":
        other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "what is left out":
        other.normalizer = normalizers.BertNormalizer(clean_text=False)
    for batch in seeded_texts(Subject(Path(), 0, {}, module, ours)):
        assert [ours.encode(text) for text in batch.first] != [
            other.encode(text, add_special_tokens=False).ids for text in batch.first
        ]


def test_without_its_database_the_card_says_what_is_unknown(made, tmp_path):
    run = shutil.copytree(made("run").parents[3], tmp_path / "moved")
    (run / "mlflow.db").unlink()
    record = next(run.glob("small/bert-*/run.json"))
    record.write_text(record.read_text().replace(str(made.directory), "/no/such/place"))
    target = export(record.parent / "checkpoints" / "last.ckpt", tmp_path / "export")
    card = (target / "README.md").read_text()
    assert "database is gone" in card and "The metrics are unknown" in card
    # The config and the checkpoint still tell this much, and no new database is made by asking.
    assert str(made.corpus) in card and "| optimiser steps | 20 |" in card
    assert not (run / "mlflow.db").exists()


def test_only_an_export_is_replaced(made, tmp_path, capsys):
    target = tmp_path / "export"
    arguments = ["export", "--ckpt", str(made("masked")), "--to", str(target)]
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    assert main(arguments) == 2 and "is not empty" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 2 and "does not remove" in capsys.readouterr().err
    assert (target / "thesis.txt").exists()

    (target / "thesis.txt").unlink()
    assert main(arguments) == 0
    (target / "old").write_text("of the export before")
    assert main(arguments) == 2
    assert main([*arguments, "--overwrite"]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_cannot_be_exported_is_one_sentence(made, tmp_path, monkeypatch, capsys):
    def refused(name: str, *arguments: str) -> str:
        target = tmp_path / "refused"
        reference = str(made(name)) if hasattr(made, name) else name
        capsys.readouterr()
        assert main(["export", "--ckpt", reference, "--to", str(target), *arguments]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and not target.exists()
        return errors

    rotary = refused("rotary")
    assert "positions: rotary and norm: rms and attention_window: 4 and ngrams: 3; --format onnx" in rotary
    assert "--format timm does not hold: take hf or onnx" in refused("run", "--format", "timm")
    assert "--format hf does not hold: take timm or onnx" in refused("masked", "--format", "hf")
    assert "There is no last.ckpt" in refused("last")
    both = refused("towers")
    assert (
        "a text tower with causal: false and pooling: mean and embedding_norm: true and norm_order: post and a" in both
    )
    assert (
        "vision tower with class_token: false and pooling: mean" not in both
        and "--format onnx holds any towers" in both
    )
    assert "is two towers, which --format hf does not hold: take open_clip or onnx, or" in refused(
        "towers", "--format", "hf"
    )
    assert "holds one TextEncoder and no two towers: leave ':text' out" in refused(f"{made('run')}:text")
    assert "invalid choice: 'torch'" in refused("run", "--format", "torch")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "needs onnxruntime" in (sentence := refused("masked", "--format", "onnx"))
    assert "pip install 'lit_pretrain[export]'" in sentence
    assert main(["export", "--ckpt", str(made("masked")), "--to", str(made("masked"))]) == 2
    assert "is a file" in capsys.readouterr().err
    assert set(export_directory.FORMATS) == {"hf", "timm", "open_clip", "onnx"}
