"""What was understood of the data is said in one line, and what in it is probably a mistake in another."""

import re

import datasets
import pytest
from labelled_texts import TOKENIZER, WORDS
from picture_files import CLASSES, make_rows
from text_corpus import make_data, write_corpus

from lit_pretrain.data import ImageDataModule, LabelledDataModule, PairDataModule
from lit_pretrain.data.notices import say_once
from lit_pretrain.data.text.wordpiece_tokenizer import SPECIAL_TOKENS, WordPieceTokenizer, from_pieces
from lit_pretrain.errors import UserError

PARTS = r"\); 30 for training, 10 for validation, 40 for test \(.*again\.csv\); equal to a training sample: "
SEVERAL = r"2 classes by 'label', any number of them a row \(multi_label;"
LABELS = [
    (
        ["x", "y"],
        {},
        [rf"40 rows, texts of 'text', 2 classes by 'label' .*{PARTS}\d+ of 10 for validation, 40 of 40 for"],
    ),
    (["good", "bad", "Good "], {}, [r"3 classes by 'label' \(single_label; in training '", "differ in case or white"]),
    (["a", "b", "a|b", "b|a"], {}, ["4 classes", r"class 'a\|b', whose parts .*data\.label_separator to '\|'"]),
    (["a", "b", "a|b", ""], {"label_separator": "|"}, [SEVERAL]),
    (["1", "2", "1, 2"], {"label_separator": ","}, [SEVERAL]),
    (
        ["1.0", "0.0"],
        {},
        [r"numbers by 'label' \(regression, mean 0\.", r"than 0, 1, .*set data\.task to single_label"],
    ),
    (["007", "8"], {}, ["2 classes by 'label'", "holds '007', which was read as the number 7"]),
]


@pytest.mark.parametrize(("labels", "settings", "sentences"), LABELS, ids=range(len(LABELS)))
def test_what_labels_were_taken_for(tmp_path, labels, settings, sentences, capsys):
    rows = [f"{WORDS[number % 8]};{labels[number % len(labels)]}" for number in range(40)]
    for name in ("it.csv", "again.csv"):
        (tmp_path / name).write_text("\n".join(["text;label", *rows]), encoding="utf-16")
    settings |= {"delimiter": ";", "encoding": "utf-16", "cache_directory": str(tmp_path / "caches")}
    settings |= {"test_path": str(tmp_path / "again.csv"), "validation_share": 0.25}
    data = LabelledDataModule(str(tmp_path / "it.csv"), **settings)
    data.tokenizer = TOKENIZER
    data.setup("fit")
    lines = [line for line in capsys.readouterr().err.splitlines() if "it.csv" in line]
    # One for each of both parts that are tokenised.
    pieces = [line for line in lines if "0.0% of them unknown" in line]
    assert len(pieces) == 2
    lines = [line for line in lines if line not in pieces]
    assert len(lines) == len(sentences)
    for sentence in sentences:
        assert sum(bool(re.search(sentence, line)) for line in lines) == 1, lines


def test_equal_samples_of_other_data(tmp_path, capsys):
    rows = make_rows(12)
    datasets.concatenate_datasets([rows, rows]).to_parquet(tmp_path / "twice.parquet")
    rows.select(range(3)).to_parquet(tmp_path / "test.parquet")
    files = {
        "path": str(tmp_path / "twice.parquet"),
        "image_column": "picture",
        "test_path": str(tmp_path / "test.parquet"),
    }
    settings = {"cache_directory": str(tmp_path / "caches"), "batch_size": 2, "validation_share": 0.25}
    WordPieceTokenizer(from_pieces([*SPECIAL_TOKENS, *CLASSES], lowercase=True)).save(tmp_path / "tokenizer")
    say_once.cache_clear()
    ImageDataModule(**files, **settings, label_column="label").setup("fit")
    told = capsys.readouterr().err
    assert re.search(r"24 rows, pictures of 'picture', 3 classes by 'label' \(single_label; in training ", told)
    assert re.search(r"equal to a training picture: \d of 6 for validation, 3 of 3 for test\.", told)
    PairDataModule(**files, **settings, caption_columns=["name"], tokenizer=str(tmp_path / "tokenizer")).setup("fit")
    told = capsys.readouterr().err
    # Equal pictures are put together before the split.
    assert (
        "24 rows, 12 pictures of 'picture' with 24 captions of 'name' (24 word pieces, 0.0% of them unknown); 9" in told
    )
    assert re.search(r"equal to a training picture: 0 of 3 for validation, [1-3] of 3 for test\.", told)
    corpus = write_corpus(tmp_path / "corpus.jsonl", 10)
    corpus.write_text(corpus.read_text() * 2)
    make_data(corpus, tmp_path).setup("fit")
    told = capsys.readouterr().err
    assert re.search(
        r"20 documents of 'text' with [\d,]+ word pieces, \d\.\d% of them unknown; 16 for training, 4", told
    )
    assert int(re.search(r"training document: (\d) of 4", told)[1]) > 0


def test_a_delimiter_that_was_not_given_is_named(tmp_path):
    path = str(tmp_path / "it.csv")
    (tmp_path / "it.csv").write_text("text;label\nx;1\ny;2\n")
    data = LabelledDataModule(path, cache_directory=str(tmp_path / "caches"))
    data.tokenizer = TOKENIZER
    with pytest.raises(UserError, match=r"are text;label; set data\.text_column, or data\.delimiter to ';'"):
        data.setup("fit")
    for settings, sentence in (
        ({"delimiter": ";;"}, "give the one character"),
        ({"encoding": "utf-9"}, "give one that Python knows"),
        ({"label_separator": "|", "task": "single_label"}, "drop one"),
    ):
        with pytest.raises(UserError, match=sentence):
            LabelledDataModule(path, **settings)
