"""Real signals: the step is finished, the checkpoint is right, and the resumed run repeats and skips nothing."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.callbacks.interruption import Interrupted, Interruption
from lit_pretrain.callbacks.last_checkpoint import LastCheckpoint


class SendSignal(Callback):
    """Sends this process a signal at a step, in its middle; or at a validation batch."""

    def __init__(self, step, number=signal.SIGINT, validation_batch=None, times=1):
        self.step, self.number, self.validation_batch, self.times = step, number, validation_batch, times

    def send(self):
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)
            time.sleep(0.6 if self.times > 1 else 0)

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step and self.validation_batch is None:
            self.send()

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == self.step and self.validation_batch == batch_idx:
            self.send()


def train(runs, callbacks=(), checkpoint=None, **settings):
    seed_everything(0, verbose=False)
    module = ToyModule()
    trainer = make_trainer(runs, callbacks, **settings)
    if checkpoint:
        assert trainer.logger.resume_from(checkpoint)
    stopped = None
    try:
        trainer.fit(module, ToyData(), ckpt_path=checkpoint)
    except Interrupted as error:
        stopped = error
    return trainer, module, stopped


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One runs directory for all: making a database takes longer than these trainings."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def straight(runs):
    """50 steps in epochs of 20 with validation at their ends, never stopped."""
    return train(runs)[1]


@pytest.mark.parametrize(
    ("step", "validation_batch", "validated_before"),
    [
        pytest.param(27, None, [20], id="in the middle of an epoch"),
        pytest.param(19, None, [], id="in the last step before a validation"),
        pytest.param(20, 1, [], id="within a validation"),
    ],
)
def test_resumed_run_repeats_and_skips_nothing(runs, straight, step, validation_batch, validated_before):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer, first, stopped = train(runs, [SendSignal(step, signal.SIGTERM, validation_batch), Interruption()])
    assert stopped.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert first.validated == validated_before
    assert trainer.logger.experiment.get_run(trainer.logger.run_id).info.status == "KILLED"

    checkpoint = trainer.logger.run_directory / "checkpoints" / "last.ckpt"
    resumed, second, stopped = train(runs, [Interruption()], str(checkpoint))
    assert stopped is None
    assert first.seen + second.seen == straight.seen
    assert first.validated + second.validated == straight.validated == [20, 40]
    assert torch.equal(second.layer.weight, straight.layer.weight)
    assert resumed.logger.run_id == trainer.logger.run_id
    assert resumed.logger.experiment.get_run(trainer.logger.run_id).info.status == "FINISHED"


def test_waits_for_accumulated_gradients(runs):
    class InTheMiddle(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 6:
                os.kill(os.getpid(), signal.SIGINT)

    whole = train(runs, accumulate_grad_batches=3, max_steps=6)[1]
    trainer, first, stopped = train(runs, [InTheMiddle(), Interruption()], accumulate_grad_batches=3, max_steps=6)
    assert stopped.code == 130
    # Batch 6 is the first of three: the step of batches 6 to 8 is finished before stopping.
    assert [sample for _, sample in first.seen] == list(range(9))
    checkpoint = trainer.logger.run_directory / "checkpoints" / "last.ckpt"
    _, second, _ = train(runs, [], str(checkpoint), accumulate_grad_batches=3, max_steps=6)
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.layer.weight, whole.layer.weight)


def test_second_signal_stops_at_once(runs):
    trainer, module, stopped = train(runs, [SendSignal(3, times=2), Interruption()])
    assert stopped.code == 130
    assert len(module.seen) == 4
    assert not (trainer.logger.run_directory / "checkpoints" / "last.ckpt").exists()
    assert trainer.logger.experiment.get_run(trainer.logger.run_id).info.status == "KILLED"


def test_last_checkpoint_is_the_last_step_and_can_be_gone_on_from(runs, straight):
    trainer, first, _ = train(runs, [LastCheckpoint()], max_steps=30)
    checkpoint = trainer.logger.run_directory / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 30
    _, second, _ = train(runs, [LastCheckpoint()], str(checkpoint), max_steps=50)
    assert first.seen + second.seen == straight.seen
    assert torch.equal(second.layer.weight, straight.layer.weight)


def test_last_checkpoint_is_saved_now_and_then(runs, straight):
    saved = []

    class Look(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            saved.append(checkpoint["global_step"])

    class Kill(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 33:
                raise RuntimeError("as if the power had gone")

    # No minute at all: a save at each of the steps at which logs are written.
    settings = {"log_every_n_steps": 6, "max_steps": 50}
    callbacks = [LastCheckpoint(minutes=1e-9), Look(), Kill()]
    trainer = make_trainer(runs, callbacks, **settings)
    seed_everything(0, verbose=False)
    first = ToyModule()
    with pytest.raises(RuntimeError):
        trainer.fit(first, ToyData())
    # At 20 an epoch ends, with a validation and its own saves.
    assert sorted(set(saved)) == [6, 12, 18, 20, 24, 30]
    checkpoint = trainer.logger.run_directory / "checkpoints" / "last.ckpt"
    _, second, _ = train(runs, [LastCheckpoint(minutes=None)], str(checkpoint), max_steps=50)
    assert second.seen[0][0] == 30 and first.seen[:30] + second.seen == straight.seen
    assert torch.equal(second.layer.weight, straight.layer.weight)


def test_loader_workers_outlive_a_terminals_signal(runs):
    class WorkerData(ToyData):
        def train_dataloader(self):
            rows = [{"input_ids": torch.ones(8), "sample_id": torch.tensor(index)} for index in range(160)]
            return torch.utils.data.DataLoader(rows, batch_size=4, num_workers=2, prefetch_factor=1)

    class ToWorkers(Callback):
        """A terminal sends Ctrl-C to every process in front of it."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                workers = multiprocessing.active_children()
                assert len(workers) == 2
                for worker in workers:
                    os.kill(worker.pid, signal.SIGINT)

    seed_everything(0, verbose=False)
    trainer = make_trainer(runs, [ToWorkers(), SendSignal(20), Interruption()])
    module = ToyModule()
    with pytest.raises(Interrupted):
        trainer.fit(module, WorkerData())
    # Far more batches than were fetched ahead when the workers got the signal.
    assert len(module.seen) == 21
