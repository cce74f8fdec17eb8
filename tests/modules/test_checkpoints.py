"""What differs between a checkpoint's settings and a config's, and the classes that a checkpoint names."""

import importlib
import json
import sys

import pytest
import torch
from labelled_texts import TOKENIZER
from labelled_texts import make_encoder as make_text
from small_pictures import make_encoder

from lit_pretrain.backbone import TransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining
from lit_pretrain.modules.checkpoints import difference
from lit_pretrain.modules.contrastive.record import arguments_of
from lit_pretrain.modules.contrastive.replay import TextReplay
from lit_pretrain.modules.starting_points import load_starting_point
from lit_pretrain.objectives import Contrastive, MaskedLanguageModeling, Rotation
from lit_pretrain.objectives.objective import objective_from


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
    # Of encoders those came later whose default is on.
    ours, theirs = (make_text(vocabulary_size=9).settings() for _ in range(2))
    for name in ("norm", "norm_bias", "first_attention_norm", "global_every", "attention_window"):
        del theirs["transformer"][name]
    assert difference("encoder", theirs, ours) == []
    ours["transformer"]["norm"] = "rms"
    assert difference("encoder", theirs, ours) == ["encoder.transformer.norm (None there, rms here)"]


OWN = """
from lit_pretrain.backbone import TextEncoder
from lit_pretrain.objectives import MaskedLanguageModeling

class Rotation(MaskedLanguageModeling):
    def __init__(self, share: float = 0.2):
        super().__init__(probability=share)
        self.share = share

class Encoder(TextEncoder):
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes modules of a user's own: an objective, which happens to be called as one of ours is, and an encoder."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name):
        (tmp_path / f"{name}.py").write_text(OWN)
        return importlib.import_module(name)

    yield make
    for name in ("own_first", "own_second"):
        sys.modules.pop(name, None)


def saved(module, path, rename=None):
    """A module's checkpoint; `rename` is done to its record."""
    record = rename(module.checkpoint_record()) if rename else module.checkpoint_record()
    torch.save({"lit_pretrain": record, "state_dict": module.state_dict(), "global_step": 3}, path)
    return path


def renamed(record, old, new):
    """A record with another name in it."""
    return json.loads(json.dumps(record).replace(old, new))


def test_classes_of_ones_own_are_imported_from_where_they_are(own, tmp_path):
    first = own("own_first")
    encoder = first.Encoder(transformer=TransformerConfig(depth=1, width=16, heads=2), max_positions=16)
    module = TextPretraining(encoder, [first.Rotation(0.3)], seed=0)
    module.tokenizer = TOKENIZER
    module.configure_model()
    record = module.checkpoint_record()
    assert record["objectives"] == [{"class_path": "own_first.Rotation", "init_args": {"share": 0.3}}]
    assert record["encoder_class"] == "own_first.Encoder"
    # A module that nothing has imported so far, with the same classes.
    (tmp_path / "own_second.py").write_text(OWN)
    path = saved(module, tmp_path / "second.ckpt", lambda record: renamed(record, "own_first", "own_second"))
    assert "own_second" not in sys.modules
    loaded = TextPretraining.from_checkpoint(path)
    assert type(loaded.objectives[0]).__module__ == type(loaded.encoder).__module__ == "own_second"
    assert loaded.objectives[0].share == 0.3
    start = load_starting_point(str(path))
    assert type(start.encoder).__module__ == "own_second" and start.lineage["init_from_objectives"] == "Rotation"
    assert start.tokenizer.hash == TOKENIZER.hash
    # As earlier versions wrote them, of whatever was imported; ours has no such argument.
    path = saved(module, tmp_path / "old.ckpt", lambda record: renamed(record, "own_first.Encoder", "Encoder"))
    assert type(TextPretraining.from_checkpoint(path).encoder).__name__ == "Encoder"


def test_a_replayed_objective_of_ones_own_is_imported_too(own):
    first = own("own_first")
    record = {"replays": {"text": TextReplay([first.Rotation(0.3)], 0.5).settings()}, "share_weights": "none"}
    record |= {"embedding_width": 16, "objective": Contrastive().settings()}
    record |= {f"{name}_encoder": one.settings() for name, one in (("text", make_text()), ("vision", make_encoder()))}
    replay = arguments_of(record)["text_replay"]
    assert type(replay.objectives[0]) is first.Rotation and replay.weight == 0.5


@pytest.mark.parametrize(
    ("class_path", "words"),
    [
        ("nowhere.Objective", "nowhere.Objective, which cannot be imported .*put its directory into PYTHONPATH"),
        ("own_broken.Objective", r"own_broken.Objective, which cannot be imported \(No module named 'missing'\)"),
        ("os.system", "os.system, which is no Objective of the suite's"),
        ("Forgotten", "class Forgotten, which is not known here"),
        ("MaskedLanguageModeling", r"does not take the arguments that the checkpoint keeps of it \(.*'share'\)"),
    ],
)
def test_a_class_that_is_not_to_be_had_is_named(own, tmp_path, class_path, words):
    own("own_first")
    (tmp_path / "own_broken.py").write_text("import missing\n")
    with pytest.raises(UserError, match=words):
        objective_from({"class_path": class_path, "init_args": {"share": 0.3}})


def test_ours_is_meant_by_a_short_name_and_what_cannot_be_kept_is_refused_at_once(own):
    first = own("own_first")
    assert type(objective_from(Rotation().settings())) is Rotation is not first.Rotation

    class Careless(MaskedLanguageModeling):
        def __init__(self, share: float = 0.2):
            super().__init__(share)

    with pytest.raises(UserError, match=r"Careless .*test_checkpoints.py. keeps no attribute of .* its argument share"):
        TextPretraining(make_text(), [Careless()])
    careless = MaskedLanguageModeling()
    careless.weight = torch.tensor(1.0)
    with pytest.raises(UserError, match="MaskedLanguageModeling has arguments that no checkpoint can keep"):
        TextPretraining(make_text(), [careless])
