"""Studies' files: those that ship, and mistakes in one."""

from pathlib import Path

import pytest
import yaml

from lit_pretrain.errors import UserError
from lit_pretrain.studies.overrides import arguments_of
from lit_pretrain.studies.plan import interval
from lit_pretrain.studies.settings import LabelEfficiencySettings, ScalingSettings, read_settings

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_that_ships(path):
    kind, command = ScalingSettings, "scaling"
    if path.stem.startswith("label_efficiency"):
        kind, command = LabelEfficiencySettings, "label-efficiency"
    settings = read_settings(str(path), kind)
    assert settings.name == path.stem
    assert all((ROOT / config).is_file() for config in settings.configs)
    assert all(word.startswith("--") for word in arguments_of(settings.overrides))
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"study {command} --config {path.relative_to(ROOT)}" in header
    assert "Cost:" in header and "Expected at the end:" in header


def test_there_are_some_of_each():
    assert {path.stem.partition("_")[0] for path in STUDIES} == {"label", "scaling"}


def read(tmp_path, kind, **settings):
    efficiency = {"fine_tuning": "f.yaml", "encoders": {"scratch": None, "mae": {}}, "label_budgets": [0.1, 10]}
    scaling = {"pretraining": "p.yaml", "widths": [8], "depths": [1], "budget": {"steps": 5}}
    content = (efficiency if kind is LabelEfficiencySettings else scaling) | settings
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value != "left out"}, sort_keys=False)
    )
    return read_settings(str(path), kind)


def test_amounts_of_labels(tmp_path):
    settings = read(tmp_path, LabelEfficiencySettings, label_budgets=[0.01, 1, 1.0], learning_rates={"mae": ["1e-3"]})
    # One label, and all of them.
    assert settings.budgets == [0.01, 1, None] and isinstance(settings.budgets[1], int)
    # YAML takes 1e-3 for a word.
    assert settings.rates_of("mae") == [0.001] and settings.rates_of("scratch") == [None]
    assert settings.resolved_reference == "scratch" and settings.validation_metric == "validation/accuracy"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_budget": [1]}, "no setting 'label_budget' of a study (did you mean 'label_budgets'?): correct "),
        ({"fine_tuning": "left out"}, "lacks 'fine_tuning'"),
        ({"label_budgets": []}, "'label_budgets' is empty"),
        ({"label_budgets": ["all", 1.0]}, "'label_budgets' has all twice"),
        ({"label_budgets": [0.1, -3]}, "'label_budgets' is -3"),
        ({"label_budgets": [0.1, "some"]}, "'label_budgets.1' is 'some'"),
        ({"seeds": [0, 0]}, "'seeds' has 0 twice"),
        ({"encoders": {}}, "'encoders' is empty"),
        ({"metric": "accuracy"}, "'metric' is accuracy: give one of test/ or validation/"),
        ({"steps": [5]}, "'steps' has 1 numbers for 2 label_budgets"),
        ({"reference": "scrach"}, "encoder 'scrach', which is not among encoders (did you mean 'scratch'?)"),
        ({"learning_rates": {"maee": [0.1]}}, "encoder 'maee', which is not among encoders (did you mean 'mae'?)"),
        ({"learning_rates": [0.1, 0]}, "'learning_rates' is 0"),
        ({"validations": 0}, "'validations' is 0"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, settings, words):
    with pytest.raises(UserError) as caught:
        read(tmp_path, LabelEfficiencySettings, **settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": {"step": 5}}, "'budget' has no 'step' (did you mean 'steps'?)"),
        ({"budget": {"steps": 5, "flops": 1}}, "'budget' names 2 things"),
        ({"budget": {"flops": 0}}, "'budget' of flops is 0"),
        ({"widths": [0]}, "'widths' has 0"),
        ({"data_sizes": [2.5]}, "'data_sizes' is 2.5"),
    ],
)
def test_a_mistake_in_a_scaling_study_too(tmp_path, settings, words):
    with pytest.raises(UserError) as caught:
        read(tmp_path, ScalingSettings, **settings)
    assert words in str(caught.value)


def test_overrides_are_arguments():
    overrides = {
        "model": {"optimizer.learning_rate": 0.1, "encoder": {"class_path": "VisionEncoder"}},
        "data.path": None,
    }
    assert arguments_of(overrides) == [
        "--model.optimizer.learning_rate=0.1",
        '--model.encoder={"class_path": "VisionEncoder"}',
        "--data.path=null",
    ]


def test_the_last_validation_is_at_the_end():
    assert interval(1000, 10) == 100 and interval(25, 10) == 5 and interval(3, 10) == 1 and interval(7, 1) == 7
    # A prime number of steps has no other.
    assert interval(1009, 10) == 1009
