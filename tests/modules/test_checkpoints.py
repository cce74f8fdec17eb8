"""What differs between a checkpoint's settings and a config's."""

from lit_pretrain.modules.checkpoints import difference


def test_differences_are_named_and_settings_that_came_later_are_none():
    theirs = {"width": 8, "inner": {"depth": 2, "bias": True}, "pooling": None}
    assert difference("encoder", theirs, {"width": 8, "inner": {"depth": 2, "bias": True}, "pooling": None}) == []
    ours = {"width": 8, "inner": {"depth": 3, "bias": True, "causal": False}, "pooling": "cls", "gate": None}
    assert difference("encoder", theirs, ours) == [
        "encoder.inner.depth (2 there, 3 here)",
        "encoder.pooling (None there, cls here)",
    ]
    # On here, it makes a difference; and so does what is on there and gone here.
    assert difference("encoder", {}, {"causal": True}) == ["encoder.causal (None there, True here)"]
    assert difference("encoder", {"causal": True}, {"causal": False}) == ["encoder.causal (True there, False here)"]
    assert difference("encoder", {"gone": 1}, {}) == ["encoder.gone (1 there, None here)"]
