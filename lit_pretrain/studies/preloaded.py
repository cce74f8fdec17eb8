"""What the process that others are forked from imports once: all that a training imports sooner or later."""

from lit_pretrain.tracking.store import prepare_mlflow

# MLflow reads its settings when it is imported.
prepare_mlflow()

import mlflow.store.tracking.sqlalchemy_store  # noqa: E402, F401
import mlflow.tracking  # noqa: E402, F401

import lit_pretrain.cli.lightning_cli  # noqa: E402, F401
