"""Trainings that the clock ends: rates, what counts, resume, two processes, what is refused."""

import time

import pytest
import torch
from child_processes import both_ranks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from text_corpus import StopAt3, fit, make_data, make_encoder, write_corpus

from lit_pretrain.errors import UserError
from lit_pretrain.modules import TextPretraining
from lit_pretrain.modules.clock import CLOCK, seconds_of
from lit_pretrain.modules.freezing import FreezingConfig
from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig
from lit_pretrain.objectives import MaskedLanguageModeling
from lit_pretrain.studies.cell_configs import check_config

RATE = 1e-2
SLEEP = 0.02
END = {"max_steps": -1}


class Steps(Callback):
    """Makes a step last, and keeps what it was trained by and when; a first validation outlasts the training."""

    def __init__(self, late=0.0):
        self.late, self.validation_seconds = late, 1.5
        self.rates, self.shares, self.hidden = [], [], []

    def on_train_batch_start(self, trainer, pl_module, *rest):
        time.sleep(SLEEP + self.late * (trainer.global_rank == 1))

    def on_train_batch_end(self, trainer, pl_module, *rest):
        self.rates.append(pl_module._used_rates["learning_rate"])
        self.hidden.append(pl_module.objectives[0].rate_now([0.4, 0.2]))
        self.shares.append(pl_module.clock.share)

    def on_validation_start(self, *_):
        time.sleep(self.validation_seconds)
        self.validation_seconds = 0.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("clock") / "texts.json", documents=20)


def make(budget, **settings):
    torch.manual_seed(0)
    schedule = ScheduleConfig(warm_up=0.25, budget=budget)
    module = {"optimizer": AdamWConfig(learning_rate=RATE), "schedule": schedule, "seed": 0} | settings
    return TextPretraining(make_encoder(), [MaskedLanguageModeling(probability=[0.4, 0.2])], **module)


def train(corpus, directory, budget, checkpoint=None, **settings):
    steps = Steps()
    saver = ModelCheckpoint(directory, "{step}", save_last=True, save_top_k=-1, every_n_train_steps=1, monitor=None)
    own = {"callbacks": [steps, saver], "enable_checkpointing": True, "limit_val_batches": 1}
    data = make_data(corpus, directory, layout="segments")
    return fit(make(budget), data, checkpoint, **END | own | settings), steps


def test_the_rate_is_low_when_the_time_is_over_resumed_or_not(corpus, tmp_path):
    trainer, steps = train(corpus, tmp_path / "straight", "1s", val_check_interval=2, check_val_every_n_epoch=None)
    schedule = trainer.lightning_module.schedule_config
    # A validation is longer than all of the training, and does not count.
    assert 3 <= len(steps.rates) == trainer.global_step <= 1 / SLEEP and steps.shares[-1] == 1.0 > steps.shares[-2]
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0
    before = [0.0, *steps.shares[:-1]]
    assert steps.rates == pytest.approx([RATE * schedule.factor_at(share) for share in before])
    assert steps.hidden == pytest.approx([0.4 - 0.2 * share for share in before])
    saved = torch.load(tmp_path / "straight" / "last.ckpt", weights_only=True)
    assert 1.0 <= saved[CLOCK]["seconds"] < 2.0 and saved["global_step"] == trainer.global_step
    with pytest.raises(UserError, match="trained for 1 seconds, and model.schedule.budget 1s allows no more: raise"):
        train(corpus, tmp_path / "over", "1s", tmp_path / "straight" / "last.ckpt")
    second = tmp_path / "straight" / "step=2.ckpt"
    seconds = torch.load(second, weights_only=True)[CLOCK]["seconds"]
    trainer, steps = train(corpus, tmp_path / "resumed", "1.1s", second)
    assert steps.rates[0] == pytest.approx(RATE * schedule.factor_at(seconds / 1.1))
    assert steps.shares[0] > seconds / 1.1 and steps.shares[-1] == 1.0 and trainer.global_step == 2 + len(steps.rates)


def test_steps_tell_how_much_is_over_where_they_end_the_training(corpus, tmp_path):
    settings = {"max_steps": 4, "limit_val_batches": 0, "accumulate_grad_batches": 2}
    _, steps = train(corpus, tmp_path, None, **settings)
    assert steps.hidden == pytest.approx([0.4, 0.4, 0.35, 0.35, 0.3, 0.3, 0.25, 0.25])
    # A checkpoint builds the objective again, which evaluates by the last rate always.
    (objective,) = TextPretraining.from_checkpoint(tmp_path / "last.ckpt").objectives
    assert objective.probability == [0.4, 0.2] and objective.rate_now(objective.probability) == 0.2


def train_together(directory):
    """The second process is slower, and has another clock."""
    steps = Steps(late=SLEEP)
    data = make_data(directory / "texts.json", directory, layout="segments", batch_size=4)
    trainer = fit(make("0.8s"), data, devices=2, strategy="ddp", callbacks=[steps], **END)
    return {"shares": steps.shares, "rates": steps.rates, "step": trainer.global_step}


def test_processes_agree_on_the_time(corpus):
    first, second = both_ranks(train_together, corpus.parent)
    assert first == second and first["shares"][-1] == 1.0 and first["step"] > 1


def test_times():
    assert [seconds_of(text, "budget") for text in ("90s", "1.5m", "1h30m", "2d")] == [90.0, 90.0, 5400.0, 172800.0]
    for text in ("30", "m", "0s", "1:30:00", "30 m", "-3m"):
        with pytest.raises(UserError, match=f"budget is {text}: give a time with its units, such as 90s, 30m"):
            seconds_of(text, "budget")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_steps": 5}, "budget 30m ends the training by the clock, and trainer.max_steps is 5: leave one of the"),
        ({"max_epochs": 5}, "and trainer.max_epochs is 5: leave one of the two out"),
        ({"max_time": "00:00:10:00"}, "trainer.max_time ends the training before model.schedule.budget 30m is over"),
    ],
)
def test_two_ends_are_refused_before_any_data_is_read(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(make("30m"), None, **END | settings)


def test_what_counts_in_steps_is_refused(corpus, tmp_path):
    for settings in ({"warm_up": 500}, {"shape": "constant_then_decay", "decay": 500}):
        with pytest.raises(UserError, match="is 500 steps, and schedule.budget 30m may be over before: give a share"):
            ScheduleConfig(**settings, budget="30m")
    with pytest.raises(UserError, match=r"so that 0.1 of its steps cannot be told: give freeze.unfreeze_every"):
        module = make("30m", freeze=FreezingConfig(unfreeze_every=0.1))
        fit(module, make_data(corpus, tmp_path), **END)
    # In whole steps it waits as ever.
    module = make("30m", freeze=FreezingConfig(unfreeze_every=2))
    fit(module, make_data(corpus, tmp_path), callbacks=[StopAt3()], **END)
    config = {"trainer": {}, "model": {"init_args": {"schedule": {"budget": "30m"}}}}
    with pytest.raises(UserError, match="a study compares trainings by their steps"):
        check_config("config", config)
