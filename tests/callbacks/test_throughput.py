"""Rates from known costs and known times."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from toy_training import ToyData, ToyModule

from lit_pretrain.callbacks.peak import dtype_of_precision, measured_peak
from lit_pretrain.callbacks.throughput import Amount, Throughput


class Notes(CSVLogger):
    """Keeps what is logged."""

    def __init__(self, directory):
        super().__init__(directory)
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


def fit(tmp_path, throughput, module, callbacks=(), **settings):
    logger = Notes(tmp_path)
    settings = {"max_steps": 20, "log_every_n_steps": 5, "val_check_interval": 10} | settings
    trainer = Trainer(
        logger=logger,
        callbacks=[throughput, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(module, ToyData())
    return [(step, row) for step, row in logger.rows if any(name.startswith("throughput") for name in row)]


def test_rates_are_work_over_time():
    throughput = Throughput()
    throughput.peak = 1e12
    amount = Amount()
    for _ in range(2):
        amount.add(0.5, {"samples": 4, "tokens": 100, "flops": 2e11})
    assert throughput.rates(amount, world_size=3) == pytest.approx(
        {
            "throughput/samples_per_second": 24,
            "throughput/tokens_per_second": 600,
            "throughput/teraflops_per_second": 1.2,
            "throughput/share_of_peak": 0.4,  # of one device's peak, so independent of their number
        }
    )
    assert throughput.rates(Amount()) == {}


def test_the_peak_is_measured_once_and_after_the_first_step(tmp_path, monkeypatch):
    steps = []

    class Costly(ToyModule):
        """Says what a step costs."""

        def step_cost(self, batch):
            return {"samples": len(batch), "flops": 1e6}

    module = Costly()
    monkeypatch.setattr(
        "lit_pretrain.callbacks.throughput.measured_peak", lambda *_: steps.append(module.trainer.global_step) or 1e9
    )
    rows = fit(tmp_path, Throughput(warm_up_batches=1), module)
    assert steps == [1] and "throughput/share_of_peak" in rows[0][1]


def test_warm_up_validation_and_checkpoints_are_not_counted(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("lit_pretrain.callbacks.throughput.time", SimpleNamespace(perf_counter=lambda: clock.now))

    class SlowAtTimes(ToyModule):
        """A hundredth of a second a step; the first two, validation batches and checkpoints take far longer."""

        def training_step(self, batch, batch_index):
            clock.now += 5.0 if self.trainer.global_step < 2 else 0.01
            return super().training_step(batch, batch_index)

        def validation_step(self, batch, batch_index):
            clock.now += 7.0
            super().validation_step(batch, batch_index)

        def on_save_checkpoint(self, checkpoint):
            clock.now += 3.0

    throughput = Throughput(warm_up_batches=2, measure_peak=False)
    rows = fit(tmp_path, throughput, SlowAtTimes(), [ModelCheckpoint(every_n_train_steps=8, save_top_k=-1)])
    assert [step for step, _ in rows] == [4, 9, 14, 19, 20]
    for _, row in rows[:4]:
        assert row["throughput/tokens_per_second"] == pytest.approx(3200)
        assert row["throughput/samples_per_second"] == pytest.approx(400)
    # Known of a training that is killed too.
    assert [row["throughput/total_tokens"] for _, row in rows] == [5 * 32, 10 * 32, 15 * 32, 20 * 32, 20 * 32]
    end = rows[-1][1]
    assert end["throughput/tokens_per_second_mean"] == pytest.approx(3200)
    assert end["throughput/total_samples"] == 80
    assert end["throughput/peak_memory_gib"] > 0.05
    again = Throughput()
    again.load_state_dict(throughput.state_dict())
    assert again.totals["tokens"] == 640


def test_accumulated_batches_all_count_and_log_once(tmp_path):
    throughput = Throughput(warm_up_batches=0, measure_peak=False)
    rows = fit(tmp_path, throughput, ToyModule(), accumulate_grad_batches=2, max_steps=10, val_check_interval=1.0)
    assert [step for step, _ in rows] == [4, 9, 10]
    assert rows[-1][1]["throughput/total_tokens"] == 20 * 32


def test_cost_is_asked_once_for_a_shape(tmp_path):
    class Counting(ToyModule):
        asked = 0

        def step_cost(self, batch):
            self.asked += 1
            return super().step_cost(batch)

    module = Counting()
    fit(tmp_path, Throughput(measure_peak=False), module)
    assert module.asked == 1


def test_module_without_costs_is_left_alone(tmp_path):
    class Silent(ToyModule):
        step_cost = None

    rows = fit(tmp_path, Throughput(), Silent())
    assert [set(row) for _, row in rows] == [{"throughput/total_hours", "throughput/peak_memory_gib"}] * len(rows)


def test_peak_is_plausible_and_draws_nothing():
    state = torch.get_rng_state()
    peak = measured_peak("cpu", torch.float32, 0.05)
    assert torch.equal(torch.get_rng_state(), state)
    # Between a very old core and a large server.
    assert 1e8 < peak < 1e15
    assert dtype_of_precision("bf16-mixed") == dtype_of_precision("bf16-true") == torch.bfloat16
    assert dtype_of_precision("16-mixed") == torch.float16
    assert dtype_of_precision("32-true") == torch.float32
