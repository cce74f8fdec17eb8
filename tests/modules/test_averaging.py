"""Averages of weights: by hand, what reads them, what goes on without them, resume, what is refused."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from text_corpus import fit, make_data, write_corpus

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining
from lit_pretrain.modules.averaging import AVERAGE, AverageConfig
from lit_pretrain.modules.checkpoints import load_encoder
from lit_pretrain.modules.freezing import FreezingConfig
from lit_pretrain.modules.optimization import AdamWConfig
from lit_pretrain.objectives import ContrastiveSpans, MaskedLanguageModeling

DECAY = 0.6


class Weights(Callback):
    """Keeps the weights after each optimiser step."""

    def __init__(self):
        self.steps = []

    def on_train_start(self, trainer, pl_module):
        self.steps.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_batch_end(self, trainer, pl_module, *rest):
        if trainer.global_step == len(self.steps):
            self.on_train_start(trainer, pl_module)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("averaging") / "texts.json", documents=20)


def train(corpus, directory, checkpoint=None, decay=DECAY, objective=MaskedLanguageModeling, **settings):
    """Six steps of two batches, a checkpoint after each, a validation after the second and the fourth."""
    torch.manual_seed(0)
    ngrams = {"ngrams": 2, "ngram_rows": 50} if settings.pop("sparse", False) else {}
    encoder = TextEncoder(transformer=TransformerConfig(width=16, depth=2, heads=2), positions="rotary", **ngrams)
    optimizer = AdamWConfig(learning_rate=1e-2, weight_decay=0.3, sparse_embeddings=bool(ngrams))
    module = {"optimizer": optimizer, "seed": 0, "average": AverageConfig(decay)} | settings
    # What changes over the training is resumed too.
    rate = {"probability": [0.5, 0.15]} if objective is MaskedLanguageModeling else {}
    module = TextPretraining(encoder, [objective(**rate)], **module)
    saver = ModelCheckpoint(directory, "{step}", save_top_k=-1, every_n_train_steps=1, monitor=None)
    weights = Weights()
    settings = {"callbacks": [saver, weights], "enable_checkpointing": True, "accumulate_grad_batches": 2}
    settings |= {"limit_val_batches": 2, "val_check_interval": 4, "check_val_every_n_epoch": None}
    return fit(module, make_data(corpus, directory, layout="segments"), checkpoint, **settings), module, weights.steps


def contents(path):
    """Everything in a checkpoint that is a tensor, by name, and the count of updates."""
    saved = torch.load(path, weights_only=True)
    states = saved["optimizer_states"][0]["state"]
    moments = {f"{number} {name}": one for number, state in states.items() for name, one in state.items()}
    average = saved.get(AVERAGE, {"updates": 0, "weights": {}})
    averages = {f"average {name}": one for name, one in average["weights"].items()}
    return saved["state_dict"] | moments | averages | {"updates": torch.tensor(average["updates"])}


@pytest.mark.parametrize("sparse", [False, True])
def test_averages_by_hand_and_who_reads_them(corpus, tmp_path, sparse):
    frozen = {} if sparse else {"freeze": FreezingConfig(blocks=1)}
    objective = ContrastiveSpans if sparse else MaskedLanguageModeling
    trainer, module, steps = train(corpus, tmp_path, sparse=sparse, objective=objective, **frozen)
    assert len(steps) == 7
    expected = {name: value.double() for name, value in steps[0].items()}
    for number, weights in enumerate(steps[1:]):
        decay = min(DECAY, (1 + number) / (10 + number))
        expected = {name: decay * value + (1 - decay) * weights[name].double() for name, value in expected.items()}
    saved = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    averages = saved[AVERAGE]["weights"]
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert set(averages) == trained and (sparse or not any("blocks.0" in name or "embed" in name for name in trained))
    for name, value in averages.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7, msg=name)
    # The training's own weights are those that it went on from, and what reads a checkpoint takes the averages.
    assert all(torch.equal(value, steps[6][name]) for name, value in saved["state_dict"].items())
    assert all(not torch.equal(value, saved["state_dict"][name]) for name, value in averages.items())
    again = TextPretraining.from_checkpoint(tmp_path / "step=6.ckpt")
    encoder, _ = load_encoder(str(tmp_path / "step=6.ckpt"), TextEncoder)
    for held in (again.state_dict(), module.state_dict(), {f"encoder.{n}": v for n, v in encoder.state_dict().items()}):
        assert all(torch.equal(value, held[name]) for name, value in averages.items() if name in held)
    # A checkpoint that is saved after the training has both too.
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    before, after = contents(tmp_path / "step=6.ckpt"), contents(tmp_path / "after.ckpt")
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in averages.items())
    if not sparse:
        data = trainer.datamodule
        # What was measured at the end of the training is what its checkpoint is measured to be worth.
        trainer.validate(module, data, ckpt_path=None, verbose=False)
        measured = float(trainer.callback_metrics["validation/loss"])
        trainer.validate(module, data, ckpt_path=tmp_path / "step=6.ckpt", verbose=False)
        assert float(trainer.callback_metrics["validation/loss"]) == measured
        module.load_state_dict(saved["state_dict"])
        trainer.validate(module, data, ckpt_path=None, verbose=False)
        assert float(trainer.callback_metrics["validation/loss"]) != measured


def test_resumed_bit_for_bit_with_and_without(corpus, tmp_path, caplog):
    train(corpus, tmp_path / "straight")
    train(corpus, tmp_path / "plain", decay=None)
    # Validations come between, and leave no trace in what is trained.
    straight, plain = (contents(tmp_path / name / "step=6.ckpt") for name in ("straight", "plain"))
    assert [name for name in plain if name != "updates" and not torch.equal(plain[name], straight[name])] == []
    train(corpus, tmp_path / "resumed", tmp_path / "straight" / "step=3.ckpt")
    resumed = contents(tmp_path / "resumed" / "step=6.ckpt")
    assert resumed.keys() == straight.keys() and int(resumed["updates"]) == 6
    assert [name for name, value in straight.items() if not torch.equal(value, resumed[name])] == []
    assert "averages of the weights" not in caplog.text
    train(corpus, tmp_path / "later", tmp_path / "plain" / "step=3.ckpt")
    assert "no averages of the weights (model.average): they begin at step 3" in caplog.text
    assert int(contents(tmp_path / "later" / "step=6.ckpt")["updates"]) == 3
    train(corpus, tmp_path / "ended", tmp_path / "straight" / "step=3.ckpt", decay=None)
    assert "which end here: set model.average.decay" in caplog.text
    ended = contents(tmp_path / "ended" / "step=6.ckpt")
    assert ended.keys() == plain.keys() and all(torch.equal(value, ended[name]) for name, value in plain.items())


def test_what_averages_nothing_or_twice_is_refused(corpus, tmp_path):
    for decay in (0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"model.average.decay is .*: give a number above 0 to below 1"):
            AverageConfig(decay)
    module = TextPretraining(TextEncoder(), [MaskedLanguageModeling()], average=AverageConfig(0.9))
    with pytest.raises(UserError, match="EMAWeightAveraging among trainer.callbacks averages the same weights"):
        fit(module, make_data(corpus, tmp_path), callbacks=[EMAWeightAveraging()])
