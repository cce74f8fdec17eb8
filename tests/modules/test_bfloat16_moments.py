"""Moments in bfloat16: rounding by chance, beside AdamW's in float32, resume, what is refused."""

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from text_corpus import fit_and_save, make_data, write_corpus
from torch import nn

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining, bfloat16_moments
from lit_pretrain.modules.bfloat16_moments import MOMENTS, rounded_by_chance
from lit_pretrain.modules.optimization import AdamWConfig, make_optimizer
from lit_pretrain.objectives import BagOfNgrams, BagOfWords


def test_rounded_to_a_neighbour_whose_mean_is_the_number():
    numbers = torch.tensor([1.0, 1.003, -1.003, 3.1e-9, -0.3333, 0.0, 1.99999])
    down = (numbers.view(torch.int32) & ~0xFFFF).view(torch.float32)
    up = ((numbers.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    draws, generator = 20_000, torch.Generator().manual_seed(0)
    for rounded in rounded_by_chance(numbers.repeat(draws), -numbers.repeat(draws), generator):
        assert rounded.dtype == torch.bfloat16
        values = rounded.float().view(draws, -1)
        values = values if torch.equal(values[0, :1], down[:1]) else -values
        assert ((values == down) | (values == up)).all()
        # Five standard errors of a coin between two neighbours.
        error = (values.double().mean(0) - numbers).abs()
        assert (error <= 5 * 0.5 * (up - down).abs() / draws**0.5).all()
        assert (values[:, [0, 5]] == numbers[[0, 5]]).all()


def trained(moments, gradients, seed=0, dtype=torch.float32):
    """A matrix of more than one piece, a small one, and their state after some steps of equal gradients."""
    torch.manual_seed(seed)
    layer = nn.Linear(1100, 1000, dtype=dtype)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.zero_()
    optimizer = make_optimizer([layer], AdamWConfig(learning_rate=1e-3, moments=moments))
    for gradient in gradients:
        layer.weight.grad, layer.bias.grad = torch.full_like(layer.weight, gradient), torch.ones_like(layer.bias)
        optimizer.step()
    return layer, optimizer


def test_as_adamw_where_the_nearest_number_would_always_be_the_old_one():
    # Fades by a thousandth a step, which is less than half of bfloat16's last digit.
    gradients = [1.0, *[0.0] * 150]
    exact, expected = trained("float32", gradients)
    rounded, optimizer = trained("bfloat16", gradients)
    moments = optimizer.state[rounded.weight]
    assert {name: moments[name].dtype for name in MOMENTS} == dict.fromkeys(MOMENTS, torch.bfloat16)
    assert moments["step"] == len(gradients)
    squares = expected.state[exact.weight]["exp_avg_sq"]
    assert squares[0, 0] == pytest.approx(1e-3 * 0.999**150, rel=1e-4)
    assert moments["exp_avg_sq"].float().mean() == pytest.approx(float(squares[0, 0]), rel=1e-3)
    assert moments["exp_avg"].float().mean() == pytest.approx(0.1 * 0.9**150, rel=1e-2)
    assert float(rounded.weight.mean()) == pytest.approx(float(exact.weight.mean()), abs=2e-5)
    # All of it, to its last piece.
    torch.testing.assert_close(rounded.weight, exact.weight, rtol=0, atol=4e-4)
    assert float(rounded.weight.mean()) < 0.5 - 5e-3
    # What is small is AdamW's to the bit.
    assert torch.equal(rounded.bias, exact.bias) and optimizer.state[rounded.bias]["exp_avg"].dtype == torch.float32


def test_chance_is_of_the_step_and_not_of_the_process():
    layers = [trained("bfloat16", [0.3, -0.1, 0.2], seed)[0] for seed in (1, 2)]
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert layers[0].weight.unique().numel() > 1


def test_weights_in_bfloat16():
    layer, optimizer = trained("bfloat16", [1.0, 1.0], dtype=torch.bfloat16)
    assert float(layer.weight.float().mean()) == pytest.approx(0.498, abs=2e-3)
    assert optimizer.state[layer.weight]["exp_avg"].dtype == torch.bfloat16


def test_resumed_bit_for_bit_by_what_wrote_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16_moments, "LEAST_ELEMENTS", 100)
    monkeypatch.setattr(bfloat16_moments, "PIECE", 70)
    corpus = write_corpus(tmp_path / "texts.json", documents=20)

    def train(directory, checkpoint=None, moments="bfloat16"):
        torch.manual_seed(0)
        encoder = TextEncoder(
            transformer=TransformerConfig(width=16, depth=1, heads=2), positions="rotary", ngrams=2, ngram_rows=60
        )
        config = AdamWConfig(1e-2, 0.3, algorithm="muon", sparse_embeddings="ngrams", moments=moments)
        module = TextPretraining(encoder, [BagOfWords(), BagOfNgrams()], seed=0, optimizer=config)
        data = make_data(corpus, tmp_path, layout="segments")
        return fit_and_save(module, data, tmp_path / directory, checkpoint, accumulate_grad_batches=2)

    expected, found = train("straight"), train("resumed", tmp_path / "straight" / "step=3.ckpt")
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    # Beside Muon's matrices and tables by rows.
    kinds = {name.split()[-1]: value.dtype for name, value in expected.items() if name[0].isdigit()}
    assert {"momentum_buffer", "row_exp_avg_sq", *MOMENTS} <= kinds.keys()
    assert sum(value.dtype == torch.bfloat16 for value in expected.values()) >= 2 * len(MOMENTS)
    train("exact", moments="float32")
    for moments, other in (("float32", "straight"), ("bfloat16", "exact")):
        its = {"float32": "bfloat16", "bfloat16": "float32"}[moments]
        with pytest.raises(UserError, match=f"resume with optimizer.moments {its}"):
            train("refused", tmp_path / other / "step=3.ckpt", moments)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="optimizer.moments is int8: give float32 or bfloat16"):
        AdamWConfig(moments="int8")
    with pytest.raises(UserError, match="FSDPStrategy cuts into shards.*take ddp"):
        bfloat16_moments.check_strategy(FSDPStrategy())
    bfloat16_moments.check_strategy(SingleDeviceStrategy())
    with pytest.raises(UserError, match="of 65,536 numbers and more.*none is trained here: leave it out"):
        make_optimizer([nn.Linear(9, 9)], AdamWConfig(moments="bfloat16"))
