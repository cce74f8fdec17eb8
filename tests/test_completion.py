"""What a shell is told that completes a command line: driven as argcomplete's functions for bash and zsh do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_pretrain.cli.completion import known_settings, settings_file
from lit_pretrain.tracking.find import RunRecord

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A place with a run, and with the settings written down, which this process makes since it has the imports."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        known_settings()
        written = settings_file()
        assert written.is_file() and json.loads(written.read_text()) == json.loads(json.dumps(known_settings()))
    directory = place / "runs" / "default" / "first-12345678"
    directory.mkdir(parents=True)
    RunRecord("1" * 32, "default", "", "first-of-all", directory).write()
    return place


def completed(place, line, start=3):
    """Answers to a line whose end is completed; `start` is the word at which the program's own begin."""
    answer = place / "answer"
    environment = {
        "_ARGCOMPLETE": str(start),
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "XDG_CACHE_HOME": str(place / "cache"),
        "LIT_PRETRAIN_RUNS": str(place / "runs"),
    }
    # `-X importtime` tells what was imported: what takes seconds must not be.
    script = ["-c", "from lit_pretrain.__main__ import script; script()"]
    command = [sys.executable, "-X", "importtime", *(script if start == 1 else ["-m", "lit_pretrain"])]
    done = subprocess.run(
        command, env=os.environ | environment, cwd=CONFIG.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == "", done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "lightning", "mlflow"}
    return [word.rstrip() for word in answer.read_text().split("\n")]


def test_commands_settings_values_files_and_runs(place):
    python = "python -m lit_pretrain "
    assert completed(place, python + "ex") == ["export"]
    assert completed(place, python + "fit --trainer.max_s") == ["--trainer.max_steps"]
    # Of the class that the config names, with groups and their settings.
    found = completed(place, f"{python}fit --config {CONFIG} --data.")
    assert {"--data.sequence_length", "--data.replay.share"} <= set(found) and "--data.crop" not in found
    assert not any(option.startswith("--trainer") for option in found)
    assert completed(place, python + "fit --trainer.enable_progress_bar ") == ["true", "false", "null"]
    assert completed(place, python + "fit --config configs/qui") == ["configs/quickstart.yaml"]
    assert completed(place, python + "test --ckpt_path fir") == ["first-of-all"]
    assert completed(place, "lit-pretrain report firs", start=1) == ["first-of-all"]
    assert completed(place, "lit-pretrain export --format ti", start=1) == ["timm"]


def test_the_mark_by_which_argcomplete_knows_the_module():
    import lit_pretrain.__main__ as entry

    assert "PYTHON_ARGCOMPLETE_OK" in Path(entry.__file__).read_text()[:1024]
