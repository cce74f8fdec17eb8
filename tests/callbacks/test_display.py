"""What a person sees: the bar, the lines where there is no terminal, the tables, the summary, the predictions."""

import io
import json
import math
import re
import shlex
import subprocess
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import rich
import torch
from lightning.pytorch.callbacks import Callback
from toy_training import ToyData, ToyModule, make_trainer

from lit_pretrain.callbacks.examples import Examples
from lit_pretrain.callbacks.panels import Panels
from lit_pretrain.callbacks.prediction_writer import PredictionWriter, prediction_table
from lit_pretrain.callbacks.progress import ProgressBar, total_steps
from lit_pretrain.callbacks.remaining_time import RemainingTime, words
from lit_pretrain.callbacks.summary import Summary, folded
from lit_pretrain.callbacks.throughput import Throughput
from lit_pretrain.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "runs"


@pytest.fixture
def console(monkeypatch):
    """A wide terminal that keeps what is drawn."""
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=160)
    monkeypatch.setattr(rich, "_console", console)
    monkeypatch.setattr(rich, "reconfigure", lambda **settings: None)
    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress.reconfigure", lambda **settings: None)
    return console


@pytest.mark.parametrize("width", [160, 80])
def test_bar_shows_loss_and_speed(runs, console, width):
    console.width = width
    bar = ProgressBar(refresh_rate=20)
    throughput = Throughput(warm_up_batches=0, measure_peak=False)
    trainer = make_trainer(runs, [throughput, bar], enable_progress_bar=True, log_every_n_steps=5)
    trainer.fit(ToyModule(step_seconds=0.02), ToyData())
    drawn = console.file.getvalue()
    assert "Epoch 1" in drawn
    assert re.search(r"loss: \d\.\d{3}", drawn)
    assert re.search(r"validation: \d\.\d{3}", drawn)
    drawn = re.sub(r"\x1b\[[\d;]*m", "", drawn)
    lines = {line.strip() for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "\n", drawn).splitlines()}
    begun = [line for line in lines if re.match(r"(Epoch|loss|validation|tokens)", line)]
    if width == 160:
        assert re.search(r"tokens/s: [\d,]+", drawn)
    else:
        # All of a bar is in one line, whatever else would not fit.
        assert all(line.startswith("Epoch") and len(line) < width for line in begun), begun
    assert "v_num" not in drawn
    # The last epoch has only the ten steps that are left of fifty.
    assert "10/10" in drawn


def test_few_lines_without_a_terminal(runs, capsys):
    bar = ProgressBar(lines=5, line_seconds=0)
    trainer = make_trainer(runs, [bar], enable_progress_bar=True, max_steps=100)
    trainer.fit(ToyModule(), ToyData(batches=1000, validation_batches=1))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["20/100", "40/100", "60/100", "80/100", "100/100"]
    assert all(re.fullmatch(r"step \d+/100  \d:\d\d  loss \d\.\d{3}", line) for line in lines)
    assert bar.progress is None


def test_few_lines_of_what_is_read_without_training(runs, capsys):
    bar = ProgressBar(lines=4, line_seconds=0)
    trainer = make_trainer(runs, [bar], enable_progress_bar=True)
    module, data = ToyModule(), ToyData(validation_batches=12)
    trainer.predict(module, data.val_dataloader())
    lines = [line for line in capsys.readouterr().out.splitlines() if " batch " in line]
    assert [line.rsplit("  ", 1)[0] for line in lines] == [f"predict batch {batch}/12" for batch in (3, 6, 9, 12)]
    module.test_step = module.validation_step
    trainer.test(module, data.val_dataloader(), verbose=False)
    assert "test batch 12/12  0:0" in capsys.readouterr().out


def test_a_quick_training_without_a_terminal_is_not_littered(runs, capsys):
    trainer = make_trainer(runs, [ProgressBar()], enable_progress_bar=True)
    trainer.fit(ToyModule(), ToyData())
    assert "step" not in capsys.readouterr().out


def test_steps_in_total():
    def of(steps, epochs, batches, accumulate=1):
        return total_steps(
            SimpleNamespace(
                max_steps=steps, max_epochs=epochs, num_training_batches=batches, accumulate_grad_batches=accumulate
            )
        )

    assert of(-1, 3, 10, 4) == 9
    assert of(5, 3, 10, 4) == 5
    assert of(-1, -1, 10) == of(-1, 3, math.inf) == math.inf


class SpokenModule(ToyModule):
    """Its examples tell the step; it is asked in the training's precision."""

    def examples(self, count=8):
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        return {"mlm": [{"text": f"row {i} at {self.trainer.global_step}"} for i in range(count)], "nothing": []}

    def panels(self, count):
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        self.drawn = count
        return {}


def test_examples_of_a_step_and_of_all(runs):
    trainer = make_trainer(runs, [Examples(count=2, keep=3), Panels(count=5)], precision="bf16-mixed")
    module = SpokenModule()
    trainer.fit(module, ToyData())
    assert module.drawn == 5
    client, run_id = trainer.logger.experiment, trainer.logger.run_id
    artifacts = {one.path for one in client.list_artifacts(run_id, "examples/mlm")}
    assert artifacts == {"examples/mlm/step-000020.json", "examples/mlm/step-000040.json"}
    table = json.loads(open(client.download_artifacts(run_id, "examples/mlm.json")).read())
    assert table == {
        "columns": ["step", "text"],
        # The latest first; the oldest row of five does not fit.
        "data": [[40, "row 0 at 40"], [40, "row 1 at 40"], [20, "row 0 at 20"]],
    }
    listed = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert listed == [{"path": "examples/mlm.json", "type": "table"}]


def test_summary_names_metrics_checkpoints_and_one_command(tmp_path, console, monkeypatch):
    # Of its own: runs that begin in the same second have the same name, and are called by their ids.
    runs = tmp_path / "runs"
    runs.mkdir()
    monkeypatch.delenv("LIT_PRETRAIN_RUNS", raising=False)
    monkeypatch.chdir(runs.parent)
    trainer = make_trainer(runs, [Summary()])
    trainer.fit(ToyModule(), ToyData())
    text = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())
    assert "After 50 steps" in text
    assert re.search(r"^ +loss +[\d.e-]+ +[\d.e-]+ +40 +0.25 *$", text, re.MULTILINE)
    assert 0 < text.index("validation") < text.index("train")
    assert re.search(r"^Best checkpoint: runs/toy/run-[\w-]+/checkpoints/epoch=1-step=40.ckpt$", text, re.MULTILINE)
    name = trainer.logger.run_name
    directory = next(one for one in (runs / "toy").iterdir() if trainer.logger.run_id[:8] in one.name)
    assert re.findall(r"python -m .*", text) == [
        "python -m lit_pretrain ui",
        f"python -m lit_pretrain export --ckpt {name}:best --to my-model",
        "python -m lit_pretrain compare --experiment toy",
        f"python -m lit_pretrain register {name}:best --name my-model",
    ]
    assert re.search(rf"^  run    {name} in runs/toy/{directory.name}$", text, re.MULTILINE)
    assert re.search(r"^  steps  50, 2.5 epochs, validated every epoch$", text, re.MULTILINE)
    monkeypatch.chdir("/")
    trainer = make_trainer(runs, [Summary()], max_steps=2)
    trainer.fit(ToyModule(), ToyData())
    assert f"python -m lit_pretrain ui --runs {runs}".replace("ui --runs /", "ui --runs ") in console.file.getvalue()


def test_what_ends_a_training_before_its_steps_and_how_it_goes_on(runs, console, monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(runs))
    trainer = make_trainer(runs, [Summary()], max_steps=500, max_time={"milliseconds": 500})
    trainer.fit(ToyModule(step_seconds=0.02), ToyData())
    text = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())
    assert re.search(r"^Stopped by trainer.max_time after \d+ of 500 steps", text, re.MULTILINE)
    # The clock counts from the run's beginning. A config is not there to be taken, since no command line has one.
    # Runs that begin in the same second have one name.
    called = rf"({trainer.logger.run_name}|{trainer.logger.run_id[:8]})"
    command = rf"fit --config \.\.\. --ckpt_path {called} --trainer\.max_time 00:00:00:01$"
    assert re.search(f"^Go on: python -m lit_pretrain {command}", text, re.MULTILINE)

    class Fail(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 30:
                raise RuntimeError("no")

    trainer = make_trainer(runs, [Summary(), Fail()])
    with pytest.raises(RuntimeError) as raised:
        trainer.fit(ToyModule(), ToyData())
    (note,) = raised.value.__notes__
    assert note.startswith("Go on from the last checkpoint: python -m lit_pretrain fit --config ... --ckpt_path ")


def test_a_long_command_is_folded_as_a_shell_takes_it():
    command = 'python -m lit_pretrain search --ckpt first:best --images my_pictures/ --query "a --b c" --device cpu'
    lines = folded(f"Find: {command}", 60).split("\n")
    assert lines[0] == "Find:" and max(map(len, lines)) < 60 and sum(line.endswith(" \\") for line in lines) == 1
    shell = ["bash", "-c", "python() { printf '%s\\n' \"$@\"; }\n" + "\n".join(lines[1:])]
    assert subprocess.run(shell, capture_output=True, text=True).stdout.split("\n")[:-1] == shlex.split(command)[1:]
    assert folded(f"Find: {command}", 200) == f"Find: {command}"
    assert folded("Best checkpoint: runs/a/b/c/best.ckpt", 30) == "Best checkpoint:\n  runs/a/b/c/best.ckpt"


def test_how_long_it_will_take_by_the_first_steps():
    trainer = SimpleNamespace(
        max_steps=1000, max_epochs=-1, num_training_batches=100, accumulate_grad_batches=1, global_step=20,
        val_check_batch=200, check_val_every_n_epoch=None, num_val_batches=[4], enable_validation=True, callbacks=[],
        lightning_module=None,
    )  # fmt: skip
    remaining = RemainingTime()
    assert remaining.line(trainer, 0.1) == "About 1 min 38 s to go: 980 steps of 100 ms."
    remaining._validation_batch = 0.5
    assert remaining.line(trainer, 0.1) == "About 1 min 46 s to go: 980 steps of 100 ms and 4 validations of 2.0 s."
    # What is over in a moment needs no word.
    assert remaining.line(trainer, 0.001) is None
    trainer.lightning_module = SimpleNamespace(clock=SimpleNamespace(budget=90.0, seconds=30.0))
    assert remaining.line(trainer, 0.1) == "About 1 min, when the clock ends it; all 980 steps would take 1 min 46 s."
    trainer.max_steps = -1
    assert remaining.line(trainer, 0.1) == "About 1 min by the clock, 100 ms a step."
    assert [words(seconds) for seconds in (0.0623, 3.14, 3_905, 180_000)] == ["62 ms", "3.1 s", "1 h 5 min", "2 d 2 h"]


def test_predictions_become_parquet(runs, capsys, tmp_path):
    trainer = make_trainer(runs, [writer := PredictionWriter()])
    trainer.predict(ToyModule(), ToyData(), return_predictions=False)
    path = trainer.logger.run_directory / "predictions.parquet"
    table = pyarrow.parquet.read_table(path)
    assert table.num_rows == writer.rows == 12
    assert table["sample_id"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(table["embedding"][0].as_py()) == 8
    assert "12 predictions are in" in capsys.readouterr().out
    assert trainer.logger.experiment.get_run(trainer.logger.run_id).data.tags["predictions"] == str(path)
    assert trainer.logger.experiment.get_run(trainer.logger.run_id).data.tags["stage"] == "predict"


def test_failed_prediction_leaves_no_file(runs, tmp_path):
    class Fail(Callback):
        def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if batch_idx == 2:
                raise RuntimeError("no")

    trainer = make_trainer(runs, [PredictionWriter(str(tmp_path / "out" / "p.parquet")), Fail()])
    with pytest.raises(RuntimeError):
        trainer.predict(ToyModule(), ToyData(), return_predictions=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_table_of_a_batch():
    table = prediction_table({"a": torch.arange(2), "b": torch.ones(2, 3, dtype=torch.bfloat16), "text": ["x", "y"]})
    assert table.to_pylist() == [{"a": 0, "b": [1, 1, 1], "text": "x"}, {"a": 1, "b": [1, 1, 1], "text": "y"}]
    with pytest.raises(UserError, match="'b' cannot be written"):
        prediction_table({"b": torch.ones(2, 3, 4)})
    with pytest.raises(UserError, match="must return a dictionary"):
        prediction_table(torch.ones(2))
