"""Label budgets are the data's own, seeds give intervals, and memory is bounded without changing a number."""

import numpy
import pytest
import torch
from small_pictures import make_encoder, make_pictures, write_pictures

from lit_pretrain.errors import UserError
from lit_pretrain.evaluation import protocols
from lit_pretrain.evaluation.labelled_data import draw, has_test_part, open_part
from lit_pretrain.evaluation.protocols import Measurement, Setting, budget_of, layer_groups, measure
from lit_pretrain.evaluation.subjects import Subject, fresh_subject


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "pictures.parquet")


def parts_of(pictures, tmp_path, **settings):
    data = make_pictures(pictures, tmp_path / "caches", **settings)
    data.setup("validate")
    return data, open_part(data, "train"), open_part(data, "validation")


def setting(**changes):
    defaults = {"protocols": ["knn", "linear"], "pooling": "mean", "budgets": [None], "seeds": [0, 1, 2], "classes": 3}
    return Setting(**defaults | {"device": torch.device("cpu"), "bf16": False} | changes)


def test_a_budget_draws_what_fine_tuning_would_get(pictures, tmp_path):
    _, train, _ = parts_of(pictures, tmp_path)
    _, budgeted, _ = parts_of(pictures, tmp_path, label_budget=12, seed=5)
    chosen = train.at(draw(train.labels, 12, 5))
    assert chosen.sample_ids().tolist() == budgeted.sample_ids().tolist()
    assert torch.equal(chosen.labels, budgeted.labels)
    ids = torch.cat([batch["sample_id"] for batch in chosen.batches()])
    assert torch.equal(chosen.in_order(ids), chosen.sample_ids())


def test_seeds_count_only_where_something_is_drawn(pictures, tmp_path):
    data, train, test = parts_of(pictures, tmp_path)
    assert not has_test_part(data)
    torch.manual_seed(0)
    subject = Subject("one", make_encoder().eval())
    found = measure(subject, train, test, [1, 2], setting(budgets=[6, None]))
    by_key = {(one.layer, one.protocol, one.labels): one for one in found}
    assert len(found) == len(by_key) == 8
    assert by_key[1, "knn", 6].seeds == [0, 1, 2] and len(by_key[1, "knn", 6].values) == 3
    assert by_key[1, "knn", 96].seeds == [] and by_key[1, "knn", 96].interval is None
    # Fresh weights differ by their seed, so all labels give as many values as there are seeds.
    fresh = measure(lambda seed: fresh_subject(subject, seed), train, test, [2], setting())
    assert [one.seeds for one in fresh] == [[0, 1, 2], [0, 1, 2]]
    torch.manual_seed(1)
    again = Subject("again", type(subject.encoder).from_settings(subject.encoder.settings()).eval())
    (linear,) = measure(again, train, test, [2], setting(protocols=["linear"]))
    assert linear.values[0] == fresh[1].values[1]


def test_layers_that_do_not_fit_in_memory_give_the_same(pictures, tmp_path, monkeypatch):
    _, train, test = parts_of(pictures, tmp_path)
    torch.manual_seed(0)
    subject = Subject("one", make_encoder().eval())
    whole = measure(subject, train, test, [2, 1], setting())
    monkeypatch.setattr(protocols, "HELD_BYTES", 4 * 120 * 32)
    assert list(layer_groups([2, 1], 120, 32)) == [[2], [1]]
    assert measure(subject, train, test, [2, 1], setting()) == whole


def test_the_interval_is_students():
    one = Measurement("knn", "accuracy", 1, 10, [0, 1, 2], [0.5, 0.6, 0.7])
    assert one.mean == pytest.approx(0.6)
    # 4.3027 is the 97.5th percentile of Student's t with two degrees of freedom.
    assert one.interval == pytest.approx(4.3027 * 0.1 / numpy.sqrt(3), rel=1e-4)


def test_budgets_that_cannot_be_are_refused():
    assert (budget_of("all", 96, 3), budget_of("96", 96, 3), budget_of("0.25", 96, 3)) == (None, None, 24)
    for text, sentence in {
        "many": "is 'many': give a whole number",
        "2.5": "give a whole number",
        "2": "fewer than the 3 classes",
        "97": "there are 96 training samples",
    }.items():
        with pytest.raises(UserError, match=sentence):
            budget_of(text, 96, 3)
