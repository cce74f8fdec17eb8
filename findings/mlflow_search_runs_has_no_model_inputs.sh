#!/usr/bin/env bash
# mlflow 3.17.2: search_runs returns runs without the models that they read, get_run returns them with these.
#
# Where: MlflowClient.log_inputs(models=[LoggedModelInput]) and RunInputs.model_inputs on a store in a database.
# Behaviour: a run that evaluates a logged model names it as an input. Found again by search_runs it has none, while the
#   models that it made (outputs.model_outputs) are there, so that a table of which run measured which model, made by
#   search, is empty without a word; get_run with the same id has both.
# Seen (2026-11-29, Linux x86_64, Python 3.11):
#   get_run: 1 read, 1 made; search_runs: 0 read, 1 made
# Way round: get_run for each run that search_runs has found.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet mlflow==3.17.2
cat > "$work/check.py" <<'PYTHON'
import logging

logging.disable(logging.CRITICAL)
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, LoggedModelOutput

client = MlflowClient("sqlite:///store.db")
experiment = client.create_experiment("measured")
run_id = client.create_run(experiment).info.run_id
model_id = client.create_logged_model(experiment, name="encoder", source_run_id=run_id).model_id
client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
client.log_outputs(run_id, [LoggedModelOutput(model_id, 3)])
got, (found,) = client.get_run(run_id), client.search_runs([experiment])
counts = [(len(run.inputs.model_inputs), len(run.outputs.model_outputs)) for run in (got, found)]
print("; ".join(f"{name}: {read} read, {made} made" for name, (read, made) in zip(("get_run", "search_runs"), counts)))
raise SystemExit(0 if counts == [(1, 1), (0, 1)] else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
