"""Which run and which weights a command takes: from a file as from the command line, and never untrained ones."""

import json

import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image
from registered_models import check_registered
from small_pictures import picture_config, write_pictures
from small_training import small_config, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder
from lit_pretrain.modules import TextPretraining, VisionPretraining
from lit_pretrain.tracking.find import find_checkpoint, list_runs

SHORT = {"max_steps": 2, "val_check_interval": 2, "num_sanity_val_steps": 0}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A run of texts, then one of pictures in another experiment."""
    directory = tmp_path_factory.mktemp("named")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_PRETRAIN_RUNS", str(directory / "runs"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        texts = small_config(write_corpus(directory / "corpus.jsonl"), trainer=SHORT)
        pictures = picture_config(
            write_pictures(directory / "pictures.parquet", 40), [{"class_path": "Rotation"}], trainer=SHORT
        )
        pictures["trainer"]["logger"] = {"class_path": "MLflowLogger", "init_args": {"experiment": "pictures"}}
        for name, config in (("texts", texts), ("pictures", pictures)):
            assert main(["fit", "--config", str(write_config(directory / f"{name}.yaml", config))]) == 0
        yield directory


def changed(place, tmp_path, **settings):
    """The config of the texts with other settings at its top, as a file."""
    config = yaml.safe_load((place / "texts.yaml").read_text())
    return str(write_config(tmp_path / "changed.yaml", config | settings))


def last_prediction():
    (run, *_) = list_runs()
    return pyarrow.parquet.read_table(run.directory / "predictions.parquet").to_pydict()


def test_a_file_names_what_the_command_line_names(place, tmp_path, capsys):
    # The newest run of all is another experiment's.
    (texts,) = list_runs(experiment="small")
    config = changed(place, tmp_path, ckpt_path="last")
    assert main(["fit", "--config", config, "--trainer.max_steps", "3"]) == 0
    assert [run.run_id for run in list_runs(experiment="small")] == [texts.run_id]
    assert torch.load(texts.checkpoints / "last.ckpt", weights_only=True)["global_step"] == 3
    fragment = write_config(tmp_path / "fragment.yaml", {"ckpt_path": texts.run_id[:8]})
    assert main(["validate", "--config", str(place / "texts.yaml"), "--config", str(fragment)]) == 0
    logger = {"class_path": "MLflowLogger", "init_args": {"experiment": "small", "runs_directory": str(tmp_path)}}
    trainer = yaml.safe_load((place / "texts.yaml").read_text())["trainer"]
    capsys.readouterr()
    for settings, sentence in (
        ({"ckpt_path": "nothing"}, "No run in"),
        ({"ckpt_path": "last", "trainer": trainer | {"logger": None}}, "no last.ckpt of experiment 'default' in"),
        ({"ckpt_path": "last", "trainer": trainer | {"logger": [logger]}}, f"of experiment 'small' in {tmp_path}"),
    ):
        assert main(["fit", "--config", changed(place, tmp_path, **settings)]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("command", "kind"), [("validate", "texts"), ("predict", "pictures")])
def test_what_has_learned_nothing_is_not_measured(place, capsys, command, kind):
    assert main([command, "--config", str(place / f"{kind}.yaml")]) == 2
    assert f"{command} without a checkpoint would use weights that have learned nothing" in capsys.readouterr().err


def test_public_weights_need_no_checkpoint(place, tmp_path):
    module = TextPretraining.from_checkpoint(find_checkpoint("last", "small"))
    module.encoder.save_pretrained(tmp_path / "bert")
    module.tokenizer.save(tmp_path / "bert")
    config = yaml.safe_load((place / "texts.yaml").read_text())
    start = {"class_path": f"{TextEncoder.__module__}.TextEncoder.from_pretrained"}
    config["model"]["init_args"]["encoder"] = start | {"init_args": {"path_or_hub_name": str(tmp_path / "bert")}}
    assert main(["validate", "--config", str(write_config(tmp_path / "public.yaml", config))]) == 0


def test_new_texts_are_read_with_the_tokenizer_of_the_checkpoint(place, tmp_path):
    (tmp_path / "lines.txt").write_text("The senate pays new roads.\n")
    run = list_runs(experiment="small")[-1]
    assert main(["predict", "--ckpt_path", run.run_id, "--data.path", str(tmp_path / "lines.txt")]) == 0
    found = last_prediction()
    assert found["text"] == ["The senate pays new roads."] and len(found["embedding"][0]) == 32
    check_registered(place / "runs", run.run_id, {"text": found["text"]}, found)
    # Measured on other texts, too.
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": f"A {n}. B {n}. C."}) + "\n" for n in range(30)))
    assert main(["test", "--ckpt_path", run.run_id, "--data.path", str(tmp_path / "other.jsonl")]) == 0


def test_one_picture_alone_is_embedded(place, tmp_path):
    Image.new("RGB", (40, 20), (200, 30, 40)).save(tmp_path / "one.png")
    arguments = ["--config", str(place / "pictures.yaml"), "--ckpt_path", "last"]
    assert main(["predict", *arguments, "--data.path", str(tmp_path / "one.png")]) == 0
    found = last_prediction()
    assert [name.rpartition("/")[2] for name in found["image"]] == ["one.png"]
    encoder = VisionPretraining.from_checkpoint(find_checkpoint("last", "pictures")).encoder
    red = torch.tensor([200, 30, 40]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255
    expected = encoder(encoder.normalize(red))[0]
    assert torch.allclose(torch.tensor(found["embedding"][0]), expected, atol=1e-5)
    rows = {"image": [(tmp_path / "one.png").read_bytes()]}
    check_registered(place / "runs", str(find_checkpoint("last", "pictures")), rows, found)
