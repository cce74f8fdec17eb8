"""Put a model into MLflow's registry, from which `mlflow models serve` and `mlflow.pyfunc.load_model` take it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_pretrain.commands.registration.registry import Version
    from lit_pretrain.commands.registration.subject import Subject

EPILOG = """What is registered answers as predict does: labels with probabilities or a number after fine-tuning, else
embeddings. The checkpoint, this package's code and the versions of what it needs go with it (docs/serving.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be chosen."""
    parser.epilog = EPILOG
    parser.add_argument(
        "run_name", metavar="RUN", help="last, a run's name or id, RUN:best for its best checkpoint, or a checkpoint"
    )
    parser.add_argument("--name", required=True, metavar="N", help="of the registered model; it gets a new version")
    parser.add_argument("--alias", metavar="A", help="set to the new version, such as champion: models:/N@champion")
    parser.add_argument("--tower", choices=["text", "image"], help="of contrastive pretraining: what is embedded")
    parser.add_argument(
        "--config", metavar="FILE", help="whose data and precision hold (default: those of the checkpoint's run)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Register, and say how it is served.

    Raises:
        UserError: If a name is none, the run is not there, or the registry takes nothing.
    """
    from lit_pretrain.commands.registration.registry import check_names, register

    check_names(arguments.name, arguments.alias)
    from lit_pretrain.commands.registration.subject import open_subject
    from lit_pretrain.quiet import quieten

    quieten()
    subject = open_subject(arguments.run_name, arguments.tower, arguments.config)
    tell(subject, register(subject, arguments.name, arguments.alias), arguments.run_name)
    return 0


def tell(subject: Subject, version: Version, reference: str) -> None:
    """What was registered, and the commands that serve and ask it.

    Args:
        subject: Where from.
        version: What came of it.
        reference: What the checkpoint was called.
    """
    from lit_pretrain.errors import without_credentials
    from lit_pretrain.tracking.find import split_tower
    from lit_pretrain.tracking.paths import shown_path

    called = f"{version.name} version {version.number}" + (f", @{version.alias}" if version.alias else "")
    before = f" (which was version {version.former})" if version.former else ""
    print(f"Registered {called}{before}: {subject.task}, {shown_path(subject.path)}, step {subject.step}.")
    called_run = split_tower(reference)[0]
    if subject.best_step not in (None, subject.step) and not called_run.endswith((":best", ".ckpt")):
        print(f"The best checkpoint of its run is that of step {subject.best_step}: {called_run}:best registers it.")
    if not version.linked:
        print("The checkpoint's run is not in the store, so that the version names no run.")
    if subject.settings.kind == "text":
        request = shlex.quote(json.dumps({"dataframe_records": [dict.fromkeys(subject.settings.columns, "a text")]}))
    else:
        column = subject.settings.columns[0]
        content = "$(base64 < picture.png | tr -d '\\n')"
        request = f'"{{\\"dataframe_records\\": [{{\\"{column}\\": \\"{content}\\"}}]}}"'
    stores = f"MLFLOW_TRACKING_URI={shlex.quote(without_credentials(version.tracking_uri))}"
    if registry := os.environ.get("MLFLOW_REGISTRY_URI"):
        stores += f" MLFLOW_REGISTRY_URI={shlex.quote(without_credentials(registry))}"
    print(
        f"Serve it:  {stores} mlflow models serve -m {shlex.quote(version.uri)} --env-manager local "
        "--port 5001\n"
        f"Ask it:    curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d {request}\n"
        "See it:    python -m lit_pretrain ui"
    )
