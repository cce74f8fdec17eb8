"""BERT's pairs, by hand and by their properties over many seeds."""

import pickle
import random
import tracemalloc
from pathlib import Path

import numpy
import pytest

from lit_pretrain.data.text import sentence_pairs
from lit_pretrain.data.text.sentence_pairs import PairSettings, find_or_plan, plan_pairs, truncate_pair
from lit_pretrain.data.text.token_cache import TokenCache
from lit_pretrain.errors import UserError


def corpus(*documents):
    """A cache of documents given as lists of sentence lengths; token k has id k."""
    lengths = [length for document in documents for length in document]
    ends = numpy.cumsum(lengths)
    counts = numpy.cumsum([len(document) for document in documents])
    return TokenCache(Path("."), numpy.arange(ends[-1]), ends, counts, numpy.arange(len(documents)), {})


def some_corpus(documents=40, seed=0):
    draw = random.Random(seed)
    return corpus(*[[draw.randint(3, 30) for _ in range(draw.randint(1, 30))] for _ in range(documents)])


def everything(cache):
    return numpy.arange(cache.documents)


class Draws:
    """Stands in for `random.Random` with draws written down beforehand."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def test_truncation_by_hand():
    # A has 6 tokens, B 4, room is 7: A loses one in front (0.4) and one at the back (0.6); 4 and 4 tie, so B loses one.
    assert truncate_pair(Draws(0.4, 0.6, 0.1), (10, 16), (30, 34), 7) == ((11, 15), (31, 34))
    # Nothing is cut from what fits.
    assert truncate_pair(Draws(), (10, 13), (30, 34), 7) == ((10, 13), (30, 34))
    # Even lengths are reached from the longer side only.
    assert truncate_pair(Draws(0.9, 0.9, 0.9), (0, 9), (20, 22), 8) == ((0, 6), (20, 22))


def test_one_pair_by_hand():
    # Two documents of two sentences: every following pair is all of its document, cut at its only inner boundary.
    cache = corpus([3, 4], [2, 5])
    for seed in range(20):
        plan = plan_pairs(cache, everything(cache), PairSettings(29, short_share=0.0), seed, 0)
        assert len(plan) >= 2 and plan.first[0].tolist() == [0, 3]
        for first, second, is_random, owners in zip(
            plan.first.tolist(), plan.second.tolist(), plan.is_random, plan.documents.tolist(), strict=True
        ):
            starts = {0: ([0, 3], [3, 7]), 1: ([7, 9], [9, 14])}
            if not is_random:
                assert (first, second) == starts[owners[0]] and owners[0] == owners[1]
            else:
                other = starts[1 - owners[0]]
                # From a random sentence of the other document to its end.
                assert second in ([other[0][0], other[1][1]], other[1]) and owners[1] == 1 - owners[0]


@pytest.mark.parametrize("random_next", ["balanced", "faithful", "never"])
def test_properties_over_many_seeds(random_next):
    cache = some_corpus()
    bounds = cache.document_offsets()
    for seed in range(15):
        plan = plan_pairs(cache, everything(cache), PairSettings(61, random_next), seed, seed % 3)
        lengths = [(plan.first[:, 1] - plan.first[:, 0]), (plan.second[:, 1] - plan.second[:, 0])]
        assert all((length > 0).all() for length in lengths) and (lengths[0] + lengths[1] <= 61).all()
        for side, spans in enumerate((plan.first, plan.second)):
            owner = plan.documents[:, side]
            assert (spans[:, 0] >= bounds[owner]).all() and (spans[:, 1] <= bounds[owner + 1]).all()
        # Never from the same document if random, always if not.
        assert ((plan.documents[:, 0] != plan.documents[:, 1]) == plan.is_random).all()
        # A following B begins where A ended, but for what was cut off between them.
        following = ~plan.is_random
        gap = plan.second[following, 0] - plan.first[following, 1]
        full = lengths[0][following] + lengths[1][following] < 61
        assert (gap >= 0).all() and (gap[full] == 0).all()


def test_labels_are_balanced_or_as_the_authors_draw_them():
    cache = some_corpus(400, seed=1)
    balanced = plan_pairs(cache, everything(cache), PairSettings(61), 0, 0).is_random
    assert abs(int(balanced.sum()) - int((~balanced).sum())) <= 1
    # Not taken in turns: the label of one pair must not give away the next one's.
    same = (balanced[1:] == balanced[:-1]).mean()
    assert 0.2 < same < 0.8
    faithful = plan_pairs(cache, everything(cache), PairSettings(61, "faithful"), 0, 0).is_random
    assert 0.52 < faithful.mean() < 0.66


def test_sentences_that_a_random_pair_does_not_use_are_put_back():
    cache = some_corpus(60, seed=2)
    settings = PairSettings(10_000, short_share=0.0)  # room for all: nothing is cut off
    plan = plan_pairs(cache, everything(cache), settings, 3, 0)
    bounds = cache.document_offsets()
    for document in range(cache.documents):
        covered = []
        for row in numpy.flatnonzero(plan.documents[:, 0] == document):
            covered.append(plan.first[row].tolist())
            if not plan.is_random[row]:
                covered.append(plan.second[row].tolist())
        # One after the other, with no gap and no overlap, from the document's first token to its last.
        assert covered[0][0] == bounds[document] and covered[-1][1] == bounds[document + 1]
        assert all(one[1] == next_one[0] for one, next_one in zip(covered, covered[1:], strict=False))


def test_a_second_text_may_follow_always():
    cache = some_corpus(60, seed=2)
    plan = plan_pairs(cache, everything(cache), PairSettings(10_000, "never", short_share=0.0), 3, 0)
    # Room for all: a pair is a whole document, and one sentence makes none.
    bounds, sentences = cache.document_offsets(), [len(cache.sentence_offsets(one)) - 1 for one in range(60)]
    several = [one for one in range(60) if sentences[one] > 1]
    assert 1 in sentences and plan.documents[:, 0].tolist() == several and not plan.is_random.any()
    assert plan.first[:, 0].tolist() == bounds[several].tolist()
    assert plan.second[:, 1].tolist() == bounds[numpy.array(several) + 1].tolist()
    assert (plan.first[:, 1] == plan.second[:, 0]).all()
    # One document is enough.
    assert len(plan_pairs(corpus([3, 4]), numpy.arange(1), PairSettings(29, "never"), 0, 0)) == 1


def test_neither_length_nor_cuts_tell_which_text_comes_first():
    """A piece ends with the sentence that passes its target, so that one text would be the longer one, and be cut."""
    cache = some_corpus(2000, seed=3)
    plan = plan_pairs(cache, everything(cache), PairSettings(61, "never"), 0, 0)
    first, second = (spans[:, 1] - spans[:, 0] for spans in (plan.first, plan.second))
    assert abs((first > second).mean() - (first < second).mean()) < 0.04
    whole = numpy.concatenate([cache.sentence_offsets(document) for document in range(2000)])
    shares = [numpy.isin(spans, whole).mean() for spans in (plan.first, plan.second)]
    assert abs(shares[0] - shares[1]) < 0.02 and 0.2 < shares[0] < 0.8


def test_some_pairs_aim_at_a_shorter_length():
    cache = corpus(*[[1] * 4000 for _ in range(6)])
    plan = plan_pairs(cache, everything(cache), PairSettings(61, short_share=0.1), 0, 0)
    following = ~plan.is_random
    length = plan.second[following, 1] - plan.first[following, 0]
    inside = length < 61
    assert 0.05 < inside.mean() < 0.16
    # Uniform in 2..room: the mean of the short ones is about 31.
    assert 25 < length[inside].mean() < 37 and length.min() >= 2


def test_draws_come_from_seed_and_epoch_alone():
    cache = some_corpus()

    def spans(seed, epoch):
        plan = plan_pairs(cache, everything(cache), PairSettings(61), seed, epoch)
        return plan.first.tolist() + plan.second.tolist()

    assert spans(1, 2) == spans(1, 2)
    assert spans(1, 2) != spans(1, 3) and spans(1, 2) != spans(2, 2)


def test_what_cannot_make_pairs_is_said():
    with pytest.raises(UserError, match=r"there is 1 document.*data\.layout to segments"):
        plan_pairs(corpus([3, 4]), numpy.arange(1), PairSettings(29), 0, 0)
    single = corpus([3], [4], [5])
    for random_next in ("balanced", "never"):
        with pytest.raises(UserError, match="Every document has one sentence only"):
            plan_pairs(single, everything(single), PairSettings(29, random_next), 0, 0)


@pytest.mark.parametrize("random_next", ["balanced", "faithful", "never"])
def test_the_plan_of_a_large_corpus_is_made_once(tmp_path, monkeypatch, random_next):
    cache = some_corpus(60, seed=4)
    cache.directory, cache.facts = tmp_path / "tokens", {"sentences": 2_000}
    monkeypatch.setattr(sentence_pairs, "KEPT_FROM", 1_000)
    monkeypatch.setattr(sentence_pairs, "BLOCK", 50)
    made = []
    inner = sentence_pairs.planned_blocks
    monkeypatch.setattr(sentence_pairs, "planned_blocks", lambda *given: made.append(given[4]) or inner(*given))
    settings = PairSettings(61, random_next)
    for epoch in (0, 0, 1, 2, 2):
        kept = find_or_plan(cache, everything(cache), settings, 3, epoch)
        # To the bit what a process would plan by itself, also after it was handed to a worker.
        monkeypatch.setattr(sentence_pairs, "BLOCK", 10**6)
        alone = sentence_pairs.PairPlan(*vars(next(inner(cache, everything(cache), settings, 3, epoch))).values())
        monkeypatch.setattr(sentence_pairs, "BLOCK", 50)
        handed = pickle.dumps(kept)
        assert len(handed) < 500
        for plan in (kept, pickle.loads(handed)):
            for name in sentence_pairs.KINDS:
                assert isinstance(getattr(plan, name), numpy.memmap)
                assert numpy.array_equal(getattr(plan, name), getattr(alone, name))
    assert made == [0, 1, 2]
    (folder,) = (tmp_path / "tokens.pairs").iterdir()
    assert sorted(one.name for one in folder.iterdir() if one.is_dir()) == ["1", "2"]
    # Where nothing can be written every process plans by itself.
    cache.directory = tmp_path / "file" / "tokens"
    (tmp_path / "file").write_text("")
    assert numpy.array_equal(find_or_plan(cache, everything(cache), settings, 3, 2).first, kept.first)


def test_a_plan_takes_little_more_than_its_numbers():
    cache = some_corpus(400, seed=4)
    tracemalloc.start()
    plan = plan_pairs(cache, everything(cache), PairSettings(61), 0, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Six numbers of 8 bytes and a label, with room to grow; as tuples it would be 500 bytes a pair.
    assert len(plan) > 1000 and peak < 120 * len(plan)
