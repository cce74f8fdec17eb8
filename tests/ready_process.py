"""What a training does once in a process, done before others are forked from it: each saves a second.

The parsers of the classes that most configs of tests name are made, MLflow's tables are mapped, and the machine's peak
is measured. None of it starts a thread.
"""

import contextlib
import io
import json

import mlflow.store.tracking.sqlalchemy_workspace_store  # noqa: F401
import PIL.Image
import ready_database
import rich._emoji_codes  # noqa: F401
import scipy.io  # noqa: F401
import sqlalchemy.dialects.sqlite  # noqa: F401
import sqlalchemy.orm
import torch
from small_pictures import picture_config
from small_training import small_config

from lit_pretrain.__main__ import main
from lit_pretrain.callbacks.peak import measured_peak
from lit_pretrain.cli import lightning_cli

ENCODER = {"class_path": "VisionEncoder", "init_args": {"image_size": 16, "patch_size": 4}}


def parse(config: dict) -> None:
    """Parse a training's settings."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["fit", "--config", json.dumps(config), "--print_config"])


# What is freed here is given back.
keep_memory, lightning_cli.keep_memory = lightning_cli.keep_memory, lambda: False
tuned = picture_config("pictures.parquet", [])
tuned["model"] = {"class_path": "FineTuning", "init_args": {"encoder": ENCODER}}
for settings in (small_config("corpus.jsonl"), picture_config("pictures.parquet", [{"class_path": "Rotation"}]), tuned):
    parse(settings)
lightning_cli.keep_memory = keep_memory
PIL.Image.preinit()
sqlalchemy.orm.configure_mappers()
ready_database.database._get_latest_schema_revision()
threads = torch.get_num_threads()
torch.set_num_threads(1)
measured_peak("cpu", torch.float32)
torch.set_num_threads(threads)
