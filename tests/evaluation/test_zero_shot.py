"""Prompts, their ensembles and accuracies by hand; names and templates that cannot be."""

import math

import pytest
import torch
from small_pairs import make_encoders, write_tokenizer
from small_pictures import make_pictures, write_pictures

from lit_pretrain.data.text.wordpiece_tokenizer import WordPieceTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.evaluation.labelled_data import some_of, whole_part
from lit_pretrain.evaluation.pair_embedder import PairEmbedder
from lit_pretrain.evaluation.zero_shot import class_embeddings, classify, make_prompts, measure_zero_shot
from lit_pretrain.modules import ContrastivePretraining

CLASSES = ["airplane", "traffic_light", "cat"]


def test_every_template_has_every_name_of_a_class(tmp_path):
    names = {"airplane": ["plane", "airplane"], "cat": "kitten"}
    prompts = make_prompts(CLASSES, ["a {}.", "{}!"], names)
    assert prompts.texts == [
        *("a plane.", "a airplane.", "plane!", "airplane!"),
        *("a traffic light.", "traffic light!"),
        *("a kitten.", "kitten!"),
    ]
    assert prompts.owners.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    # The same from files, and as a list in the data's order.
    (tmp_path / "templates.yaml").write_text("- a {}.\n- '{}!'\n")
    (tmp_path / "names.yaml").write_text("- [plane, airplane]\n- traffic light\n- kitten\n")
    again = make_prompts(CLASSES, str(tmp_path / "templates.yaml"), str(tmp_path / "names.yaml"))
    assert again.texts == prompts.texts
    # YAML reads numbers where the data has texts.
    assert make_prompts(["0", "1"], ["{}"], {1: "one"}).texts == ["0", "one"]


def test_prompts_are_averaged_and_brought_to_length_1():
    prompts = make_prompts(["one", "other"], ["{}", "a {}"], {"other": ["x", "y"]})
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8], [1.0, 0.0], [-1.0, 0.0]])
    # (1, 1) / 2 has the length sqrt(1/2); (0.6 + 0.6 + 1 - 1, 0.8 + 0.8) / 4 = (0.3, 0.4) has 0.5.
    half = math.sqrt(0.5)
    torch.testing.assert_close(class_embeddings(texts, prompts), torch.tensor([[half, half], [0.6, 0.8]]))


def test_accuracies_by_hand():
    classes = torch.eye(7)
    # The first picture is of the class 0, its second choice 1; the second of class 6, its sixth choice; and so on.
    pictures = torch.tensor(
        [[7, 6, 5, 4, 3, 2, 1], [7, 6, 5, 4, 3, 1, 2], [5, 6, 7, 4, 3, 2, 1], [1, 7, 2, 3, 4, 5, 6]], dtype=torch.float
    )
    found = classify(pictures, classes, torch.tensor([0, 6, 4, 1]))
    assert (found.correct, found.accuracy, found.top5_accuracy) == (2, 0.5, 0.75)
    assert (found.chance, found.most_frequent) == (pytest.approx(1 / 7), 0.25)
    # Wilson's score interval of 2 of 4: (p + z^2/2n +- z sqrt(p q / n + z^2/4n^2)) / (1 + z^2/n).
    z = 1.959964
    middle, spread = (0.5 + z**2 / 8) / (1 + z**2 / 4), z * math.sqrt(0.25 / 4 + z**2 / 64) / (1 + z**2 / 4)
    assert found.interval == pytest.approx((middle - spread, middle + spread), abs=1e-6)
    assert classify(pictures[:, :5], classes[:5, :5], torch.tensor([0, 0, 2, 1])).top5_accuracy is None


def test_names_and_templates_that_cannot_be(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [")
    for arguments, sentence in (
        ({"templates": []}, "templates are .*: give a list of texts"),
        ({"templates": ["a photo"]}, "'a photo' has 0 places for a class's name: put {} once"),
        ({"templates": ["{} and {}"]}, "has 2 places"),
        ({"templates": str(tmp_path / "gone.yaml")}, "The file of templates .*gone.yaml cannot be read .No such file"),
        ({"class_names": str(tmp_path / "broken.yaml")}, "class names .*broken.yaml is not valid YAML at line 1"),
        ({"class_names": {"aeroplane": "plane"}}, "name 'aeroplane' .did you mean 'airplane'"),
        ({"class_names": ["plane", "light"]}, "a list of 2, and the data has 3 classes"),
        ({"class_names": {"cat": []}}, "give 'cat' '\\[\\]': give a text"),
        ({"class_names": {"cat": " "}}, "give a text, or a list of texts"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_prompts(CLASSES, **({"templates": ["{}"]} | arguments))


def test_without_test_data_all_pictures_are_measured_in_the_order_of_their_labels(tmp_path):
    table = write_pictures(tmp_path / "pictures.parquet", 40)
    data = make_pictures(table, tmp_path / "caches")
    data.setup("fit")
    part = whole_part(data)
    assert (part.name, len(part)) == ("all", 40)
    batches = list(part.batches())
    assert torch.equal(torch.cat([batch["label"] for batch in batches]), part.labels)
    ids = torch.cat([batch["sample_id"] for batch in batches])
    # Rows have their colours in turn.
    assert sorted(ids.tolist()) == list(range(40)) and torch.equal(ids % 3, part.labels)
    few = some_of(part, 9)
    assert few.labels.bincount().tolist() == [3, 3, 3]
    own = make_pictures(table, tmp_path / "caches", test_path=str(write_pictures(tmp_path / "test.parquet", 12)))
    own.setup("fit")
    assert (whole_part(own).name, len(whole_part(own))) == ("test", 12)


def test_the_towers_are_left_as_they_were_and_the_same_is_told_as_one_by_one(tmp_path):
    torch.manual_seed(0)
    module = ContrastivePretraining(**make_encoders(dropout=0.1), embedding_width=16, seed=0)
    module.tokenizer = WordPieceTokenizer.load(write_tokenizer(tmp_path / "tokenizer"))
    module.configure_model()
    module.train()
    data = make_pictures(write_pictures(tmp_path / "pictures.parquet", 24), tmp_path / "caches")
    data.setup("fit")
    prompts = make_prompts(data.classes, ["{}", "a {}", "this is some {}"])
    embedder = PairEmbedder(module)
    found = measure_zero_shot(embedder, whole_part(data), prompts)
    assert module.training and all(one.training for one in module.modules() if isinstance(one, torch.nn.Dropout))
    module.eval()
    with torch.no_grad():
        texts = torch.cat([embedder.embed_texts(embedder.encode([text])) for text in prompts.texts])
        classes = torch.nn.functional.normalize(texts.view(3, 3, -1).mean(dim=1), dim=-1)
        for batch in whole_part(data).batches():
            pictures = torch.cat([module.embed_pictures(one[None] / 255) for one in batch["images"]])
    assert torch.equal(found.ranked, (pictures @ classes.T).argsort(dim=1, descending=True))
