"""Names that no hub gives."""

import datasets
import huggingface_hub
import pytest

from lit_pretrain.data.hub_source import load_from_hub
from lit_pretrain.errors import UserError


def test_a_hub_that_cannot_be_reached_is_one_sentence_within_seconds(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(UserError, match=r"the hub cannot be reached, and no copy is in the cache\): check data\.path"):
        load_from_hub("nobody/nothing-here", None, None, "train")
    # As it was before, whatever the environment says.
    assert (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE) == (before, False)
