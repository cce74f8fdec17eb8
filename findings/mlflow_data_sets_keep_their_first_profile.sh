#!/usr/bin/env bash
# mlflow 3.17.2: a data set that is logged again with another profile keeps the first one, and with another context too.
#
# Where: MlflowClient.log_inputs with DatasetInput and Dataset(name, digest, profile) on a store in a database.
# Behaviour: within an experiment there is one data set for a name and a digest. A second run that logs the same name and
#   digest with another profile (its number of rows, say, of which a part is trained on) shows the first run's profile,
#   without a word. And a run that logs the same data set a second time in another context (training, then validation)
#   keeps the first context alone.
# Seen (2026-11-29, Linux x86_64, Python 3.11), 9 rows in the first run, 5,000 in the second, then as validation data:
#   profile of the second run: {"num_rows": 9}; contexts: ['training']
# Way round: put what differs (the part, the count) into the name or the digest.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet mlflow==3.17.2
cat > "$work/check.py" <<'PYTHON'
import logging

logging.disable(logging.CRITICAL)
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

client = MlflowClient("sqlite:///store.db")
experiment = client.create_experiment("cells")


def log(run_id, rows, context):
    data = Dataset("reviews", "0123abcd", "local", "{}", None, f'{{"num_rows": {rows}}}')
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])


first, second = (client.create_run(experiment).info.run_id for _ in range(2))
log(first, 9, "training")
log(second, 5000, "training")
log(second, 5000, "validation")
inputs = client.get_run(second).inputs.dataset_inputs
profiles = {one.dataset.profile for one in inputs}
contexts = [tag.value for one in inputs for tag in one.tags if tag.key == "mlflow.data.context"]
print(f"profile of the second run: {', '.join(profiles)}; contexts: {contexts}")
raise SystemExit(0 if profiles == {'{"num_rows": 9}'} and contexts == ["training"] else 1)
PYTHON
cd "$work"
"$work/venv/bin/python" -W ignore "$work/check.py" || { echo "The behaviour has changed."; exit 1; }
