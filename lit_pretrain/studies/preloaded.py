"""What the process that others are forked from does once: it imports all that a training imports sooner or later."""

import gc
import inspect

from lit_pretrain.tracking.store import prepare_mlflow

# MLflow reads its settings when it is imported.
prepare_mlflow()

import mlflow.store.tracking.sqlalchemy_store  # noqa: E402, F401
import mlflow.tracking  # noqa: E402, F401

import lit_pretrain.cli.lightning_cli  # noqa: E402, F401

# jsonargparse asks by which module it is called, and the first answer takes a look at the files of all modules.
inspect.stack()
# A search for garbage would look at all that was imported, and thereby copy its pages for the process that looks.
gc.collect()
gc.freeze()
