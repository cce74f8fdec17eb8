"""Towers that start from a CLIP of open_clip's: projections, temperature and tokenizer too, in Python and YAML."""

import json
import math

import open_clip
import pytest
import timm
import torch
from clip_models import QUICK, RICH, make_clip, write_clip
from small_pairs import make_encoders, pair_config, write_pairs
from small_training import write_config

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import VisionEncoder
from lit_pretrain.data.text import byte_pair_tokenizer
from lit_pretrain.data.text.byte_pair_tokenizer import BytePairTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.modules import ContrastivePretraining, FineTuning
from lit_pretrain.modules.contrastive.towers import TowerConfig
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.objectives import Contrastive

TEXTS = ["a red fox", "a photo of two blue birds on a wire"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP of open_clip's, and its directory."""
    model = make_clip(QUICK)
    return model, str(write_clip(tmp_path_factory.mktemp("clip"), model, QUICK))


def test_three_lines_give_what_open_clip_gives(clip):
    theirs, path = clip
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    model = ContrastivePretraining.from_pretrained(path)
    with torch.no_grad():
        pictures, texts = model.embed_pictures(images), model.embed_texts(model.tokenize(TEXTS))
        logits = model.objective.log_scale.exp() * pictures @ texts.T

        expected, _ = theirs.get_logits(model.vision_encoder.normalize(images), open_clip.tokenize(TEXTS, 20))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert model.embedding_width == 24 and model.objective.loss == "clip" and not model.training
    assert model.lineage == {"text_init_from": path, "vision_init_from": path}


def test_a_training_goes_on_from_it_and_its_checkpoint_needs_it_no_more(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    theirs, path = clip
    start = {"init_from": path, "learning_rate_factor": 0.1}
    model = {"text": start, "vision": start, "text_encoder": None, "vision_encoder": None, "embedding_width": None}
    config = pair_config(
        write_pairs(tmp_path / "pairs.parquet"),
        {"max_steps": 2, "limit_val_batches": 1},
        model | {"optimizer": {"learning_rate": 1e-6}},
        maximum_length=20,
        stored_size=32,
    )
    assert main(["fit", "--config", str(write_config(tmp_path / "config.yaml", config))]) == 0
    (checkpoint,) = (tmp_path / "runs").glob("small/*/checkpoints/last.ckpt")
    trained = ContrastivePretraining.from_checkpoint(checkpoint)
    assert isinstance(trained.tokenizer, BytePairTokenizer)
    ids = open_clip.tokenize(TEXTS, 20)
    with torch.no_grad():
        close = trained.embed_texts(trained.tokenize(TEXTS)) - theirs.encode_text(ids, normalize=True)
    assert 0 < close.abs().max() < 1e-2

    (tmp_path / "captions.txt").write_text("a red heart\na cat\n")
    found = tmp_path / "found.json"
    searched = ["--captions", str(tmp_path / "captions.txt"), "--query", "a cat", "--json", str(found)]
    assert main(["search", "--ckpt", str(checkpoint), *searched]) == 0
    nearest, other = json.loads(found.read_text())
    assert nearest["text"] == "a cat" and nearest["score"] == pytest.approx(1.0, abs=1e-5) and other["score"] < 0.999


def test_the_loss_is_the_checkpoints_unless_another_is_asked_for(clip, tmp_path):
    _, path = clip
    sigmoid = str(write_clip(tmp_path, make_clip(RICH, open_clip.CustomTextCLIP), RICH))

    def made(source, objective=None):
        start = TowerConfig(init_from=source)
        module = ContrastivePretraining(text=start, vision=start, objective=objective).objective
        module.fit_to(8)
        return module.loss, module.log_scale.item(), module.logit_bias if module.loss == "clip" else module.bias

    scale = math.log(1 / 0.07)  # where open_clip starts
    assert made(sigmoid) == ("siglip", pytest.approx(scale), -7.0)
    assert made(sigmoid, Contrastive("siglip", temperature=0.5)) == ("siglip", pytest.approx(math.log(2)), None)
    assert made(path, Contrastive("siglip")) == ("siglip", pytest.approx(math.log(10)), None)
    assert made(path, Contrastive(duplicates="mask")) == ("clip", pytest.approx(scale), None)


def test_the_tokenizer_is_the_one_beside_the_weights_or_the_packages(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip", make_clip(QUICK), QUICK)
    packages = BytePairTokenizer.of_open_clip()
    assert load_starting_point(str(path), "text").tokenizer.hash == packages.hash
    assert load_starting_point(str(path), "vision").tokenizer is None
    # Without the package, as where it is not installed.
    monkeypatch.setattr(byte_pair_tokenizer, "find_spec", lambda name: None)
    assert load_starting_point(str(path), "text").tokenizer is None
    with pytest.raises(UserError, match="put a tokenizer.json beside its weights, or pip install open_clip_torch"):
        ContrastivePretraining.from_pretrained(path).tokenize(TEXTS)
    (path / "tokenizer.json").write_text(packages.to_json(), encoding="utf-8")
    assert load_starting_point(str(path), "text").tokenizer.hash == packages.hash


def test_what_a_bare_file_does_not_tell_is_said_and_it_is_read_once(tmp_path, capsys, monkeypatch):
    torch.save(make_clip(QUICK).state_dict(), tmp_path / "clip.pt")
    read, read_files = timm.models.load_state_dict, []
    monkeypatch.setattr(
        timm.models, "load_state_dict", lambda path, **settings: read_files.append(path) or read(path, **settings)
    )
    # Its kind, both towers, and nothing that stays behind.
    both = ContrastivePretraining.from_pretrained(tmp_path / "clip.pt")
    assert len(read_files) == 1 and both.embedding_width == 24
    start = load_starting_point(str(tmp_path / "clip.pt"))
    assert len(read_files) == 2
    assert start.projection.shape == (24, 48) and start.encoder.config.activation == "gelu"
    assert "the vision tower: heads of 64 features and gelu are taken" in capsys.readouterr().err


def test_fine_tuning_takes_the_pictures_tower_unless_told(clip):
    theirs, path = clip
    module = FineTuning(init_from=path)
    assert isinstance(module.encoder, VisionEncoder) and module.encoder.pooling == "cls"
    torch.testing.assert_close(
        module.encoder.transformer.final_norm.weight, theirs.visual.ln_post.weight, atol=0.0, rtol=0.0
    )
    text = FineTuning(init_from=f"{path}:text")
    assert text.encoder.causal and isinstance(text.tokenizer, BytePairTokenizer)
    changed = FineTuning(init_from=path, pooling="mean", stochastic_depth=0.1)
    assert changed.encoder.pooling == "mean" and changed.start.fresh == [] and changed.start.left_out == []


def test_embeddings_have_one_width(clip):
    _, path = clip
    start = TowerConfig(init_from=path)
    text = {"text_encoder": make_encoders()["text_encoder"]}
    assert ContrastivePretraining(**text, vision=start).embedding_width == 24
    assert ContrastivePretraining(**make_encoders()).embedding_width == 256
    with pytest.raises(UserError, match="embedding_width has 16 and the projection of model.vision.init_from has 24"):
        ContrastivePretraining(**text, vision=start, embedding_width=16)
