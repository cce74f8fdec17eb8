"""`search` and `evaluate` with a CLIP of open_clip's that no run of ours has touched, beside open_clip itself."""

import json
from pathlib import Path

import numpy
import open_clip
import pytest
import torch
from clip_models import QUICK, make_clip, write_clip
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from small_pictures import COLORS, write_pictures

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import VisionEncoder
from lit_pretrain.data.text.byte_pair_tokenizer import BytePairTokenizer
from lit_pretrain.modules.starting_points import load_starting_point

SIZE = QUICK["vision_cfg"]["image_size"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """open_clip's model, and its directory."""
    model = make_clip(QUICK)
    return model, write_clip(tmp_path_factory.mktemp("clip"), model, QUICK)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")


def write_folder(directory):
    """Plain pictures, so that no way of resizing them matters; their colours by their names."""
    directory.mkdir()
    for name, color in COLORS.items():
        Image.new("RGB", (SIZE, SIZE), color).save(directory / f"{name}.png")
    return directory


@pytest.mark.parametrize("as_file", [False, True])
def test_search_scores_as_open_clip_does(clip, tmp_path, as_file):
    theirs, path = clip
    rows = tmp_path / "rows.json"
    given = path / "open_clip_model.safetensors" if as_file else path
    folder = write_folder(tmp_path / "folder")

    command = ["search", "--ckpt", str(given), "--images", str(folder), "--query", "a red fox", "--json", str(rows)]
    assert main(command) == 0

    encoder = load_starting_point(str(path), "vision").encoder
    assert isinstance(encoder, VisionEncoder)
    for row in json.loads(rows.read_text()):
        color = torch.tensor(COLORS[Path(row["picture"]).stem]) / 255
        images = encoder.normalize(color.view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE))
        with torch.no_grad():
            picture = theirs.encode_image(images, normalize=True)
            text = theirs.encode_text(open_clip.tokenize(["a red fox"], 20), normalize=True)
        # In bf16 where the processor has it.
        assert row["score"] == pytest.approx(float(picture @ text.T), abs=0.02)
    assert len(json.loads(rows.read_text())) == len(COLORS)


def test_pictures_are_classified_by_names_and_probed(clip, tmp_path):
    _, path = clip
    rows = tmp_path / "rows.json"
    write_pictures(tmp_path / "labelled.parquet", 48, seed=5)
    data = ["--data.path", str(tmp_path / "labelled.parquet"), "--data.image_column", "image"]
    data += ["--data.label_column", "label"]

    command = ["evaluate", str(path), *data, "--layers", "last", "--no-log", "--json", str(rows)]
    assert main([*command, "--protocol", "zero-shot", "knn"]) == 0

    found = {row["protocol"]: row for row in json.loads(rows.read_text())[::-1]}
    assert found["zero-shot"]["stage_samples"] > 0 and found["zero-shot"]["chance"] == pytest.approx(1 / 3)
    assert {row["resolution"] for row in found.values()} == {f"{SIZE} px"}


WORDS = "fox owl sea leaf apple moon fire snow bread iron rose wolf ant cloud river stone".split()


def make_vivid_clip():
    """A CLIP that heeds its pictures and words enough for neither to be always named alike, as fresh ones name them."""
    model = make_clip(QUICK)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif "out_proj.weight" in name or "in_proj_weight" in name or "conv1" in name:
                parameter.mul_(4)
            elif name in ("visual.positional_embedding", "visual.class_embedding"):
                parameter.mul_(0.1)
        model.token_embedding.weight.mul_(10)
    return model


def test_pictures_are_named_as_open_clip_names_them(tmp_path):
    theirs = make_vivid_clip()
    path = write_clip(tmp_path / "clip", theirs, QUICK)
    encoder = load_starting_point(str(path), "vision").encoder
    coarse = numpy.random.default_rng(0).integers(0, 256, (96, 2, 2, 3), dtype="uint8")
    pixels = numpy.kron(coarse, numpy.ones((1, SIZE // 2, SIZE // 2, 1), "uint8"))
    with torch.no_grad():
        images = encoder.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
        prompts = open_clip.tokenize([f"a photo of a {word}." for word in WORDS], 20)
        pictures = theirs.encode_image(images, normalize=True)
        scores = pictures @ theirs.encode_text(prompts, normalize=True).T
    best = scores.topk(2).values
    clear = (best[:, 0] - best[:, 1] > 0.03).nonzero().flatten().tolist()  # also in bf16, where the processor has it
    named = scores.argmax(dim=1)[clear]
    assert len(clear) > 40 and named.unique().numel() >= 5

    for shift, accuracy in ((0, 1.0), (1, 0.0)):
        labels = ((named + shift) % len(WORDS)).tolist()
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=WORDS)})
        rows = {"image": [Image.fromarray(pixels[index]) for index in clear], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{shift}.parquet"))
        command = ["evaluate", str(path), "--data.path", str(tmp_path / f"{shift}.parquet")]
        command += ["--data.image_column", "image", "--data.label_column", "label"]
        found = tmp_path / f"{shift}.json"
        assert main([*command, "--protocol", "zero-shot", "--no-log", "--json", str(found)]) == 0
        row = json.loads(found.read_text())[0]  # the accuracy of all
        assert row["stage_samples"] == len(clear) and row["mean"] == accuracy


def test_what_is_missing_is_said(clip, tmp_path, monkeypatch, capsys):
    _, path = clip
    folder = write_folder(tmp_path / "folder")

    assert main(["search", "--ckpt", str(path), "--query", "a fox"]) == 2
    assert "give --images DIR, --captions FILE or --embeddings FILE" in capsys.readouterr().err
    # No tokenizer beside the weights, and no package that has CLIP's.
    monkeypatch.setattr(BytePairTokenizer, "of_open_clip", staticmethod(lambda: None))
    assert main(["search", "--ckpt", str(path), "--images", str(folder), "--query", "a fox"]) == 2
    assert "The text tower has no tokenizer" in capsys.readouterr().err
    # A picture needs none.
    assert main(["search", "--ckpt", str(path), "--images", str(folder), "--query-image", str(folder / "sea.png")]) == 0
