"""What a cell starts from is settled before anything is trained."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from lit_pretrain.errors import UserError
from lit_pretrain.studies.cell_configs import settle_start


def config(reference: str | None) -> dict:
    return {"model": {"init_args": {"init_from": reference}}}


def test_public_names_stay_and_change_with_their_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    snapshot = tmp_path / "models--somebody--bert" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--somebody--bert" / "refs").mkdir()
    (tmp_path / "models--somebody--bert" / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    for name in ("somebody/bert", "vit_tiny_patch16_224"):
        cell = config(name)
        identity = settle_start(cell)
        assert cell == config(name) and identity.startswith(name)
    before = settle_start(config("somebody/bert"))
    (snapshot / "config.json").write_text('{"model_type": "bert"}')
    assert settle_start(config("somebody/bert")) != before
    assert settle_start(config(None)) == ""
    said = {"somebody/else": "somebody/else", "no-such-run": "no runs", "./missing/directory": "missing"}
    for wrong, part in said.items():
        with pytest.raises(UserError, match=part):
            settle_start(config(wrong))
