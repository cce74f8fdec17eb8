"""An objective in a file of a person's own, as the guide has it: trained, gone on with, used, and what goes wrong."""

import importlib
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from child_processes import output_of
from guide_objectives import PAGE, guide_files
from small_pictures import picture_config, write_pictures
from small_training import small_config, write_config
from text_corpus import write_corpus

from lit_pretrain.__main__ import main
from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.modules import TextPretraining, VisionPretraining
from lit_pretrain.objectives import EncoderPass, clean_inputs
from lit_pretrain.tracking.find import find_checkpoint

STEPS = {"max_steps": 3, "val_check_interval": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 0}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A directory with the files of the guide, in which all commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # As `python -m` has it.
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    for name, code in guide_files().items():
        (tmp_path / name).write_text(code)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def test_the_test_of_the_guide(own):
    importlib.import_module("test_my_text").test_a_text_by_hand()


KINDS = {
    "texts": (TextPretraining, "my_text.Backwards", {"share": 0.3}, "onnx"),
    "pictures": (VisionPretraining, "my_pictures.UpsideDown", {"weight": 0.5}, "timm"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_all_the_way(own, kind, capsys):
    module, path, arguments, form = KINDS[kind]
    others = ["NextSentencePrediction"] if kind == "texts" else ["Rotation"]
    objectives = [{"class_path": path, "init_args": arguments}, *({"class_path": other} for other in others)]
    if kind == "texts":
        config = small_config(write_corpus(own / "corpus.jsonl", 30), trainer=STEPS)
        config["model"]["init_args"]["objectives"] = objectives
    else:
        config = picture_config(write_pictures(own / "pictures.parquet", 40), objectives, trainer=STEPS)
    assert main(["fit", "--config", str(write_config(own / "own.yaml", config))]) == 0
    steps = 3
    if kind == "texts":
        steps = 6
        assert main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "6"]) == 0
        assert main(["predict", "--ckpt_path", "last"]) == 0
    else:
        assert main(["test", "--ckpt_path", "last"]) == 0
        assert " upside_down/accuracy " in capsys.readouterr().out
        data = ["--data.path", "pictures.parquet", "--data.label_column", "label"]
        assert main(["evaluate", "last", *data, "--json", "rows.json"]) == 0
        assert json.loads((own / "rows.json").read_text())
    # In a process of its own, since what makes graphs stays in memory.
    output_of("export", "--ckpt", "last", "--to", "out", "--format", form)
    checkpoint = find_checkpoint("last")
    again, saved = module.from_checkpoint(checkpoint).objectives[0], torch.load(checkpoint, weights_only=True)
    assert type(again).__module__ == path.partition(".")[0] and saved["global_step"] == steps
    ((name, value),) = arguments.items()
    assert getattr(again, name) == value
    assert torch.equal(saved["state_dict"]["objectives.0.head.weight"], again.head.weight)


WRONG = {
    "import": (
        "import no_such_package\n",
        "mine.Mine",
        r"mine.py, line 1: ModuleNotFoundError: No module named 'no_su",
    ),
    "syntax": ("class Mine(:\n", "mine.Mine", "mine.py, line 1: SyntaxError: "),
    "class": (
        "class Mine: pass\n",
        "mine.Mime",
        r"mine.py has no 'Mime' (did you mean 'Mine'?): correct the class_path",
    ),
    "module": (
        "",
        "other.Mine",
        "There is no module 'other' for other.Mine: give the command in the directory of other.py",
    ),
    "kind": (
        "class Mine: pass\n",
        "mine.Mine",
        "mine.Mine is no objective: derive it from lit_pretrain.objectives.Obj",
    ),
    "constructor": (
        "from my_text import Backwards\nclass Mine(Backwards):\n    def __init__(self):\n        [][1]\n",
        "mine.Mine",
        "mine.Mine cannot be made (mine.py, line 4: IndexError: list index out of range)",
    ),
    "base's constructor": (
        "from my_text import Backwards, nn\n"
        "class Mine(Backwards):\n    def __init__(self):\n        self.head = nn.Linear(1, 1)\n",
        "mine.Mine",
        "The constructor of mine.Mine does not begin with super().__init__(): add that.",
    ),
    "argument": (
        "from my_text import Backwards\nclass Mine(Backwards):\n"
        "    def __init__(self, other: int = 1):\n        super().__init__()\n",
        "mine.Mine",
        "Mine (mine.py) keeps no attribute of the name of its argument other",
    ),
    "statistic": (
        "from my_text import Backwards\nclass Mine(Backwards):\n    def compute(self, *arguments):\n"
        "        output = super().compute(*arguments)\n        output.statistics['mean'] = output.loss.detach()\n"
        "        return output\n",
        "mine.Mine",
        "compute of Mine (mine.py) gives a tensor of shape () as the statistic 'mean': give a pair (sum, count)",
    ),
    "pictures": (
        "",
        "my_pictures.UpsideDown",
        "UpsideDown (my_pictures.py) learns from pictures, and this trains on texts",
    ),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", 30)


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_in_it_is_one_sentence(own, corpus, mistake, capsys):
    code, path, sentence = WRONG[mistake]
    (own / "mine.py").write_text(code)
    config = small_config(corpus, trainer=STEPS | {"logger": False, "enable_checkpointing": False})
    config["model"]["init_args"]["objectives"] = [{"class_path": path}]
    assert main(["fit", "--config", str(write_config(own / "own.yaml", config))]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lit_pretrain: ")]
    assert sentence in line


def test_an_error_in_a_step_ends_with_the_line_of_the_file(own, corpus, capsys):
    code = "from my_text import Backwards\nclass Mine(Backwards):\n    def compute(self, *arguments):\n        [][1]\n"
    (own / "mine.py").write_text(code)
    config = small_config(corpus, trainer=STEPS | {"logger": False, "enable_checkpointing": False})
    config["model"]["init_args"]["objectives"] = [{"class_path": "mine.Mine"}]
    assert main(["fit", "--config", str(write_config(own / "own.yaml", config))]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "lit_pretrain: mine.py, line 4, in compute: IndexError: list index out of range"


def test_the_lines_for_tokens(own):
    """What the guide has for a loss of each token is a class with these and a pass."""
    (body,) = re.findall(r"^    uneven = True\n.*?(?=^\S)", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    (own / "tokens.py").write_text(f"{guide_files()['my_text.py']}\n\nclass Tokens(Backwards):\n{body}")
    objective = importlib.import_module("tokens").Tokens(share=1.0)
    encoder = TextEncoder(30, transformer=TransformerConfig(depth=1, width=16, heads=2))
    objective.build(encoder, SimpleNamespace(special_ids=[0, 1, 2, 3, 4]))
    ids = torch.tensor([[2, 7, 8, 3, 9, 3, 0], [2, 7, 3, 0, 0, 0, 0]])
    batch, shown = {"input_ids": ids, "attention_mask": ids > 0}, ids.roll(1, 0)
    targets = {"labels": shown != ids, "counted": ids > 4}
    objective.make_pass = lambda batch, *_: EncoderPass(clean_inputs(batch) | {"input_ids": shown}, targets)
    output = objective.eval()(encoder, batch, None)
    assert {name: int(count) for name, (_, count) in output.statistics.items()} == {
        "loss": 4,
        "accuracy": 4,
        "accuracy_kept": 2,
        "accuracy_changed": 2,
    }
