"""Contestants are timed in turn, with the threads that the race allows."""

import torch

from lit_pretrain.commands.benchmarks.contest import Contestant, Race, hold, hold_all, ratio


def test_rounds_are_taken_in_turn():
    order = []
    ones = [Contestant(name, lambda name=name: order.append(name)) for name in "ab"]
    hold(ones, rounds=2, seconds=0.0, kept=False, warm_up_steps=1)
    assert order == list("ab" + "abab") and [len(one.seconds) for one in ones] == [2, 2] and not ones[0].kept_seconds
    assert ratio([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == 2.0


def test_all_races_are_held_twice_each_with_its_own_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = {"one": set(), "all": set()}
        races = [
            Race("race", name, [Contestant("ours", lambda name=name: seen[name].add(torch.get_num_threads()))], "x", 1)
            for name in seen
        ]
        races[0].threads = 1
        hold_all(races, rounds=3, seconds=0.0)
        assert seen == {"one": {1}, "all": {2}} and torch.get_num_threads() == 2
        assert all(len(times) == 3 for race in races for times in (race.ours.seconds, race.ours.kept_seconds))
    finally:
        torch.set_num_threads(before)
