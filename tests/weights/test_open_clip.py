"""CLIP weights of open_clip, against its own models, to 1e-4 in fp32."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from clip_models import MEAN, QUICK, RICH, TEXT, VISION, make_clip, write_clip
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from lit_pretrain.backbone import TextEncoder, VisionEncoder
from lit_pretrain.errors import UserError
from lit_pretrain.weights.open_clip import CONFIG, WEIGHTS, find_on_hub, is_checkpoint, load_tower

TEXTS = ["a dog", "", "two small cats, asleep in the sun on a mat that is far too long for the context of this model"]


def load_encoder(path: Path, tower: str) -> TextEncoder | VisionEncoder:
    """The encoder of one tower."""
    return {"text": TextEncoder, "vision": VisionEncoder}[tower].from_public(load_tower(path, tower))


def features(directory: Path, pictures: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of pictures that are normalised already, and of texts by their ids alone."""
    inputs = {"vision": pictures, "text": ids}
    with torch.no_grad():
        return tuple(
            load_encoder(directory, tower)(values) @ load_tower(directory, tower).projection.T
            for tower, values in inputs.items()
        )


@pytest.mark.parametrize(
    ("config", "kind", "safe"),
    [(QUICK, open_clip.CLIP, False), (RICH, open_clip.CustomTextCLIP, True)],
    ids=["OpenAI's", "another's"],
)
def test_both_towers_agree_with_open_clip(config: dict, kind: type, safe: bool, tmp_path: Path) -> None:
    model = make_clip(config, kind)
    write_clip(tmp_path, model, config, safe)
    sizes = config["vision_cfg"]["image_size"]
    side = sizes if isinstance(sizes, int) else sizes[0]
    pictures = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    ids = open_clip.tokenize(TEXTS, config["text_cfg"]["context_length"])
    # Shorter than the context, as long as it, and cut.
    assert [int((row > 0).sum()) for row in ids][:2] == [4, 2] and bool((ids[2] > 0).all())

    ours = features(tmp_path, pictures, ids)

    with torch.no_grad():
        expected = model.encode_image(pictures), model.encode_text(ids)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    text, vision = load_tower(tmp_path, "text"), load_tower(tmp_path, "vision")
    assert text.log_scale == vision.log_scale == pytest.approx(model.logit_scale.item())
    assert text.logit_bias == config.get("init_logit_bias")
    assert load_encoder(tmp_path, "vision").channel_means == tuple(MEAN)
    assert not load_encoder(tmp_path, "text").training


def test_padding_that_is_left_out_changes_nothing(tmp_path: Path) -> None:
    write_clip(tmp_path, make_clip(QUICK), QUICK)
    encoder = load_encoder(tmp_path, "text")
    ids = open_clip.tokenize(TEXTS[:2], TEXT["context_length"])
    with torch.no_grad():
        whole = encoder(ids)
        torch.testing.assert_close(encoder(ids[:, :4], ids[:, :4] > 0), whole)
        changed = ids.clone()
        changed[1, 2:] = 5
        torch.testing.assert_close(encoder(changed), whole)


def test_a_bare_file_tells_by_its_shapes(tmp_path: Path) -> None:
    config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION | {"width": 128, "head_width": 64}}
    config["text_cfg"] = TEXT | {"width": 64, "heads": 1}
    model = make_clip(config)
    # As in OpenAI's archives: numbers beside the weights, and half precision.
    state = {name: value.half() for name, value in model.state_dict().items()}
    torch.save(state | {"input_resolution": torch.tensor(32)}, tmp_path / "openai.pt")
    model.half().float()
    pictures, ids = torch.randn(2, 3, 32, 32), open_clip.tokenize(TEXTS, 20)
    ours = features(tmp_path / "openai.pt", pictures, ids)
    with torch.no_grad():
        torch.testing.assert_close(ours[0], model.encode_image(pictures), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours[1], model.encode_text(ids), atol=1e-4, rtol=1e-4)
    # As open_clip's training writes, of several processes: no such number, so GELU.
    wrapped = {f"module.{name}": value for name, value in make_clip(config).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "epoch_3.pt")
    assert is_checkpoint(tmp_path / "epoch_3.pt")
    assert load_encoder(tmp_path / "epoch_3.pt", "vision").config.activation == "gelu"
    # A config beside the file tells.
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": config}))
    assert load_encoder(tmp_path / "epoch_3.pt", "vision").config.activation == "quick_gelu"


@pytest.mark.parametrize(
    ("changes", "tower", "words"),
    [
        ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "vision", "timm's model convnext_base"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "vision", "a ModifiedResNet"),
        ({"vision_cfg": {"attentional_pool": True}, "multimodal_cfg": {"layers": 2}}, "vision", r"\(CoCa\) and attent"),
        ({"vision_cfg": {"qk_norm": True}}, "vision", "has qk_norm"),
        ({"vision_cfg": {"image_size": [32, 48]}}, "vision", "an oblong image_size"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "text", "the hub's model roberta-base"),
        ({"text_cfg": {"no_causal_mask": True, "pool_type": "last"}}, "text", "no_causal_mask.* and pool_type 'last'"),
        ({"text_cfg": {"proj_bias": True}}, "text", "has proj_bias"),
        ({"text_cfg": {"act_kwargs": {"inplace": True}}}, "text", "an activation with"),
    ],
)
def test_towers_that_we_lack_are_named(changes: dict, tower: str, words: str, tmp_path: Path) -> None:
    config = {
        name: QUICK.get(name, {}) | value if isinstance(value, dict) else value
        for name, value in (QUICK | changes).items()
    }
    write_clip(tmp_path, make_clip(QUICK), config)
    with pytest.raises(UserError, match=words):
        load_tower(tmp_path, tower)
    # The other one may be whole.
    if "multimodal_cfg" not in changes:
        load_tower(tmp_path, "text" if tower == "vision" else "vision")


def test_names_tell_of_foreign_towers_too(tmp_path: Path) -> None:
    for number, (name, tower, words) in enumerate(
        (
            ("visual.trunk.patch_embed.proj.weight", "vision", "one of timm's models"),
            ("visual.layer1.0.conv1.weight", "vision", "a ModifiedResNet"),
            ("text.transformer.embeddings.word_embeddings.weight", "text", "one of the hub's models"),
            ("text_decoder.ln_final.weight", "text", "a text decoder"),
            ("visual.other", "vision", r"lacks visual.conv1.weight, .*, so it holds no vision tower"),
        )
    ):
        path = tmp_path / f"{number}.safetensors"
        save_file({name: torch.zeros(1)}, path)
        with pytest.raises(UserError, match=words):
            load_tower(path, tower)


def test_what_is_broken_is_said(tmp_path: Path) -> None:
    write_clip(tmp_path, make_clip(QUICK), QUICK)
    path, whole = tmp_path / WEIGHTS[0], load_file(tmp_path / WEIGHTS[0])

    def words_of(state: dict[str, torch.Tensor], tower: str) -> str:
        save_file(state, path)
        with pytest.raises(UserError) as caught:
            load_encoder(tmp_path, tower)
        return str(caught.value)

    lacking = {name: value for name, value in whole.items() if name != "visual.ln_post.bias"}
    said = words_of(lacking | {"visual.more": torch.zeros(1)}, "vision")
    assert "missing visual.ln_post.bias; unexpected visual.more" in said
    without_projection = {name: value for name, value in whole.items() if name != "visual.proj"}
    assert "missing visual.proj" in words_of(without_projection, "vision")
    assert "unexpected more" in words_of(whole | {"more": torch.zeros(1)}, "text")
    without_scale = {name: value for name, value in whole.items() if name != "logit_scale"}
    assert "missing logit_scale" in words_of(without_scale, "text")
    other = whole | {"token_embedding.weight": torch.zeros(10, 32)}
    assert "has shape (10, 32) where (49408, 32) is expected for 'token_embedding.weight'" in words_of(other, "text")
    assert "has shape (24, 8) for 'text_projection'" in words_of(
        whole | {"text_projection": torch.zeros(24, 8)}, "text"
    )
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_tower(tmp_path, "text")
    path.unlink()
    with pytest.raises(UserError, match="has no weights"):
        load_tower(tmp_path, "text")
    (tmp_path / CONFIG).write_text("{")
    torch.save(whole, tmp_path / "only.pt")
    with pytest.raises(UserError, match="is not valid JSON"):
        load_tower(tmp_path, "text")
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(UserError, match="has no text_cfg"):
        load_tower(tmp_path, "text")


class Program(torch.nn.Module):
    """To be written as OpenAI writes its models."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Linear(2, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.visual(inputs)


def test_an_archive_of_a_program_is_not_run(tmp_path: Path) -> None:
    torch.jit.script(Program()).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(UserError, match="is a TorchScript archive"):
        load_tower(tmp_path / "ViT-B-32.pt", "vision")


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--somebody--clip" / "snapshots" / "abc"
    write_clip(snapshot, make_clip(QUICK), QUICK, safe=False)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert find_on_hub("somebody/clip") == snapshot and find_on_hub("somebody/bert") is None
    (snapshot / WEIGHTS[1]).unlink()
    with pytest.raises(UserError, match="gave open_clip_config.json of 'somebody/clip' but neither"):
        find_on_hub("somebody/clip")
