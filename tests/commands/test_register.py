"""Models in MLflow's registry: made of real runs, loaded, served, and held against what `predict` writes."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pandas
import pyarrow.parquet
import pytest
import torch
from labelled_texts import TOKENIZER, make_encoder, write_texts
from mlflow.pyfunc.scoring_server import invocations
from registered_models import check_equal, load
from small_disks import forbid_writing, small_disk
from small_pictures import picture_config, write_pictures
from small_training import training_of, write_config

from lit_pretrain.__main__ import main
from lit_pretrain.commands.registration.requirements import own_code, pinned_requirements
from lit_pretrain.modules import FineTuning
from lit_pretrain.tracking.find import find_run
from lit_pretrain.tracking.store import open_store


def fine_tuning(home: Path, **data: object) -> dict:
    """A fine-tuning on texts whose columns are not called as elsewhere."""
    return training_of(
        {"class_path": "FineTuning", "init_args": {"init_from": str(home / "bert"), "pooling": "mean"}},
        {
            "class_path": "LabelledDataModule",
            "init_args": {
                "path": str(home / "texts.parquet"),
                "tokenizer": str(home / "bert"),
                "maximum_length": 16,
                "batch_size": 7,
                "validation_share": 0.25,
                **data,
            },
        },
    )


def picture_classes(home: Path) -> dict:
    """A fine-tuning on pictures that are taken as large as they are, in whatever precision this machine has."""
    config = picture_config(home / "pictures.parquet", [], {"precision": "auto"})
    encoder = config["model"]["init_args"]["encoder"]
    encoder["init_args"]["image_size"] = 12
    config["model"] = {"class_path": "FineTuning", "init_args": {"encoder": encoder}}
    config["data"] = {
        "class_path": "LabelledDataModule",
        "init_args": {"path": str(home / "pictures.parquet"), "image_column": "image", "batch_size": 8},
    }
    return config


def pairs(home: Path) -> dict:
    """A fine-tuning on pairs of texts, to a number."""
    return fine_tuning(home, text_column="other", text_pair_column="text", label_column="score")


# What is trained, and on which table; embeddings are registered where their runs are made for other tests.
KINDS = {"classes": (fine_tuning, "texts"), "pairs": (pairs, "texts"), "picture-classes": (picture_classes, "pictures")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What is trained on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        directory = tmp_path_factory.mktemp("registered")
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.chdir(directory)
        make_encoder(vocabulary_size=TOKENIZER.vocabulary_size).save_pretrained(directory / "bert")
        TOKENIZER.save(directory / "bert")
        write_texts(directory / "texts.parquet", 30)
        write_pictures(directory / "pictures.parquet", 24)
        yield directory


def fit(home: Path, name: str) -> None:
    """Train for a step under a name, unless another test has."""
    if list(home.glob(f"runs/*/{name}-*/checkpoints/last.ckpt")):
        return
    config = KINDS[name][0](home)
    config["trainer"] |= {"max_steps": 1, "val_check_interval": 1, "log_every_n_steps": 1}
    config["trainer"]["logger"]["init_args"] = {"run_name": name}
    assert main(["fit", "--config", str(write_config(home / f"{name}.yaml", config))]) == 0


def predicted(home: Path, name: str) -> dict[str, list]:
    """What `predict` writes of a table."""
    assert main(["predict", "--ckpt_path", name, "--data.path", str(home / f"{KINDS[name][1]}.parquet")]) == 0
    newest = max(home.glob("runs/*/*/predictions.parquet"), key=lambda path: path.stat().st_mtime_ns)
    return pyarrow.parquet.read_table(newest).to_pydict()


def rows_of(home: Path, name: str) -> pandas.DataFrame:
    """The same table as a person has it, without what is not asked."""
    table = pyarrow.parquet.read_table(home / f"{KINDS[name][1]}.parquet").to_pandas()
    if "image" in table:
        table["image"] = [picture["bytes"] for picture in table["image"]]
    return table[[column for column in ("text", "other", "image") if column in table]]


def client_of(home: Path) -> mlflow.MlflowClient:
    """Of the store beside the runs."""
    return mlflow.MlflowClient(f"sqlite:///{home}/runs/mlflow.db")


@pytest.fixture(scope="module")
def champion(home):
    """A registered classifier of texts, and what `predict` has written."""
    fit(home, "classes")
    assert main(["register", "classes", "--name", "speeches", "--alias", "champion"]) == 0
    return predicted(home, "classes")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "classes"])
def test_a_registered_model_answers_as_predict(home, name, capfd):
    fit(home, name)
    written = predicted(home, name)
    capfd.readouterr()
    assert main(["register", name, "--name", f"a {name}.1"]) == 0
    out, err = capfd.readouterr()
    assert f"Registered a {name}.1 version 1: " in out and not err

    model, table = load(home / "runs", f"models:/a {name}.1/1"), rows_of(home, name)
    inputs = model.metadata.get_input_schema().input_names()
    assert inputs == (["other", "text"] if name == "pairs" else [table.columns[0]])
    check_equal(model.predict(table[inputs]), written)
    assert not capfd.readouterr().err

    # As a server has it: few rows, pictures in base64. What is beside them in a batch matters to bf16 alone.
    requested = table[inputs].iloc[[2, 0]]
    if "image" in inputs:
        requested = requested.assign(image=[base64.b64encode(content).decode() for content in requested["image"]])
    body = json.dumps({"dataframe_records": requested.to_dict("records")})
    response = invocations(body, "application/json", model, model.metadata.get_input_schema())
    assert response.status == 200
    written = {column: [values[2], values[0]] for column, values in written.items()}
    check_equal(json.loads(response.response)["predictions"], written, 0.02 if name == "picture-classes" else 1e-6)


def test_it_is_served(home, champion):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/speeches@champion", "--port", port]
    # In another directory, without this checkout: the code is the model's own.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/runs/mlflow.db", "OMP_NUM_THREADS": "1"}
    # MLflow starts uvicorn by its name.
    variables["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local"], env=variables, cwd="/", stdout=log, stderr=log, start_new_session=True
        )
    try:
        texts = rows_of(home, "classes")["text"].tolist()
        body = json.dumps({"inputs": {"text": texts}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        for _ in range(600):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    answers = json.load(response)["predictions"]
                break
            except OSError:
                assert server.poll() is None, (home / "server.log").read_text()
                time.sleep(0.2)
        check_equal(answers, champion)
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


def test_the_version_knows_where_it_comes_from(home, champion, capsys, monkeypatch):
    client, record = client_of(home), find_run("classes", with_checkpoints=True)
    version = client.get_model_version_by_alias("speeches", "champion")
    assert version.run_id == record.run_id and "`gives`, `takes`" in version.description
    model_id = version.source.removeprefix("models:/")
    run, model = client.get_run(record.run_id), client.get_logged_model(model_id)
    assert version.tags["data_fingerprint"] == run.data.params["data_facts.data_fingerprint"]
    assert version.tags["tokenizer_hash"] == TOKENIZER.hash and version.tags["step"] == "1"
    assert model_id in [output.model_id for output in run.outputs.model_outputs]
    (loss,) = [metric for metric in model.metrics if metric.key == "validation/loss"]
    assert loss.value == run.data.metrics["validation/loss"] and str(model.status) == "READY"
    assert loss.dataset_digest in [one.dataset.digest for one in run.inputs.dataset_inputs]

    files = Path(re.sub("^file://", "", model.artifact_location))
    requirements = (files / "requirements.txt").read_text().splitlines()
    assert requirements == pinned_requirements()
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", line) for line in requirements) and len(requirements) > 15
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements
    # Nothing that runs code when it is read, and nothing that only a training needs.
    assert not [path for path in files.rglob("*") if path.suffix in (".pkl", ".pickle")]
    (checkpoint,) = files.rglob("*.ckpt")
    assert not {"optimizer_states", "loops"} & torch.load(checkpoint, weights_only=True).keys()
    assert FineTuning.from_checkpoint(checkpoint).classes == ["gives", "takes"]
    assert (files / "code/lit_pretrain/serving/mlflow_loader.py").is_file()

    # A second one, and a copy of the checkpoint that lies by itself.
    capsys.readouterr()
    shutil.copy(record.checkpoints / "last.ckpt", home / "copy.ckpt")
    assert main(["register", "copy.ckpt", "--name", "speeches"]) == 2
    assert "copy.ckpt has no config.yaml of its run beside it" in capsys.readouterr().err
    config = str(record.directory / "config.yaml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/runs/mlflow.db")
    assert main(["register", "copy.ckpt", "--name", "speeches", "--alias", "champion", "--config", config]) == 0
    out = capsys.readouterr().out
    assert "version 2, @champion (which was version 1)" in out and "names no run" in out
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{home}/runs/mlflow.db"
    assert not client.get_model_version_by_alias("speeches", "champion").run_id
    client.set_registered_model_alias("speeches", "champion", "1")


def test_a_request_that_cannot_be_answered_says_why(home, champion):
    model = load(home / "runs", "models:/speeches@champion")
    for records, sentence in (
        ([{"text": 5}], "Row 0 of 'text' holds int, not text"),
        ([{"text": ["a", "b"]}], "Row 0 of 'text' holds list, not text"),
        ([{"txt": "a"}], r"Model is missing inputs \['text'\]"),
    ):
        with pytest.raises(mlflow.MlflowException, match=sentence):
            invocations(
                json.dumps({"dataframe_records": records}),
                "application/json",
                model,
                model.metadata.get_input_schema(),
            )
    with pytest.raises(mlflow.MlflowException, match="There are no rows"):
        model.predict(rows_of(home, "classes").head(0))
    # As `predict` takes a missing text.
    table = rows_of(home, "classes").head(2).assign(text=[None, ""])
    first, second = model.predict(table).to_dict("records")
    assert first == second


def test_a_file_is_no_picture_of_a_request(home):
    fit(home, "picture-classes")
    assert main(["register", "picture-classes", "--name", "files"]) == 0
    model, table = load(home / "runs", "models:/files/1"), rows_of(home, "picture-classes")
    for content, sentence in (
        (str(home / "pictures.parquet"), "row|Row 0 of 'image' is a text that is not base64"),
        (b"no picture", "row 0 of 'image': it is no picture that Pillow knows"),
        (table["image"][0][:200], "row 0 of 'image': "),
        (None, "Row 0 of 'image' holds NoneType, no picture"),
    ):
        with pytest.raises(mlflow.MlflowException, match=sentence):
            model.predict(table.head(1).assign(image=[content]))


def test_what_is_wrong_is_one_sentence(home, champion, capsys):
    def told(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["register", *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "--name is 'our/speeches'" in told("classes", "--name", "our/speeches")
    assert "give 'our-speeches', say" in told("nothing", "--name", "our/speeches")
    assert "--name is ''" in told("classes", "--name", "")
    for alias in ("latest", "v2", "a b"):
        assert f"--alias is '{alias}'" in told("classes", "--name", "speeches", "--alias", alias)
    assert "is called 'clases' (did you mean 'classes'?)" in told("clases", "--name", "speeches")
    client_of(home).register_prompt("greeting", "Hello")
    assert "has a prompt that is called 'greeting'" in told("classes", "--name", "greeting")
    assert "no two towers: leave the tower out" in told("classes", "--name", "speeches", "--tower", "text")

    # Before its first checkpoint is whole, and beside another of its name.
    record = find_run("classes", with_checkpoints=True)
    empty = record.directory.parent / "empty-12345678"
    shutil.copytree(record.directory, empty, ignore=shutil.ignore_patterns("*.ckpt", "checkpoints.json"))
    content = json.loads((empty / "run.json").read_text())
    (empty / "run.json").write_text(json.dumps(content | {"run_id": "1234" * 8, "run_name": "empty"}))
    (empty / "checkpoints" / ".last.ckpt.1.part").write_bytes(b"half")
    assert "The run empty has no checkpoint" in told("empty", "--name", "speeches")
    twin = shutil.copytree(record.directory, record.directory.parent / "twin-12345678")
    (twin / "run.json").write_text(json.dumps(content | {"run_id": "5678" * 8}))
    line = told("classes", "--name", "speeches")
    assert "fits 2 runs: say which, by id: " in line and record.run_id[:8] in line and "56785678" in line
    for directory in (empty, twin):
        shutil.rmtree(directory)
    assert len(client_of(home).search_model_versions("name = 'speeches'")) <= 2


def copied(home: Path, target: Path) -> Path:
    """The runs elsewhere, with a database of their own."""
    shutil.copytree(home / "runs", target / "runs", ignore=shutil.ignore_patterns("caches"))
    for path in target.glob("runs/*/*/run.json"):
        path.write_text(path.read_text().replace(str(home), str(target)))
    return target / "runs"


def test_a_moved_runs_directory_takes_its_models_along(home, champion, tmp_path, monkeypatch, capsys):
    runs = copied(home, tmp_path)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(runs))
    client = open_store(f"sqlite:///{runs}/mlflow.db", runs)
    version = client.get_model_version("speeches", "1")
    place = client.get_model_version_download_uri("speeches", "1")
    assert place.startswith(runs.as_uri()) and Path(place.removeprefix("file://"), "MLmodel").is_file()
    assert client.get_logged_model(version.source.removeprefix("models:/")).artifact_location == place

    # Where no file can be put, nothing is left in the registry either.
    models = Path(place.removeprefix("file://")).parents[1]
    shutil.rmtree(models)
    models.write_text("in the way")
    assert main(["register", "classes", "--name", "others"]) == 2
    assert "takes no model" in capsys.readouterr().err
    assert not client.search_registered_models("name = 'others'")
    experiment = client.get_run(version.run_id).info.experiment_id
    assert "others" not in [model.name for model in client.search_logged_models([experiment])]


def test_a_registry_that_cannot_be_written_is_one_sentence(home, champion, tmp_path, monkeypatch, capfd):
    with small_disk(tmp_path / "disk", 64_000) as disk:
        runs = copied(home, disk)
        # The database alone, and all of it.
        elsewhere = tmp_path / "runs"
        shutil.copytree(runs, elsewhere, ignore=shutil.ignore_patterns("mlflow.db", "artifacts"))
        for path in elsewhere.glob("*/*/run.json"):
            path.write_text(path.read_text().replace(str(runs), str(elsewhere)))
        (elsewhere / "mlflow.db").symlink_to(runs / "mlflow.db")
        forbid_writing(disk)
        for place, sentence in (
            (elsewhere, "takes no model .*attempt to write a readonly database\\): see that its database and"),
            (runs, "Read-only file system: '.*'\\): see that it can be written, or set"),
        ):
            monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(place))
            capfd.readouterr()
            assert main(["register", "classes", "--name", "fresh"]) == 2
            (line,) = capfd.readouterr().err.strip().splitlines()
            assert re.search(sentence, line), line


def test_classes_of_a_person_travel_with_the_model(tmp_path, monkeypatch):
    (tmp_path / "travelling.py").write_text("")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "__init__.py").write_text("")
    (tmp_path / "packed" / "parts.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    record = {
        "encoder_class": "packed.parts.Encoder",
        "encoder": {},
        "objectives": [{"class_path": "travelling.Mine", "init_args": {}}, {"class_path": "Rotation", "init_args": {}}],
    }
    assert own_code(record) == [tmp_path / "packed", tmp_path / "travelling.py"]
