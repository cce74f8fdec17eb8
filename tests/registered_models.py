"""Models in MLflow's registry, loaded and held against what `predict` writes."""

import os
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy
import pandas

from lit_pretrain.__main__ import main


def load(runs: Path, uri: str) -> mlflow.pyfunc.PyFuncModel:
    """A registered model of a runs directory; nothing of it is left in this process."""
    places = sys.path
    try:
        mlflow.set_tracking_uri(f"sqlite:///{runs}/mlflow.db")
        return mlflow.pyfunc.load_model(uri)
    finally:
        mlflow.set_tracking_uri(None)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        sys.path = places


def check_equal(answers: pandas.DataFrame | list[dict], written: dict[str, list], tolerance: float = 1e-6) -> None:
    """Hold answers against the columns of a file."""
    answers = answers if isinstance(answers, list) else answers.to_dict("records")
    assert answers and len(answers) == len(written["sample_id"])
    for name in answers[0]:
        answered = [row[name] for row in answers]
        if name == "label":
            assert answered == written[name]
        else:
            numpy.testing.assert_allclose(answered, written[name], atol=tolerance, rtol=0)


def check_registered(runs: Path, reference: str, rows: dict[str, list], written: dict[str, list], *more: str) -> Any:
    """Register a run, and see that the model answers rows as `predict` has; the model is returned."""
    name = f"model-{len(mlflow.MlflowClient(f'sqlite:///{runs}/mlflow.db').search_registered_models())}"
    assert main(["register", reference, "--name", name, *more]) == 0
    model = load(runs, f"models:/{name}/1")
    assert model.metadata.get_input_schema().input_names() == list(rows)
    check_equal(model.predict(pandas.DataFrame(rows)), written)
    return model
