"""`plan`: what it says of small trainings, against the trainings themselves; nothing is left of a probe but caches."""

import json
import time
from types import SimpleNamespace

import pytest
from lightning.pytorch import Trainer
from small_pairs import pair_config, write_pairs
from small_pictures import picture_config, write_pictures
from small_training import small_config, write_config
from toy_training import ToyData, ToyModule

from lit_pretrain.__main__ import main
from lit_pretrain.cli.lightning_cli import CommandLine, command_line
from lit_pretrain.commands import plan as plan_command
from lit_pretrain.commands.planning import machine, probe, training
from lit_pretrain.commands.planning.estimate import Course
from lit_pretrain.data import DocumentDataModule
from lit_pretrain.modules import TextPretraining
from lit_pretrain.trainer import Trainer as OwnTrainer

# Seconds of a token of a sequence, a validation batch, a report, a checkpoint, and of setting the data up.
TOKEN, VALIDATION, REPORT, CHECKPOINT, SETUP = 0.002, 0.02, 0.01, 0.05, 1.0
LENGTH, STEPS = 32, 60


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "runs"


@pytest.fixture
def text(tmp_path, corpus):
    """A config whose sequences are cut into halves for the first half of the training."""
    trainer = {"max_steps": STEPS, "val_check_interval": 20, "num_sanity_val_steps": 0}
    config = small_config(corpus, trainer=trainer, layout="segments")
    config["model"]["init_args"] |= {
        "objectives": [{"class_path": "MaskedLanguageModeling"}],
        "short_sequences": {"parts": 2, "until": 0.5},
    }
    return str(write_config(tmp_path / "text.yaml", config))


@pytest.fixture
def clock(monkeypatch):
    """A clock that steps, reports, validations and checkpoints alone move on, the same on a machine that is busy."""
    clock = SimpleNamespace(now=0.0, lengths=[], written=0, time=time.time)
    clock.perf_counter = lambda: clock.now
    for module in (plan_command, probe, training):
        monkeypatch.setattr(module, "time", clock)

    def costs(kind, name, seconds):
        method = getattr(kind, name)

        def costly(self, *arguments, **settings):
            clock.now += seconds(*arguments)
            return method(self, *arguments, **settings)

        monkeypatch.setattr(kind, name, costly)

    def step(batch, index):
        clock.lengths.append(batch["input_ids"].shape[1])
        return TOKEN * clock.lengths[-1]

    def checkpoint(*arguments):
        clock.written += 1
        return CHECKPOINT

    costs(TextPretraining, "training_step", step)
    costs(TextPretraining, "validation_step", lambda *arguments: VALIDATION)
    costs(TextPretraining, "report", lambda stage: REPORT if stage == "train" else 0.0)
    costs(DocumentDataModule, "setup", lambda *arguments: SETUP)
    costs(OwnTrainer, "save_checkpoint", checkpoint)
    return clock


def plan(*arguments, tmp_path, status=0):
    """What is written as JSON."""
    file = tmp_path / "plan.json"
    assert main(["plan", *arguments, "--json", str(file)]) == status
    return json.loads(file.read_text())


def test_a_plan_is_what_the_training_then_takes_and_nothing_is_left(text, clock, tmp_path, runs, capsys):
    found = plan("--config", text, "--seconds", "2", tmp_path=tmp_path)
    printed = capsys.readouterr().out
    assert [path.name for path in runs.iterdir()] == ["caches"]
    assert set(clock.lengths) == {LENGTH // 2, LENGTH} and clock.written == 1
    assert found["steps"] == STEPS and found["samples"] == STEPS * 8 * 1.5 and found["tokens"] == STEPS * 8 * LENGTH
    parts = found["seconds_by_part"]
    assert list(parts) == ["start", *probe.PARTS, "epochs", "validation", "checkpoints"]
    assert "forward" in printed and "checkpoints (7)" in printed and "2 checkpoints of" in printed

    clock.now, clock.written = 0.0, 0
    clock.lengths.clear()
    command_line(["fit", "--config", text], CommandLine)
    assert clock.lengths == [LENGTH // 2] * (STEPS // 2) + [LENGTH] * (STEPS // 2)
    assert found["validations"] == 3 and clock.written <= found["checkpoints"] == 7
    assert parts["start"] == pytest.approx(SETUP) and parts["forward"] == pytest.approx(TOKEN * sum(clock.lengths))
    assert parts["logging"] == pytest.approx(REPORT * STEPS / 5)
    # The last report is written as the training ends.
    assert found["seconds"] == pytest.approx(clock.now + REPORT), str(parts)


def test_a_training_that_is_over_before_the_probe_is(text, clock, tmp_path):
    short = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "1", "--model.schedule.warm_up", "1"]
    found = plan("--config", text, *short, "--seconds", "60", tmp_path=tmp_path)
    parts = found["seconds_by_part"]
    assert found["steps"] == 3 and clock.written == 1 and found["checkpoint_bytes"] > 0
    assert parts["validation"] > 0 and parts["checkpoints"] > 0 and parts["forward"] > 0


def test_a_budget_permits_so_many_steps(text, clock, tmp_path, capsys):
    found = plan("--config", text, "--seconds", "1", "--budget", "2h", tmp_path=tmp_path)
    assert found["steps_within_budget"] > 10_000 and not found["impossible"]
    # Less than the training, of which a tenth is warm-up; less than that; no step.
    for budget, words in {"3s": f"of {STEPS} steps: set trainer.max_steps", "1.2s": "still rises for 6"}.items():
        told = plan("--config", text, "--seconds", "1", "--budget", budget, tmp_path=tmp_path, status=1)
        assert words in told["impossible"][0], told
    told = plan("--config", text, "--seconds", "1", "--budget", "1s", tmp_path=tmp_path, status=1)
    assert "over before the first step" in told["impossible"][0]
    assert "cannot be done as it is" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["vision", "contrastive"])
def test_pictures_and_pairs_are_planned_by_steps_that_are_given(kind, tmp_path, runs):
    trainer = {"val_check_interval": 1.0, "check_val_every_n_epoch": 2}
    if kind == "vision":
        config = picture_config(write_pictures(tmp_path / "data.parquet"), [{"class_path": "Rotation"}], trainer)
    else:
        config = pair_config(write_pairs(tmp_path / "data.parquet"), trainer, {"chunk_size": 3})
    path = str(write_config(tmp_path / "config.yaml", config))
    found = plan("--config", path, "--seconds", "1", "--steps", "5000", "--trainer.max_epochs=-1", tmp_path=tmp_path)
    assert [one.name for one in runs.iterdir()] == ["caches"]
    per_epoch = {"vision": 12, "contrastive": 6}[kind]
    assert (found["steps"], found["samples"]) == (5000, 40_000)
    assert found["epochs"] == pytest.approx(5000 / per_epoch)
    assert found["validations"] == 5000 // per_epoch // 2
    assert found["seconds_by_part"]["validation"] > 0 and found["memory_bytes"] > 2**27
    assert found["steps_measured"] >= 3


def test_what_does_not_fit_is_told_before_it_is_tried(text, tmp_path, monkeypatch, capsys):
    # Weights and moments beyond the memory: no optimiser is made.
    monkeypatch.setattr(probe, "free_memory", lambda device: 1000.0)
    assert main(["plan", "--config", text]) == 2
    assert "trained parameters take" in capsys.readouterr().err
    monkeypatch.undo()
    # Activations beyond it: the allocation fails, no process is killed.
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(machine, "free_memory", lambda device: 400.0 * 2**20)
    large = ["--model.encoder.init_args.transformer.width", "512", "--data.batch_size", "16"]
    large += ["--model.encoder.init_args.transformer.feed_forward_width", "400000"]
    assert main(["plan", "--config", text, *large]) == 2
    error = capsys.readouterr().err
    assert "does not fit into the memory" in error and error.count("\n") < 5
    assert machine.is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 10 bytes"))
    # A disk on which no two checkpoints have room, once the caches have taken theirs.
    monkeypatch.undo()
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    caches = tmp_path / "runs" / "caches"
    training.shutil.rmtree(caches)
    usage = training.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        training.shutil,
        "disk_usage",
        lambda place: usage._replace(free=100_000 if any(caches.rglob("tokens.bin")) else 10**12),
    )
    found = plan("--config", text, "--seconds", "1", tmp_path=tmp_path, status=1)
    assert "checkpoints take" in found["impossible"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "add --config FILE"),
        (["--config", "x.yaml", "--steps", "0"], "--steps is 0"),
        (["--config", "x.yaml", "--seconds", "nan"], "--seconds is nan"),
        (["--config", "x.yaml", "--budget", "2 hours"], "give a time with its units"),
        (["--config", "x.yaml", "--budget", "2h", "--steps", "5"], "not allowed with"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("check_every", "every_epochs", "steps", "accumulate"),
    [(6, None, 45, 1), (6, None, 25, 2), (0.25, 1, 50, 1), (0.25, 2, 50, 1), (1.0, 2, 50, 1), (1.0, 1, 25, 3)],
)
def test_validations_are_counted_as_lightning_makes_them(tmp_path, check_every, every_epochs, steps, accumulate):
    module = ToyModule()
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(
        max_steps=steps,
        val_check_interval=check_every,
        check_val_every_n_epoch=every_epochs,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(module, ToyData())
    every = trainer.val_check_batch
    course = Course(accumulate=accumulate, batches_per_epoch=20.0, check_every=every, every_epochs=every_epochs)
    assert course.validations(steps, 0.0) == len(module.validated)
