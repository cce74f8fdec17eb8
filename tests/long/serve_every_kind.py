"""Serves a model of every kind by `mlflow models serve`, and compares its answers with those of `predict`.

    python tests/long/serve_every_kind.py --directory /tmp/served

trains each kind for two steps on what comes with the package and on a table that it writes: classes of texts, numbers
of pairs of texts, classes of pictures, embeddings of texts and of pictures. Each is registered with an alias, loaded by
`mlflow.pyfunc.load_model`, and served with `--env-manager local` from another directory; both must answer what
`predict` writes of the same rows. The exit status is 0 if all do. It takes a server's start a kind, which is why it is
no part of the ordinary tests: those serve one kind, and ask the others through the server's own function.
"""

import argparse
import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy
import pandas
import pyarrow.parquet

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "lit_pretrain" / "samples" / "emoji.parquet"
TABLE = ["--data.path", "table.csv"]
TUNE_TEXT = ["--config", "configs/finetune/own_text.yaml", "--model.init_from", "texts"]
TUNE_PICTURES = ["--config", "configs/finetune/own_pictures.yaml", "--model.init_from", "pictures"]
# What is trained by its name, which columns are asked, and which one is answered.
KINDS: dict[str, tuple[list[str], list[str], str]] = {
    "texts": (["--config", "configs/quickstart.yaml"], ["text"], "embedding"),
    "pictures": (["--config", "configs/vision/quickstart.yaml"], ["image"], "embedding"),
    "text-classes": ([*TUNE_TEXT, *TABLE, "--data.label_column", "label"], ["text"], "probability"),
    "pair-numbers": (
        [*TUNE_TEXT, *TABLE, "--data.text_pair_column", "other", "--data.label_column", "score"],
        ["text", "other"],
        "value",
    ),
    "picture-classes": (
        [*TUNE_PICTURES, "--data.path", str(EMOJI), "--data.label_column", "group"],
        ["image"],
        "probability",
    ),
}
SHORT = ["--trainer.max_steps", "2", "--trainer.max_epochs", "null", "--trainer.val_check_interval", "2"]
SHORT += ["--trainer.limit_val_batches", "2", "--trainer.check_val_every_n_epoch", "null"]


def main() -> int:
    """Do all kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    os.environ |= {"LIT_PRETRAIN_RUNS": str(directory / "runs"), "OMP_NUM_THREADS": "1"}
    os.chdir(directory)
    if not (directory / "configs").exists():
        (directory / "configs").symlink_to(ROOT / "configs")
    write_table(directory / "table.csv")
    wrong = [kind for kind in arguments.kinds if not is_right(directory, kind)]
    print(f"wrong: {', '.join(wrong)}" if wrong else "all answer as predict")
    return 1 if wrong else 0


def write_table(path: Path) -> None:
    """Texts with labels and numbers."""
    draw, words = random.Random(0), "the house of war and peace has laws for all people of this nation".split()
    texts = [" ".join(draw.choices(words, k=12)) for _ in range(120)]
    table = {"text": texts, "other": texts[::-1], "label": [draw.choice(["yes", "no"]) for _ in texts]}
    pandas.DataFrame(table | {"score": [draw.uniform(0, 5) for _ in texts]}).to_csv(path, index=False)


def call(*words: str) -> None:
    """Run one of our commands."""
    subprocess.run([sys.executable, "-m", "lit_pretrain", *words], check=True, stdout=subprocess.DEVNULL)


def is_right(directory: Path, kind: str) -> bool:
    """Train, register, load and serve one kind; whether it answers as `predict` writes."""
    options, columns, answer = KINDS[kind]
    if not list(directory.glob(f"runs/*/{kind}-*/checkpoints/last.ckpt")):
        call("fit", *options, *SHORT, "--trainer.logger.run_name", kind)
    rows = pyarrow.parquet.read_table(EMOJI).to_pandas() if columns == ["image"] else pandas.read_csv("table.csv")
    rows = rows[columns].head(6)
    file = directory / f"{kind}.parquet"
    rows.to_parquet(file)
    call("predict", "--ckpt_path", kind, "--data.path", str(file))
    newest = max(directory.glob("runs/*/*/predictions.parquet"), key=lambda path: path.stat().st_mtime_ns)
    expected = numpy.array(pyarrow.parquet.read_table(newest).to_pydict()[answer])
    call("register", kind, "--name", f"{kind}-model", "--alias", "champion")

    asked = rows.copy()
    if columns == ["image"]:
        asked["image"] = [picture["bytes"] for picture in rows["image"]]
    address = f"sqlite:///{directory}/runs/mlflow.db"
    mlflow.set_tracking_uri(address)
    found = mlflow.pyfunc.load_model(f"models:/{kind}-model@champion").predict(asked)
    loaded = numpy.abs(numpy.array(found[answer].tolist()) - expected).max()
    if columns == ["image"]:
        asked["image"] = [base64.b64encode(picture).decode() for picture in asked["image"]]
    answers = ask(f"models:/{kind}-model@champion", address, asked)
    served = numpy.abs(numpy.array([one[answer] for one in answers]) - expected).max()
    print(f"{kind}: {answer} {expected.shape}; largest difference loaded {loaded:.2g}, served {served:.2g}", flush=True)
    return bool(max(loaded, served) < 1e-5)


def ask(model: str, address: str, rows: pandas.DataFrame) -> list[dict]:
    """Start a server, send it one request, end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--port", port, "--env-manager", "local"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["MLFLOW_TRACKING_URI"] = address
    # MLflow starts uvicorn by its name.
    variables["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    with Path("server.log").open("w") as log:
        server = subprocess.Popen(command, env=variables, cwd="/", stdout=log, stderr=log, start_new_session=True)
    body = json.dumps({"dataframe_records": rows.to_dict("records")}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    try:
        while True:
            try:
                with urllib.request.urlopen(request, timeout=120) as response:
                    return json.load(response)["predictions"]
            except OSError:
                if server.poll() is not None:
                    raise
                time.sleep(0.5)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    sys.exit(main())
