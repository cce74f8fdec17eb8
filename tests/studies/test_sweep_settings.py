"""Sweeps' files: those that ship, mistakes in one, and where their settings stand in a config."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lit_pretrain.errors import UserError
from lit_pretrain.studies.settings import read_settings
from lit_pretrain.studies.sweep_settings import SweepSettings, make_pruner, make_sampler
from lit_pretrain.studies.sweep_space import extreme_configs, parameters_of, single_configs, with_values
from lit_pretrain.studies.trials import open_study

ROOT = Path(__file__).parents[2]
RATE = "model.optimizer.learning_rate"
# As the command line resolves one.
CONFIG = {
    "seed_everything": 0,
    "trainer": {"logger": None, "max_steps": 10, "val_check_interval": 5},
    "model": {
        "class_path": "TextPretraining",
        "init_args": {
            "objectives": [
                {"class_path": "MaskedLanguageModeling", "init_args": {"probability": 0.2, "weight": 1.0}},
                {"class_path": "NextSentencePrediction", "init_args": {"weight": 1.0}},
            ],
            "optimizer": {"learning_rate": 0.001},
            "grow": None,
        },
    },
    "data": {"class_path": "DocumentDataModule", "init_args": {"batch_size": 8}},
}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_that_ships(path):
    settings = read_settings(str(path), SweepSettings)
    assert settings.name == path.stem and all((ROOT / config).is_file() for config in settings.configs)
    make_sampler(settings.sampler, 0)
    make_pruner(settings.pruner)
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"sweep --config {path.relative_to(ROOT)}" in header
    assert "Cost:" in header and "Expected at the end:" in header


def read(tmp_path, **settings):
    content = {"config": "c.yaml", "metric": "validation/loss", "trials": 3, "parameters": {RATE: [0.1, 1]}} | settings
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_settings(str(path), SweepSettings)


def parameters(tmp_path, values):
    return parameters_of(read(tmp_path, parameters=values), CONFIG, str(tmp_path / "sweep.yaml"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metric": "test/accuracy"}, "chosen by test data is no longer measured by it: give validation/accuracy"),
        ({"metric": "train/loss"}, "give a figure of the validation"),
        ({"metric": "validation/width"}, "does not tell whether more is better"),
        ({"trials": None}, "the sweep has no end"),
        ({"trials": 0}, "'trials' is 0"),
        ({"trails": 3}, "no setting 'trails' of a sweep (did you mean 'trials'?)"),
        ({"timeout": "2 hours"}, "'timeout' is 2 hours: give a time with its units"),
        ({"direction": "up"}, "'direction' is up"),
        ({"parameters": {}}, "'parameters' is empty"),
        ({"parameters": {RATE: 0.1}}, f"The values of '{RATE}' are 0.1"),
        ({"parameters": {RATE: {"low": 1, "high": 0.1}}}, f"The range of '{RATE}' is empty (low 1, high 0.1)"),
        ({"parameters": {RATE: {"low": 1, "high": 1}}}, "is empty (low 1, high 1)"),
        ({"parameters": {RATE: []}}, f"'choices of {RATE}' is empty"),
        ({"parameters": {RATE: [1, 1]}}, "has 1 twice"),
        ({"parameters": {RATE: {"low": 0.1}}}, f"The range of '{RATE}' lacks 'high'"),
        ({"parameters": {RATE: {"low": 0.1, "hi": 1}}}, "have no 'hi' (did you mean 'high'?)"),
        ({"parameters": {RATE: {"low": "a", "high": 1}}}, f"'low' of '{RATE}' is a: give a number"),
        ({"parameters": {RATE: {"low": 0, "high": float("inf")}}}, "'high' of"),
        ({"parameters": {RATE: {"low": 0, "high": 1, "log": True}}}, "which has no logarithm"),
        ({"parameters": {RATE: {"low": 0.1, "high": 1, "step": 2}}}, f"'step' of '{RATE}' is 2"),
        ({"parameters": {RATE: {"low": 0.1, "choices": [1]}}}, "have choices and low"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, settings, words):
    with pytest.raises(UserError, match=re.escape(words)):
        read(tmp_path, **settings)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.optimizer.learning_rat", "(did you mean 'model.optimizer.learning_rate'?): correct "),
        ("model.learning_rate", "(did you mean 'model.optimizer.learning_rate'?)"),
        ("model.objectives.1.probability", "(did you mean 'model.objectives.0.probability'?)"),
        ("model.grow.depth", "while model.grow is null, which the sweep's overrides can set"),
        ("trainer.logger", "The sweep sets trainer.logger itself"),
        ("trainer.val_check_interval", "set validations: null to vary it"),
        ("model.init_args.optimizer", "are settings of one another"),
    ],
)
def test_a_setting_that_is_not_there(tmp_path, key, words):
    with pytest.raises(UserError, match=re.escape(words)):
        parameters(tmp_path, {RATE: [0.1], key: [1]})


def test_settings_are_found_by_the_keys_of_the_command_line(tmp_path):
    rate, first, second, batch, seed = parameters(
        tmp_path,
        {
            RATE: {"low": "1e-4", "high": 1, "log": True},
            "model.objectives.0.init_args.weight": {"low": 0, "high": 1},
            "model.objectives.1": [{"class_path": "SentenceOrder"}, None],
            "data.batch_size": {"low": 8, "high": 32, "step": 8},
            "seed_everything": ["1e1", 2],
        },
    )
    # A float by what the config has, a whole number likewise; YAML's words that are numbers too.
    assert (rate.values.low, rate.whole, first.whole, batch.whole) == (1e-4, False, False, True)
    assert rate.path == "model.init_args.optimizer.learning_rate" and rate.name == "learning_rate"
    assert str(batch.distribution) == "IntDistribution(high=32, log=False, low=8, step=8)"
    assert seed.extremes == [10.0, 2] and second.distribution.choices == ('{"class_path": "SentenceOrder"}', None)
    assert second.value_of('{"class_path": "SentenceOrder"}') == {"class_path": "SentenceOrder"}
    changed = with_values(CONFIG, {first.path: 0.5, batch.path: 16})["model"]["init_args"]["objectives"]
    assert [one["init_args"]["weight"] for one in changed] == [0.5, 1.0]
    assert CONFIG["model"]["init_args"]["objectives"][0]["init_args"]["weight"] == 1.0
    # Two configs have all ends and choices; to blame one of them takes one each.
    assert len(extreme_configs(CONFIG, [rate, first, batch])) == 2
    assert [keys for keys, _ in single_configs(CONFIG, [batch])] == [
        [("data.batch_size", "8")],
        [("data.batch_size", "32")],
    ]


def test_other_values_are_another_sweep(tmp_path):
    settings = read(tmp_path, name="first")
    # Until there is a trial, what was wrong is corrected under the same name, such as the metric and its direction.
    wrong = open_study(tmp_path, replace(settings, direction="maximize"), {"metric": "validation/los"})
    assert wrong.direction.name == "MAXIMIZE"
    study = open_study(tmp_path, settings, {"metric": "validation/loss", f"range of {RATE}": "(0.1, 1)"})
    assert study.direction.name == "MINIMIZE" and study.study_name == "first"
    study.ask()
    with pytest.raises(UserError, match=re.escape(f"begun with another range of {RATE} (it was (0.1, 1)), so")):
        open_study(tmp_path, settings, {"metric": "validation/loss", f"range of {RATE}": "(0.1, 2)"})
    (tmp_path / "optuna.db").write_text("no database, though it is long enough for its header to be looked at" * 9)
    with pytest.raises(UserError, match="cannot be read"):
        open_study(tmp_path, settings, {})


@pytest.mark.parametrize(
    ("make", "chosen", "words"),
    [
        (make_pruner, "MedianPrunr", "Optuna has no pruner 'MedianPrunr' (did you mean 'MedianPruner'?)"),
        (make_pruner, {"class_path": "HyperbandPruner", "init_args": {"minimum": 1}}, "has no setting 'minimum'"),
        (make_pruner, {"class_path": "MedianPruner", "init_args": {"n_startup_trials": -1}}, "cannot be made ("),
        (lambda chosen: make_sampler(chosen, 0), "optuna.samplers.GridSampler", "GridSampler cannot be made ("),
    ],
)
def test_samplers_and_pruners_by_name(make, chosen, words):
    assert type(make_pruner(None)).__name__ == "NopPruner"
    assert type(make_sampler({"class_path": "TPESampler", "init_args": {"n_startup_trials": 3}}, 5)).__name__
    with pytest.raises(UserError, match=re.escape(words)):
        make(chosen)
