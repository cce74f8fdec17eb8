"""The command line as a person meets it: help, a whole cycle of commands, and mistakes."""

import contextlib
import copy
import gc
import io
import json
import os
import re
import subprocess
import sys
import weakref

import mlflow
import pyarrow.parquet
import pytest
import torch
import yaml
from child_processes import both_ranks, output_of
from jsonargparse import Namespace
from jsonargparse._common import parser_context
from jsonargparse._loaders_dumpers import load_value
from small_training import run, small_config, start, write_config
from text_corpus import Slow, write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder
from lit_pretrain.cli.class_parsers import MADE, made_once
from lit_pretrain.cli.lightning_cli import CommandLine, command_line
from lit_pretrain.data import DocumentDataModule
from lit_pretrain.modules import TextPretraining


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def environment(runs, monkeypatch):
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(runs))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "small.yaml", small_config(corpus))


@pytest.fixture(scope="module")
def fitted(config, runs):
    """The output of one fit, in a process of its own."""
    process = start("fit", "--config", str(config), runs=runs)
    output, errors = process.communicate()
    return subprocess.CompletedProcess([], process.returncode, output, errors)


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["doctor", "--help"], ["ui", "--help"], []])
def test_help_needs_no_torch(arguments):
    code = (
        "import sys; from lit_pretrain.__main__ import main\n"
        f"try: status = main({arguments!r})\n"
        "except SystemExit as error: status = error.code\n"
        "heavy = {'torch', 'lightning', 'mlflow', 'datasets', 'rich'} & set(sys.modules)\n"
        "sys.exit(status or len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m lit_pretrain" in done.stdout


def test_a_stream_that_is_not_in_utf_8_shows_question_marks(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["--version"]) == 0
    print("0:01 • größer")
    stream.flush()
    assert stream.buffer.getvalue().decode("ascii").endswith("0:01 ? gr??er\n")


def test_fit_ends_with_metrics_checkpoint_and_the_next_command(fitted, runs):
    assert fitted.returncode == 0, fitted.stderr
    assert "After 40 steps" in fitted.stdout
    row = r"^ +next_sentence_prediction/loss +[\d.]+ +[\d.]+ +\d+ +0\.6931 *$"
    assert re.search(row, fitted.stdout, re.MULTILINE) and "\x1b" not in fitted.stdout
    # What is printed once is printed here.
    for told_by_lightning in ("Seed set", "GPU available", "max_steps=40"):
        assert told_by_lightning not in fitted.stdout + fitted.stderr
    name = re.search(r"^  run +(\S+) in ", fitted.stdout, re.MULTILINE)[1]
    assert f"python -m lit_pretrain export --ckpt {name}:best --to my-model" in fitted.stdout
    assert "python -m lit_pretrain compare --experiment small" in fitted.stdout
    (last,) = runs.glob("small/*/checkpoints/last.ckpt")
    assert str(last) in fitted.stdout.replace("\n", "")
    assert "python -m lit_pretrain ui" in fitted.stdout
    assert "Traceback" not in fitted.stderr and "Warning" not in fitted.stderr, fitted.stderr


def test_a_run_in_mlflow_has_all_it_needs(fitted, runs):
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    (found,) = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"], max_results=1)
    assert found.info.status == "FINISHED" and found.info.run_name.startswith("small-")
    parameters, metrics, tags = found.data.params, found.data.metrics, found.data.tags
    assert parameters["data.sequence_length"] == "32"
    assert parameters["model.objectives"] == "MaskedLanguageModeling, NextSentencePrediction"
    for objective in ("masked_language_modeling", "next_sentence_prediction"):
        for name in ("loss", "accuracy"):
            assert {f"train/{objective}/{name}", f"validation/{objective}/{name}"} <= set(metrics)
            assert f"best/validation/{objective}/{name}" in metrics
    assert "validation/masked_language_modeling/perplexity" in metrics and "learning_rate" in metrics
    assert {"throughput/tokens_per_second", "throughput/share_of_peak", "throughput/teraflops_per_second"} <= set(
        metrics
    )
    everything = json.dumps({**parameters, **tags})
    for word in ("tokenizer.hash", "data.fingerprint", "versions.torch", "git.", "last.ckpt"):
        assert word in everything, word
    steps = [one.step for one in client.get_metric_history(found.info.run_id, "validation/loss")]
    assert steps == [10, 20, 30, 40]
    assert "config.yaml" in {one.path for one in client.list_artifacts(found.info.run_id)}
    table = mlflow.artifacts.load_dict(f"{found.info.artifact_uri}/examples/masked_language_modeling.json")
    assert {"masked", "prediction", "truth"} <= set(table["columns"]) and "[MASK]" in str(table["data"])


def test_validate_test_and_predict_a_checkpoint(fitted, config, runs, tmp_path, capsys):
    model = weakref.ref(command_line(["validate", "--config", str(config), "--ckpt_path", "last"], CommandLine).model)
    gc.collect()
    assert model() is None
    printed = capsys.readouterr().out
    assert "  next_sentence_prediction/loss" in printed and "chance" in printed and "DataLoader 0" not in printed
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("small").experiment_id
    (trained,) = client.search_runs([experiment], "tags.stage = 'fit'")
    (measured,) = client.search_runs([experiment], "tags.stage = 'validate'")
    assert measured.data.metrics["validation/loss"] == trained.data.metrics["validation/loss"]
    assert measured.data.tags["source.run_id"] == trained.info.run_id
    # Without a config, the one of the checkpoint's own run is taken.
    assert main(["test", "--ckpt_path", "last"]) == 0
    assert main(["predict", "--config", str(config), "--ckpt_path", "last"]) == 0
    (file,) = runs.rglob("*.parquet")
    table = pyarrow.parquet.read_table(file).to_pydict()
    assert table["sample_id"] == list(range(60)) and len(table["embedding"][0]) == 32


def test_print_config_is_a_config(config, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["gradient_clip_norm"] == 1.0
    assert printed["trainer"]["max_steps"] == 40 and printed["data"]["init_args"]["batch_size"] == 8
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--print_config=skip_default"])
    short = yaml.safe_load(capsys.readouterr().out)
    assert short["trainer"]["max_steps"] == 40 and short["data"]["init_args"]["batch_size"] == 8
    assert "validation_share" in printed["data"]["init_args"] and "workers" not in short["data"]["init_args"]
    # The next command in this process makes no parser again, and keeps none of a class that may be another by then.
    made = dict(MADE)
    assert {TextPretraining, DocumentDataModule, TextEncoder} <= {kind for kind, *_ in made}
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--trainer.callbacks+", "text_corpus.Slow", "--print_config"])
    assert "text_corpus.Slow" in capsys.readouterr().out
    assert MADE.items() >= made.items() and Slow not in {kind for kind, *_ in MADE}


def test_settings_are_found_copied_and_read_as_by_jsonargparse():
    """What is done in less time while a config is parsed comes to the same."""

    def outcomes():
        kept = Namespace(a=Namespace(b=1, c=None, keys=[Namespace(d=2)]), e={"f": Namespace(g=3), 4: [5]}, h=None)
        kept.update(Namespace(k=6), "a.i.j")
        kept["a.i.pop"] = 7
        for name in (
            "a",
            "a.b",
            "a.c.d",
            "a.keys",
            "a.b.c",
            "e",
            "e.f",
            "h.i",
            "a.i.j.k",
            "a.i.pop",
            "x",
            "",
            "a..b",
            8,
        ):
            for ask in (Namespace.get, Namespace.__getitem__, Namespace.__contains__, Namespace._parse_key):
                try:
                    yield name, ask(kept, name)
                except Exception as error:
                    yield name, type(error), str(error)
        yield kept.clone(), kept.clone() is kept, kept.clone()["e"]["f"] is kept["e"]["f"], kept.pop("a.b"), kept
        with parser_context(load_value_mode="yaml"):
            for text in (
                "word",
                "1e5",
                "0x1f",
                "yes",
                "~",
                ".nan",
                "[1, 2]",
                "{a: 1}",
                "a: b",
                "'q'",
                "- x",
                "#c",
                "null",
            ):
                yield text, repr(load_value(text)), repr(load_value(text, simple_types=True))

    with made_once():
        ours = [str(outcome) for outcome in outcomes()] + [str(outcome) for outcome in outcomes()]
    assert ours == [str(outcome) for outcome in outcomes()] * 2


def test_the_commands_line_wins_over_files_and_later_files_over_earlier(config, tmp_path, capsys):
    fragment = tmp_path / "fragment.yaml"
    fragment.write_text("trainer: {max_steps: 7}\ndata: {init_args: {batch_size: 4}}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--config", str(fragment), "--data.batch_size", "2", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["max_steps"] == 7 and printed["trainer"]["log_every_n_steps"] == 5
    assert printed["data"]["init_args"]["batch_size"] == 2 and printed["data"]["init_args"]["sequence_length"] == 32


def test_lists_compose_as_the_page_on_configs_says(config, tmp_path, capsys):
    first = [{"class_path": "MaskedLanguageModeling", "init_args": {"probability": 0.3}}, {"class_path": "BagOfWords"}]
    small = set_in(yaml.safe_load(config.read_text()), "model/init_args/objectives", first)
    path = write_config(tmp_path / "first.yaml", set_in(small, "trainer/callbacks", [{"class_path": "OnlineProbe"}]))

    def resolved(key, *arguments):
        with pytest.raises(SystemExit):
            main(["fit", "--config", str(path), *arguments, "--print_config"])
        printed = yaml.safe_load(capsys.readouterr().out)
        items = printed["trainer"]["callbacks"] if key == "callbacks" else printed["model"]["init_args"][key]
        return [(item["class_path"].rpartition(".")[2], item["init_args"].get("probability")) for item in items]

    added = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=validation/loss"]
    assert [name for name, _ in resolved("callbacks", *added)] == ["OnlineProbe", "EarlyStopping"]
    # Of a list as long as the former one each item keeps what it does not set itself; of another length none does.
    given = ["--model.objectives", "[MaskedLanguageModeling, NextSentencePrediction]"]
    assert resolved("objectives", *given)[0] == ("MaskedLanguageModeling", 0.3)
    given = ["--model.objectives", "[MaskedLanguageModeling]"]
    assert resolved("objectives", *given) == [("MaskedLanguageModeling", 0.15)]
    # A setting of a list is one of its last item.
    given = ["--model.objectives+=ReplacedTokenDetection", "--model.objectives.probability=0.5"]
    assert [probability for _, probability in resolved("objectives", *given)] == [0.3, None, 0.5]


def set_in(config, path, value):
    """A copy of a config with one value changed, or removed if it is null."""
    config = copy.deepcopy(config)
    *parents, last = path.split("/")
    place = config
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    if value is None:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return config


MODEL, ENCODER, DATA = "model/init_args", "model/init_args/encoder/init_args", "data/init_args"
PUBLIC, METHOD = "model/init_args/encoder", "TextEncoder.from_pretrained"
LOADER = f"lit_pretrain.backbone.{METHOD}"
MISTAKES = [
    (f"{MODEL}/objectivs", [], r"no setting 'objectivs' of TextPretraining (did you mean 'objectives'?)"),
    (f"{ENCODER}/poolin", "cls", "no setting 'poolin' of TextEncoder (did you mean 'pooling'?)"),
    # DocumentDataModule has such a setting.
    (f"{ENCODER}/path", "a", "no setting 'path' of TextEncoder"),
    (PUBLIC, {"class_path": LOADER, "init_args": {"path": "a"}}, f"no setting 'path' of {METHOD} (it has path_or"),
    (PUBLIC, {"class_path": LOADER}, f"The config lacks 'path_or_hub_name' of {METHOD}"),
    (PUBLIC, {"class_path": METHOD, "init_args": {"path": "a"}}, f"needs its whole path: write {LOADER}"),
    (f"{ENCODER}/transformer/dept", 2, "no setting 'dept' of model (did you mean 'depth'?)"),
    (f"{MODEL}/objectives/0/init_args", {"probabilty": 0.2}, "no setting 'probabilty' of MaskedLanguageModeling"),
    (f"{DATA}/batchsize", 4, "no setting 'batchsize' of DocumentDataModule (did you mean 'batch_size'?)"),
    ("trainer/max_step", 4, "no setting 'trainer.max_step' (did you mean 'max_steps'?)"),
    ("trainer/logger/init_args/experimnt", "a", "no setting 'experimnt' of MLflowLogger (did you mean 'experiment'?)"),
    ("trainr", {"max_steps": 4}, "no setting 'trainr' (did you mean 'trainer'?)"),
    (f"{MODEL}/objectives/0/class_path", "MaskedLanguageModelling", "No class 'MaskedLanguageModelling' can be taken"),
    ("model/init_args/encoder/class_path", "Rotation", "Rotation is a class of another kind than 'encoder' takes"),
    ("model/class_path", "TextPretrainin", "No class 'TextPretrainin' can be taken for 'model' (did you mean 'TextP"),
    ("data/class_path", "DocumentDatModule", "(did you mean 'DocumentDataModule'?)"),
    ("trainer/logger/class_path", "CSVLoger", "(did you mean 'CSVLogger'?)"),
    (f"{ENCODER}/pooling", "max", "is max, but takes one of cls, mean, pooler, map"),
    (f"{ENCODER}/size", "tinny", "one of tiny, mini, small, medium, base, large (did you mean 'tiny'?)"),
    (f"{MODEL}/optimizer", {"learning_rate": "fast"}, "'model: optimizer.learning_rate' is fast, but takes a number"),
    ("trainer/max_steps", "many", "'trainer.max_steps' is many, but takes a whole number"),
    (f"{MODEL}/objectives/0/init_args", {"probability": 2}, "probability is 2.0: give a share between 0 and 1"),
    (f"{MODEL}/objectives", [], "model.objectives is empty"),
    (f"{ENCODER}/transformer/heads", 5, "width 32 is not a multiple of transformer.heads 5"),
    (f"{MODEL}/encoder", None, "TextPretraining takes either model.encoder, to train from scratch, or model.init_from"),
    ("model", None, "The config lacks 'model'"),
    ("trainer/strategy", "dpp", "xla_debug (did you mean 'ddp'?)"),
    (
        "trainer/accelerator",
        "gppu",
        "trainer.accelerator is gppu, and there is auto, cpu, cuda, gpu, mps, tpu (did",
    ),
    ("trainer/accelerator", "tpu", "trainer.accelerator is tpu, and PyTorch finds no such device on this machine"),
    ("trainer/devices", 0, "The trainer cannot be made"),
    (f"{DATA}/path", "nowhere.parquet", "There is no file or directory nowhere.parquet"),
    (f"{DATA}/text_column", "texts", "has no column 'texts' (did you mean 'text'?)"),
    (f"{DATA}/vocabulary_size", 6, "data.vocabulary_size of 6 has no room for a letter"),
    (f"{DATA}/sequence_length", 64, "A sequence of 64 tokens is longer than the position table of 32"),
    (f"{DATA}/layout", "segments", "set data.layout to sentence_pairs"),
    (f"{DATA}/max_documents", 1, "is one document, and sentence pairs need a second one"),
    (f"{DATA}/tokenizer", "nowhere", "There is no tokenizer at nowhere"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), MISTAKES, ids=[path for path, *_ in MISTAKES])
def test_a_mistake_is_one_sentence(config, tmp_path, capsys, path, value, sentence):
    wrong = write_config(tmp_path / "wrong.yaml", set_in(yaml.safe_load(config.read_text()), path, value))
    assert main(["fit", "--config", str(wrong)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit_pretrain: ")]
    assert len(said) == 1 and sentence in said[0]
    if "setting" in sentence or "but takes" in sentence:
        # The line of the file that is wrong.
        number = int(said[0].rstrip(".").rpartition(" ")[2])
        last = path.rpartition("/")[2]
        key = next(iter(value)) if last in ("init_args", "optimizer") else {"encoder": "path"}.get(last, last)
        assert key in wrong.read_text().splitlines()[number - 1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trainer.max_step", "3"], "no setting 'trainer.max_step' (did you mean 'max_steps'?)"),
        (["--data.batchsize", "3"], "no setting 'batchsize' of data (did you mean 'batch_size'?)"),
        (["--data.batch_size", "x"], "'data: batch_size' is x, but takes a whole number"),
        (["--model.encoder.batch_size", "1"], "where the command line sets it, though DocumentDataModule has one"),
        (["--model.objectives", "BagOfWords"], "takes a list, in brackets"),
        (["stray"], "'stray' is not an argument"),
        (["--ckpt_path", "nothing"], "No run in"),
        (["--config", "nowhere.yaml"], "The config nowhere.yaml cannot be read"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(config, fitted, capsys, arguments, sentence):
    assert main(["fit", "--config", str(config), *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_setting_before_the_config_of_its_class_is_told_as_such(config, capsys):
    assert main(["fit", "--model.schedule.warm_up", "1", "--config", str(config)]) == 2
    assert "--model.schedule.warm_up stands before the config that names its class" in capsys.readouterr().err


def test_commands_that_do_not_exist(capsys):
    assert main(["fitt"]) == 2
    assert "There is no command 'fitt' (did you mean 'fit'?)" in capsys.readouterr().err
    assert main(["doctor", "--jsno", "x"]) == 2
    assert "see python -m lit_pretrain doctor --help" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_named(fitted, config, corpus, runs, tmp_path, capsys):
    wide = set_in(yaml.safe_load(config.read_text()), f"{ENCODER}/transformer/width", 64)
    path = write_config(tmp_path / "wide.yaml", wide)
    assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 2
    assert "encoder.transformer.width (32 there, 64 here)" in capsys.readouterr().err
    other = write_config(
        tmp_path / "other.yaml", set_in(yaml.safe_load(config.read_text()), f"{DATA}/lowercase", False)
    )
    assert main(["fit", "--config", str(other), "--ckpt_path", "last"]) == 2
    assert "tokenizer" in capsys.readouterr().err
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert main(["validate", "--config", str(config), "--ckpt_path", str(tmp_path / "foreign.ckpt")]) == 2
    assert "was not written by lit_pretrain" in capsys.readouterr().err
    # The run whose checkpoint it was is as it has been.
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    (trained,) = client.search_runs([client.get_experiment_by_name("small").experiment_id], "tags.stage = 'fit'")
    assert trained.info.status == "FINISHED"


def test_bf16_with_compiled_blocks_and_accumulation_trains(config):
    arguments = ["--trainer.precision", "bf16-mixed", "--model.compile_blocks", "true"]
    arguments += ["--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "4"]
    arguments += ["--trainer.logger.init_args.experiment", "bf16"]
    # In a process of its own, since the compiler stays in memory.
    assert output_of("fit", "--config", str(config), *arguments)


def test_two_processes_train_together(config, runs):
    """Started as a person starts them."""
    arguments = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "6"]
    done = run("fit", "--config", str(config), *arguments, "--trainer.logger.init_args.experiment", "two", runs=runs)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("two").experiment_id])
    assert [one.info.status for one in found] == ["FINISHED"]


def be_wrong(directory):
    """What this process of two says of a file that is not there."""
    torch.distributed.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]), world_size=2)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(["fit", "--config", str(directory / "nothing.yaml")])
    return status, said.getvalue()


def test_two_processes_say_what_is_wrong_once(tmp_path):
    (first, words), (second, more) = both_ranks(be_wrong, tmp_path)
    assert first == second == 2 and (words + more).count("nothing.yaml") == (words + more).count("\n") == 1
