"""A config for the real entry point that trains in a second, and how to start it as a person does."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from child_processes import Command


def training_of(model: dict, data: dict, trainer: dict | None = None) -> dict:
    """A config of 40 steps with four validations; `trainer` has what differs."""
    return {
        "seed_everything": 3,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "precision": "32-true",
            "max_steps": 40,
            "val_check_interval": 10,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 5,
            "enable_progress_bar": False,
            "logger": {"class_path": "MLflowLogger", "init_args": {"experiment": "small"}},
        }
        | (trainer or {}),
        "model": model,
        "data": data,
    }


def small_config(corpus: Path, trainer: dict | None = None, **settings: object) -> dict:
    """BERT's two objectives, one block, on the made-up corpus; `settings` are the data's."""
    return training_of(
        trainer=trainer,
        model={
            "class_path": "TextPretraining",
            "init_args": {
                "encoder": {
                    "class_path": "TextEncoder",
                    "init_args": {
                        "transformer": {"depth": 1, "width": 32, "heads": 2, "dropout": 0.1},
                        "max_positions": 32,
                    },
                },
                "objectives": [{"class_path": "MaskedLanguageModeling"}, {"class_path": "NextSentencePrediction"}],
            },
        },
        data={
            "class_path": "DocumentDataModule",
            "init_args": {
                "path": str(corpus),
                "vocabulary_size": 90,
                "sequence_length": 32,
                "batch_size": 8,
                "validation_share": 0.2,
            }
            | settings,
        },
    )


def write_config(path: Path, config: dict) -> Path:
    """The config as a file."""
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def variables(runs: Path, **environment: str) -> dict[str, str]:
    """Those of this process, with a place for runs and one thread."""
    kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return kept | {"LIT_PRETRAIN_RUNS": str(runs), "OMP_NUM_THREADS": "1"} | environment


def start(*arguments: str, runs: Path, **environment: str) -> Command:
    """`python -m lit_pretrain` in a process that has all imports behind it, on one thread."""
    return Command(*arguments, **variables(runs, **environment))


def run(*arguments: str, runs: Path, **environment: str) -> subprocess.CompletedProcess:
    """The same as a person starts it, to its end."""
    command = [sys.executable, "-m", "lit_pretrain", *arguments]
    return subprocess.run(command, env=variables(runs, **environment), capture_output=True, text=True, timeout=240)
