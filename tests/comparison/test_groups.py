"""Which runs are ranked together, which are one row, and which are meant: on runs in a real store."""

import json
import math

import pytest
from logged_runs import log_measurement, log_run
from mlflow.tracking import MlflowClient

from lit_pretrain.comparison.groups import compare
from lit_pretrain.comparison.lineage import lineage_words, starts_of
from lit_pretrain.comparison.protocol import protocol_of, why_not_comparable
from lit_pretrain.comparison.runs import RunStore
from lit_pretrain.comparison.selection import select
from lit_pretrain.comparison.settings import differing, short_names, shortened
from lit_pretrain.comparison.table import shown_amount
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.find import RunRecord
from lit_pretrain.tracking.store import open_store


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LIT_PRETRAIN_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture
def client(directory) -> MlflowClient:
    return open_store(f"sqlite:///{directory / 'mlflow.db'}", directory)


def compared(client, *ids, metric=None):
    store = RunStore(client)
    return compare([store.run(run_id) for run_id in ids], store, metric)


def accuracy(best, **more):
    return {"best/validation/accuracy": {5: 0.1, 10: best}, **more}


def test_seeds_are_a_row_and_what_differs_is_shown(client):
    runs = [
        log_run(client, f"slow-seed-{seed}", seed=seed, curves=accuracy(value), settings={"data.workers": seed})
        for seed, value in enumerate((0.80, 0.84, 0.82))
    ]
    # Once more with a seed that is there: no new evidence.
    again = log_run(client, "slow-seed-2", seed=2, curves=accuracy(0.82))
    fast = log_run(client, "fast", settings={"model.optimizer.learning_rate": "0.01"}, curves=accuracy(0.9))
    # Stopped half-way, it is not the same training.
    killed = log_run(client, "killed", seed=3, status="KILLED", curves=accuracy(0.3))
    (group,) = compared(client, *runs, again, fast, killed).groups
    assert [row.name for row in group.rows] == ["fast", "slow-seed…", "killed"]
    assert group.differing == ["model.optimizer.learning_rate"]
    seeds = group.rows[1]
    assert seeds.seeds == ["0", "1", "2"] and [run.run_id for run in seeds.repeated] == [runs[2]]
    # Student's t with two degrees of freedom: 4.303 * 0.02 / sqrt(3).
    assert (seeds.mean.value, seeds.mean.half_width) == pytest.approx((0.82, 4.303 * 0.02 / math.sqrt(3)), rel=1e-3)
    assert seeds.steps == [10] and group.rows[2].state == "killed" and group.rows[0].mean.half_width is None


def test_losses_rank_the_other_way_and_nan_is_last(client):
    runs = [
        log_run(client, str(loss), settings={"data.batch_size": place}, curves={"validation/loss": {5: loss}})
        for place, loss in enumerate((2.0, math.nan, 1.0))
    ]
    (group,) = compared(client, *runs, metric="loss").groups
    assert group.metric == "validation/loss" and [row.name for row in group.rows] == ["1.0", "2.0", "nan"]


PRETRAINING = {"model": "TextPretraining", "model_facts.task": None, "model_facts.objectives": "masked"}


def test_what_a_kind_of_runs_does_not_have_is_none():
    pictures = {"metric": "validation/loss", "picture size": "32", "objectives": "rotation", "data": "a"}
    texts = {"metric": "validation/loss", "tokenizer": "fedb4758ab", "objectives": "rotation"}
    assert why_not_comparable(pictures, texts) == (
        "picture size none, not 32; data unknown, not a; tokenizer fedb4758, not none"
    )


@pytest.mark.parametrize(
    ("settings", "curves", "why"),
    [
        ({"data_facts.validation_fingerprint": "eeee9999ffff"}, None, "data eeee9999, not aaaa1111"),
        ({"data_facts.validation_samples": "1234"}, None, "samples 1,234, not 500"),
        ({"trainer.limit_val_batches": "4"}, None, "samples 4 batches of 32, of 500, not 500"),
        ({"data_facts.maximum_length": "512"}, None, "maximum length 512, not unknown"),
        ({"model_facts.task": "multi_label"}, None, "task multi_label, not single_label"),
        (PRETRAINING, {"best/validation/loss": {3: 1.0}}, "the figure is validation/loss, not validation/accuracy"),
    ],
)
def test_other_protocols_are_not_ranked_together(client, settings, curves, why):
    alike = [log_run(client, f"alike{seed}", seed=seed) for seed in (0, 1)]
    other = log_run(client, "other", settings=settings, curves=curves)
    groups = compared(client, other, *alike).groups
    assert [[row.name for row in group.rows] for group in groups] == [["alike…"], ["other"]]
    assert groups[0].why == "" and groups[1].why == why


def test_losses_of_pretrainings_need_the_same_objectives_and_word_pieces(client):
    loss = {"best/validation/loss": {3: 2.0}, "best/validation/masked/loss": {3: 1.5}}
    settings = PRETRAINING | {"data_facts.tokenizer_hash": "t" * 16, "model.objectives.Masked.share": "0.15"}
    first = log_run(client, "first", settings=settings, curves=loss)
    others = {
        "tokenizer uuuuuuuu, not tttttttt": {"data_facts.tokenizer_hash": "u" * 16},
        "objectives' settings Masked.share 0.3, not Masked.share 0.15": {"model.objectives.Masked.share": "0.3"},
    }
    for why, changed in others.items():
        other = log_run(client, "other", settings=settings | changed, curves=loss)
        assert [group.why for group in compared(client, first, other).groups] == ["", why]
    # An objective's own loss does not depend on what else is learned, nor on its weight.
    mixed = {"model_facts.objectives": "masked + order", "model.objectives.Order.share": "1"}
    mixed |= {"model.objectives.Masked.weight": "2.0"}
    other = log_run(client, "mixed", settings=settings | mixed, curves=loss)
    assert len(compared(client, first, other).groups) == 2
    assert len(compared(client, first, other, metric="validation/masked/loss").groups) == 1


def test_the_latest_test_counts_and_not_the_best(client):
    run = log_run(client, "run")
    log_measurement(client, run, {"test/accuracy": 0.9}, step=10)
    latest = log_measurement(client, run, {"test/accuracy": 0.7})
    log_measurement(client, run, {"test/accuracy": 0.6}, test_fingerprint="another")
    (group,) = compared(client, run).groups
    (subject,) = group.rows[0].subjects
    assert {(figure.value, figure.step, figure.run_id == latest) for figure in subject.tests} == {
        (0.7, 20, True),
        (0.6, 20, False),
    }
    # Ranked by the test, it stands in a group for each protocol.
    groups = compared(client, run, metric="test/accuracy").groups
    assert [group.rows[0].mean.value for group in groups] == [0.6, 0.7] and "data" in groups[1].why


def test_lineage_over_several_steps_and_seeds_all_the_way(client):
    def chain(seed):
        start = log_run(client, f"start{seed}", settings=PRETRAINING | {"model_facts.init_from": "org/bert"}, seed=seed)
        settings = {"model_facts.init_from": "/r/x/start-12345678/checkpoints/last.ckpt", "model.init_from": f"s{seed}"}
        settings |= {"model_facts.init_from_run": start, "model_facts.init_from_step": "20"}
        curves = accuracy(0.8 + seed / 100, **{"throughput/total_hours": {10: 0.5}})
        return start, log_run(client, f"tuned{seed}", settings=settings, seed=7, curves=curves)

    first, second = chain(0), chain(1)
    # The fine-tunings have one seed, what they started from has two.
    (group,) = compared(client, first[1], second[1]).groups
    (row,) = group.rows
    assert row.mean.count == 2 and row.lineage == "from start0 (step 20), from org/bert" and not group.differing
    assert row.cost.minutes == 30.0 and row.subjects[0].whole_cost.minutes >= 30.0
    gone = log_run(
        client,
        "orphan",
        settings={
            "model_facts.init_from": "/runs/e/parent-0123abcd/checkpoints/last.ckpt",
            "model_facts.init_from_run": "0" * 32,
        },
    )
    store = RunStore(client)
    assert lineage_words(starts_of(store.run(gone), store)) == "from parent, a run that is gone"
    towers = {f"model_facts.{tower}_init_from": "scratch" for tower in ("text", "vision")}
    pair = log_run(client, "pair", settings=towers | {"model_facts.init_from": None, "model_facts.task": None})
    assert lineage_words(starts_of(store.run(pair), store)) == "text from scratch; vision from scratch"


def test_runs_without_the_figure_are_named_and_none_is_an_error(client):
    run, begun = log_run(client, "run"), log_run(client, "begun", curves={}, status="RUNNING")
    comparison = compared(client, run, begun)
    assert [subject.run.name for subject in comparison.without] == ["begun"]
    with pytest.raises(UserError, match=r"'acuracy' \(did you mean 'accuracy'\?\): they have"):
        compared(client, run, begun, metric="acuracy")
    with pytest.raises(UserError, match="The run begun has no figure .* first validation"):
        compared(client, begun)


def test_which_runs_are_meant(client, directory):
    names = ["one", "two", "two"]
    ids = [log_run(client, name, experiment="here") for name in names]
    study = client.create_run("0", tags={"study": "scaling"}, run_name="study").info.run_id
    measured = log_measurement(client, ids[0], {"test/accuracy": 0.5})

    def found(*references, **options):
        return [run.run_id for run in select(references, **options)[1]]

    # A study's own run and what only measures are no trainings.
    assert found() == ids[::-1] and study not in found(last=5)
    assert found(last=1) == [ids[2]] and found(experiments=["here"]) == ids[::-1]
    assert found(where='metrics."test/accuracy" > 0.4') == [ids[0]]
    other = log_run(client, "other", experiment="there")
    assert found(experiments=["here", "there"]) == [other, *ids[::-1]] and found(experiments=["there"]) == [other]
    # A measurement stands for its run; without a directory they are found in the store.
    assert found("one", measured, ids[1][:8]) == [ids[0], ids[1]]
    for arguments, sentence in (
        ({"references": ["two"]}, rf"'two' fits 2 runs: say which, by id: {ids[2][:8]} \(here/two\), {ids[1][:8]}"),
        ({"references": ["onne"]}, r"is called 'onne' \(did you mean 'one'\?\)"),
        ({"references": ["one"], "last": 3}, "--last chooses runs by itself"),
        ({"references": [], "experiments": ["heer"]}, r"no experiment 'heer' .*did you mean 'here'"),
        ({"references": ["one"], "experiments": ["here", "there"]}, "give it once"),
        ({"references": [], "where": "nonsense"}, '--where "nonsense" is not understood'),
        ({"references": [], "where": "params.model = 'x'"}, "There is no training in .* that meets"),
        ({"references": [], "last": 0}, "--last is 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            select(**arguments)


def test_runs_of_several_stores_are_one_sentence(client, directory, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    elsewhere = open_store(f"sqlite:///{other / 'mlflow.db'}", other)
    for name, address, where in (("near", client, directory), ("far", elsewhere, other)):
        run_id = log_run(address, name)
        (directory / "tuned" / name).mkdir(parents=True)
        uri = f"sqlite:///{where / 'mlflow.db'}"
        RunRecord(run_id, "tuned", uri, name, directory / "tuned" / name).write()
    assert select(["far"])[1][0].name == "far"
    with pytest.raises(UserError, match="The run near is in sqlite.* and far in .*only runs of one tracking server"):
        select(["near", "far"])
    # A name that is nowhere is the reason, and not the store that it is not in.
    with pytest.raises(UserError, match="is called 'nowhere'"):
        select(["nowhere", "far"])
    record = json.loads((directory / "tuned" / "far" / "run.json").read_text())
    for uri, sentence in (("", "was not logged to MLflow"), ("http://127.0.0.1:9", "cannot be used")):
        (directory / "tuned" / "far" / "run.json").write_text(json.dumps(record | {"tracking_uri": uri}))
        with pytest.raises(UserError, match=sentence):
            select(["far"])
    (directory / "tuned" / "far" / "run.json").write_text(json.dumps(record | {"tracking_uri": ""}))
    (directory / "tuned" / "far" / "logs").mkdir()
    (directory / "tuned" / "far" / "logs" / "metrics.csv").write_text("step\n")
    with pytest.raises(UserError, match=r"its figures are in .*far/logs/metrics.csv: name a run that was, .* near,"):
        select(["far"])
    elsewhere.delete_run(record["run_id"])
    with pytest.raises(UserError, match="There is no mlflow.db in .*--runs"):
        select([], runs_directory=directory / "nothing")
    assert not (directory / "nothing").exists()


def test_settings_that_a_later_build_has_are_off_before(client):
    older = log_run(client, "older", seed=0)
    newer = log_run(client, "newer", settings={"data.packing": "False", "model.patience": "None"}, seed=1)
    (group,) = compared(client, older, newer).groups
    assert len(group.rows) == 1 and group.differing == []
    packed = log_run(client, "packed", settings={"data.packing": "True"}, seed=0)
    (group,) = compared(client, older, newer, packed).groups
    assert len(group.rows) == 2 and group.differing == ["data.packing"]


def test_a_run_that_went_on_with_other_settings_is_another(client):
    first = log_run(client, "first", tags={"resumed": "1", "resumed.trainer.max_steps": "40"})
    (group,) = compared(client, first, log_run(client, "second")).groups
    assert [row.repeated for row in group.rows] == [[], []] and group.differing == ["trainer.max_steps"]


def test_names_in_little_room():
    names = ["model.text.optimizer.rate", "model.vision.optimizer.rate", "data.batch_size", "data.replay.share"]
    assert list(short_names(names).values()) == ["text.optimizer.rate", "vision.optimizer.rate", "batch_size", "share"]
    assert short_names(names, least=2)["data.replay.share"] == "replay.share"
    assert shortened("a-very-long-name-of-a-run", 11) == "a-ver…a-run" and shortened("short", 5) == "short"
    assert [shown_amount(number) for number in (None, 0.25, 1234, 4.587e6)] == ["–", "0.25", "1.23k", "4.59M"]


def test_fresh_weights_of_a_runs_shape_are_no_measurement_of_it(client):
    run = log_run(client, "trained")
    log_measurement(client, run, {"evaluate/knn_accuracy": 0.5})
    fresh = log_measurement(client, run, {"evaluate/knn_accuracy": 0.25})
    client.set_tag(fresh, "fresh_weights", "true")
    store = RunStore(client)
    (measurement,) = store.measurements_of(run)
    assert measurement.metrics["evaluate/knn_accuracy"] == 0.5
    assert store.run(fresh).source_id is None


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        ("LeJEPA", "data.batch_size"),
        ("ContrastiveSpans", "data.batch_size"),
        ("BagOfNgrams", "data.batch_size"),
        # Of pairs beside which something is replayed.
        ("ContrastiveSpans", "data.pairs.batch_size"),
    ],
)
def test_figures_that_compare_a_batch_need_batches_of_one_size(client, objective, key):
    names = {"LeJEPA": "lejepa", "ContrastiveSpans": "contrastive_spans", "BagOfNgrams": "bag_of_ngrams"}
    metric = f"validation/{names[objective]}/accuracy"
    store, protocols = RunStore(client), []
    for size in ("32", "64"):
        settings = {"model": "Pretraining", "model_facts.task": None, "model_facts.objectives": names[objective]}
        settings |= {f"model.objectives.{objective}.weight": "1.0", "data.batch_size": None, key: size}
        run = store.run(log_run(client, size, settings=settings, curves={f"best/{metric}": {5: 0.5}}))
        protocols.append(protocol_of(run, metric))
    assert why_not_comparable(*protocols) == "batch size 64, not 32"


def test_an_encoder_that_was_taken_over_differs_in_nothing():
    own = {
        "model.encoder.class_path": "TextEncoder",
        "model.encoder.width": "128",
        "model.optimizer.learning_rate": "1",
    }
    taken = {"model.encoder": "None", "model.init_from": "own", "model.optimizer.learning_rate": "2"}
    assert differing([own, taken]) == ["model.optimizer.learning_rate"]
    # One that says something of it does differ, and so do two that each have their own.
    assert differing([own, taken | {"model.encoder.width": "64"}])[0] == "model.encoder.width"
    other = own | {"model.encoder.width": "64"}
    assert differing([own, other, taken]) == ["model.encoder.width", "model.optimizer.learning_rate"]
    scratch = {"model.encoder": "None", "model.init_from": "None", "model.optimizer.learning_rate": "1"}
    assert "model.encoder.width" in differing([own, scratch])
