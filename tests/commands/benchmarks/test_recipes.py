"""A comparison of builds: made-up ones that train at once, and a curve from a database of MLflow's own."""

import json
from pathlib import Path

import pytest

import lit_pretrain
from lit_pretrain.__main__ import main
from lit_pretrain.commands.benchmarks.recipes import Build, Curve
from lit_pretrain.tracking.store import open_store

# A build whose loss falls from 4 by 1 a validation; validations are `pace` seconds apart.
BUILD = """
import os, pathlib, sqlite3, sys, time
if "--fail" in sys.argv:
    sys.exit("lit_pretrain: no luck.")
assert sys.argv[1] == "fit" and sys.argv[sys.argv.index("--trainer.precision") + 1] == "32-true"
runs = pathlib.Path(os.environ["LIT_PRETRAIN_RUNS"])
runs.mkdir(exist_ok=True)
config = pathlib.Path(sys.argv[sys.argv.index("--config") + 1]).read_text()
seed = int(sys.argv[sys.argv.index("--seed_everything") + 1])
pace = {pace} * int(sys.argv[-1] if sys.argv[-2] == "--slower" else 1)
database = sqlite3.connect(runs / "mlflow.db")
database.execute("CREATE TABLE IF NOT EXISTS runs (run_uuid, start_time)")
database.execute("CREATE TABLE IF NOT EXISTS tags (run_uuid, key, value)")
database.execute("CREATE TABLE IF NOT EXISTS metrics (run_uuid, key, timestamp, value, step)")
start = time.time_ns() // 10**6
database.execute("INSERT INTO runs VALUES (?, ?)", (str(seed), start))
tag = (str(seed), "checkpoint.best_score", "validation/" + config + " = 1")
database.execute("INSERT INTO tags VALUES (?, ?, ?)", tag)
for step in range(1, 4):
    row = (str(seed), "validation/" + config, start + pace * step * 1000, 4 - step - {better}, step)
    database.execute("INSERT INTO metrics VALUES (?, ?, ?, ?, ?)", row)
database.commit()
"""


def write_build(root: Path, pace: int, better: float, config: str) -> Path:
    """A checkout of a made-up build."""
    (root / "lit_pretrain").mkdir(parents=True)
    (root / "lit_pretrain" / "__init__.py").touch()
    (root / "lit_pretrain" / "__main__.py").write_text(BUILD.format(pace=pace, better=better))
    (root / "small.yaml").write_text(config)
    return root


@pytest.fixture
def builds(tmp_path, monkeypatch):
    """This build, at whose top the command is given, and another one."""
    new = write_build(tmp_path / "this", 60, 0.5, "loss")
    monkeypatch.setattr(lit_pretrain, "__file__", str(new / "lit_pretrain" / "__init__.py"))
    monkeypatch.chdir(new)
    return new, write_build(tmp_path / "other", 120, 0.0, "loss")


def compare(*arguments: str) -> int:
    return main(["benchmark", "recipes", "--config", "small.yaml", "--precision", "32-true", *arguments])


def test_each_build_trains_itself_and_minutes_are_between_validations(builds, tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert compare("--against", str(builds[1]), "--old", "--slower 2", "--json", str(file)) == 0
    rows = json.loads(file.read_text())
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        # The other one has 1 after 3 x 4 minutes, this one 1.5 after 2 and 0.5 after 3.
        assert row["metric"] == "validation/loss" and row["target"] == 1
        assert (row["old_minutes"], row["new_minutes"]) == pytest.approx((12, 2.5))
        assert row["ratio"] == pytest.approx(2.5 / 12) and row["new_final"] == 0.5
    shown = capsys.readouterr().out
    assert "median 0.21, from 0.21 to 0.21, 2 seeds" in shown
    trained = [line.split(", the ")[1][:3] for line in shown.splitlines() if "trains" in line]
    assert trained == ["old", "new", "new", "old"]


def test_a_figure_that_is_not_reached_is_said(builds, capsys):
    (builds[1] / "small.yaml").write_text("accuracy")
    (builds[0] / "small.yaml").write_text("accuracy")
    # Of an accuracy, more is better: it begins at 2.5, below the other one's last 1 never.
    assert compare("--against", str(builds[1]), "--seeds", "3") == 0
    assert "median 0.17" in capsys.readouterr().out
    assert Curve("validation/loss", [(1.0, 3.0), (2.0, 2.0)]).minutes_to(1.9) is None
    assert Curve("validation/accuracy", [(1.0, 0.4), (2.0, 0.6)]).minutes_to(0.45) == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "nowhere"], "nowhere is no checkout of lit_pretrain"),
        (["--against", ".", "--config", "smal.yaml"], "There is no config smal.yaml, nor in"),
        (["--against", ".", "--new", "--fail 1"], "of the new build has failed (lit_pretrain: no luck.)"),
        (["--against", ".", "--metric", "validation/los"], "(did you mean 'validation/loss'?): set --metric to one of"),
        (["--against", ".", "--json", "no/rows.json"], "cannot be written"),
    ],
)
def test_what_cannot_be_compared_is_said(builds, arguments, words, capsys):
    assert compare(*arguments) == 2
    assert words in capsys.readouterr().err


def test_a_curve_is_read_from_a_database_of_mlflow(tmp_path):
    client = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    for number, name in enumerate(("validation/loss", "validation/accuracy"), start=1):
        run = client.create_run("0", start_time=60_000 * number).info.run_id
        client.set_tag(run, "checkpoint.best_score", f"{name} = 0.5")
        for step in (20, 10):
            client.log_metric(run, name, 0.1 * step, timestamp=60_000 * (number + step), step=step)
    curve = Build("old", tmp_path, [], tmp_path).curve(None)
    assert curve == Curve("validation/accuracy", [(10.0, 1.0), (20.0, 2.0)])
