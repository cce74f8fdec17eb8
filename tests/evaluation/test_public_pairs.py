"""`search` and `evaluate` with a CLIP of open_clip's that no run of ours has touched, beside open_clip itself."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from clip_models import QUICK, make_clip, write_clip
from PIL import Image
from small_pictures import COLORS, write_pictures

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import VisionEncoder
from lit_pretrain.data.byte_pair_tokenizer import BytePairTokenizer
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
