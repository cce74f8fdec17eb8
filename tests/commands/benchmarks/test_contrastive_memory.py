"""Memory of a contrastive step by the size of its batch, through the command."""

import json

import pytest

from lit_pretrain.__main__ import main

SMALL = ["--width", "32", "--depth", "1", "--image-size", "32", "--patch-size", "8", "--text-length", "8"]


def test_each_size_in_a_process_of_its_own(tmp_path, capfd):
    # The process that all are forked from serves other tests too, which import more: tests/conftest.py has started it.
    file = tmp_path / "rows.json"
    sizes = ["--batch-sizes", "1024", "64", "--chunk-size", "64", "--json", str(file)]
    assert main(["benchmark", "contrastive-memory", *sizes, *SMALL]) == 0
    small, large = json.loads(file.read_text())
    assert (small["batch_size"], large["batch_size"]) == (64, 1024)
    # uint8 pictures of 36 pixels, 8 word pieces of 8 bytes with a mask of 1, and two keys of 8.
    assert large["mebibytes_of_batch"] == pytest.approx(1024 * (3 * 36**2 + 8 * 9 + 16) / 2**20)
    assert large["ratio"] == pytest.approx(large["mebibytes"] / small["mebibytes"]) and small["ratio"] == 1.0
    # 16 times the pairs need more, but no more than the batch and a few blocks of logits do.
    assert large["mebibytes_of_batch"] < large["mebibytes"] - small["mebibytes"] < 90
    assert "64 pairs at a time" in capfd.readouterr().out
