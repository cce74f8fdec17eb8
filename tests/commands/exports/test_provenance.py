"""Where exported weights come from."""

import torch

from lit_pretrain.commands.exports.provenance import ancestors_of


def test_the_chain_goes_through_the_tower_that_was_taken(tmp_path):
    towers = {"text_init_from": "some/bert", "vision_init_from": "scratch", "vision_init_from_step": "0"}
    torch.save({"lit_pretrain": {"lineage": towers}}, tmp_path / "pair.ckpt")
    start = {"init_from": str(tmp_path / "pair.ckpt"), "init_from_tower": "text"}
    assert ancestors_of({"lineage": start}) == [start, {"init_from": "some/bert"}]
