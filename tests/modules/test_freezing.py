"""What is frozen, and from which step on each layer is trained."""

import pytest
from labelled_texts import make_encoder as make_text_encoder
from small_pictures import make_encoder

from lit_pretrain.errors import UserError
from lit_pretrain.modules.freezing import FreezingConfig, freeze, unfreezing_steps

MAKES = [make_encoder, lambda: make_text_encoder(vocabulary_size=20)]


@pytest.mark.parametrize("make", MAKES, ids=["pictures", "text"])
@pytest.mark.parametrize(
    ("config", "trained"),
    [
        (FreezingConfig(), {"embeddings", "blocks.0", "blocks.1", "final_norm"}),
        (FreezingConfig(embeddings=True), {"blocks.0", "blocks.1", "final_norm"}),
        (FreezingConfig(1), {"blocks.1", "final_norm"}),
        (FreezingConfig(2), {"final_norm"}),
        (FreezingConfig("all"), set()),
    ],
    ids=["nothing", "embeddings", "a block", "all blocks", "all"],
)
def test_the_first_blocks_stay(make, config, trained):
    encoder = make()
    frozen = freeze(encoder, config)
    names = {name for name, one in encoder.named_parameters() if one.requires_grad}
    parts = ("embeddings", "blocks.0", "blocks.1", "final_norm")
    there = {part for part in parts for name, _ in encoder.named_parameters() if part in name}
    assert {part for part in parts if any(part in name for name in names)} == trained & there
    held = {id(one) for module in frozen for one in module.parameters()}
    assert held == {id(one) for one in encoder.parameters() if not one.requires_grad}


@pytest.mark.parametrize("make", MAKES, ids=["pictures", "text"])
def test_layers_wait_for_their_turn(make):
    encoder = make()
    # Layers: 0 the embeddings, 1 and 2 the blocks, 3 what follows them, of which texts may have nothing.
    assert unfreezing_steps(encoder, FreezingConfig(), 20) == {0: 0, 1: 0, 2: 0, 3: 0}
    assert unfreezing_steps(encoder, FreezingConfig(unfreeze_every=4), 20) == {3: 0, 2: 4, 1: 8, 0: 12}
    assert unfreezing_steps(encoder, FreezingConfig(unfreeze_every=0.25), 20) == {3: 0, 2: 5, 1: 10, 0: 15}
    # A share of few steps is a step at least.
    assert unfreezing_steps(encoder, FreezingConfig(unfreeze_every=0.01), 20)[0] == 3
    with pytest.raises(UserError, match="unfreezes the first layer at step 15, and the training ends at step 15"):
        unfreezing_steps(encoder, FreezingConfig(unfreeze_every=5), 15)
    # Of what stays frozen nobody waits for the turn.
    assert unfreezing_steps(encoder, FreezingConfig(blocks=1, unfreeze_every=5), 15)[2] == 5
    assert unfreezing_steps(encoder, FreezingConfig(blocks=2, unfreeze_every=50), 15)[3] == 0
    assert unfreezing_steps(encoder, FreezingConfig(unfreeze_every=5, embeddings=True), 15)[1] == 10


def test_what_has_no_meaning_is_refused():
    with pytest.raises(UserError, match="blocks is 3, and the encoder has 2 blocks"):
        freeze(make_encoder(), FreezingConfig(3))
    with pytest.raises(UserError, match="blocks is -1"):
        FreezingConfig(-1)
    for settings in ({"unfreeze_every": 0}, {"blocks": "all", "unfreeze_every": 5}):
        with pytest.raises(UserError, match="unfreeze_every is"):
            FreezingConfig(**settings)
