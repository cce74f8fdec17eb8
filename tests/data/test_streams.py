"""Streams: every row once a pass in whatever lanes, places that can be gone on from, remote files, tar shards."""

import http.server
import io
import json
import tarfile
import threading
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lit_pretrain.data.images.image_source import ImageSource
from lit_pretrain.data.stream_order import Lane, Place, find_head, split_head
from lit_pretrain.data.stream_source import StreamedRows, column_of, open_stream
from lit_pretrain.data.text.document_data_module import DocumentSource
from lit_pretrain.errors import UserError


def write_shards(directory: Path, sizes: list[int]) -> list[str]:
    """JSON lines with a text each, all different, in so many files; their texts."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = []
    for shard, size in enumerate(sizes):
        own = [f"Text {shard} {row} of the corpus." for row in range(size)]
        (directory / f"{shard:02}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
        texts += own
    return texts


def opened(directory: Path, tmp_path: Path) -> StreamedRows:
    return open_stream(DocumentSource(str(directory)), tmp_path / "caches")


@pytest.mark.parametrize("sizes", [[30], [7, 1, 12], [5, 3, 4, 9, 2, 1, 6, 8]])
def test_every_row_is_once_in_a_pass_of_all_lanes(sizes: list[int], tmp_path: Path) -> None:
    """Also where there are more lanes than shards; another pass has another order, and what is held out never comes."""
    texts = write_shards(tmp_path / "shards", sizes)
    rows = opened(tmp_path / "shards", tmp_path)
    first, held_out = split_head(find_head(rows, 10), 0.2)
    assert first and len(held_out) == 2
    held = frozenset((row.shard, row.row) for row in held_out)
    for lanes in (1, 2, 3, 5):
        orders = []
        for epoch in (0, 1):
            lane_rows = [list(Lane(rows, lane, lanes, 3, held).read(Place(epoch))) for lane in range(lanes)]
            seen = [row.values["text"] for some in lane_rows for row in some]
            assert Counter(seen) == Counter(texts) - Counter(row.values["text"] for row in held_out)
            assert all(lane_rows), "a lane has nothing to do"
            orders.append(seen)
        assert len(sizes) == 1 or orders[0] != orders[1]


def test_a_buffer_is_the_same_from_its_place_on(tmp_path: Path) -> None:
    """Whatever lies before it is not read, and the rest of a pass is never too small for what needs two."""
    write_shards(tmp_path / "shards", [9, 4, 8])
    rows = opened(tmp_path / "shards", tmp_path)
    lane = Lane(rows, 0, 1, 1)
    buffers = list(islice(lane.buffers(Place(), 5, least=2), 12))
    # 21 rows: 5, 5, 5 and 6, since one alone would be left.
    assert [len(buffer.rows) for buffer in buffers] == [5, 5, 5, 6] * 3
    assert [buffer.place.epoch for buffer in buffers] == [0] * 4 + [1] * 4 + [2] * 4
    read: list[tuple[int, int]] = []
    original = rows.read

    def counting(shard: int, row: int = 0):
        read.append((shard, row))
        return original(shard, row)

    object.__setattr__(rows, "read", counting)
    for number in (2, 5, 7):
        read.clear()
        again = list(islice(lane.buffers(buffers[number].place, 5, least=2), 3))
        assert again == buffers[number : number + 3]
        assert read[0] == (buffers[number].rows[0].shard, buffers[number].rows[0].row)


def test_more_lanes_than_rows(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [2])
    rows = opened(tmp_path / "shards", tmp_path)
    with pytest.raises(UserError, match="fewer samples than there are processes and workers"):
        next(Lane(rows, 4, 5, 0).buffers(Place(), 5))
    with pytest.raises(UserError, match="leaves none of 2 samples"):
        split_head(find_head(rows, 10), 0.1, least=2)
    with pytest.raises(UserError, match="give whole splits"):
        open_stream(DocumentSource(str(tmp_path / "shards"), split="train[:10%]"), tmp_path)


def test_parquet_is_read_by_row_groups(tmp_path: Path) -> None:
    """Its shards are row groups, so that nothing before one is read; a broken file is one sentence."""
    table = pyarrow.table({"text": [f"Text {row}." for row in range(40)], "number": list(range(40))})
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet", row_group_size=8)
    rows = open_stream(DocumentSource(str(tmp_path / "table.parquet")), tmp_path)
    assert rows.shards == 5
    assert [row["number"] for _, row in rows.read(3, 5)] == [29, 30, 31]
    content = (tmp_path / "table.parquet").read_bytes()
    (tmp_path / "table.parquet").write_bytes(content[:100] + b"\0" * 200 + content[300:])
    with pytest.raises(UserError, match="cannot be read on, in shard"):
        for shard in range(rows.shards):
            list(rows.read(shard))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def address(tmp_path: Path):
    """Of a server of this machine, which gives the files of a directory."""
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_files_of_an_address_are_streamed(address: str, tmp_path: Path, monkeypatch) -> None:
    """No copy is kept; one that is not there is one sentence."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    texts = write_shards(tmp_path / "served", [4, 3])
    source = DocumentSource("json", data_files=[f"{address}/00.jsonl", f"{address}/01.jsonl"])
    rows = open_stream(source, tmp_path / "caches")
    assert rows.shards == 2
    assert [row["text"] for shard in range(2) for _, row in rows.read(shard)] == texts
    assert [row["text"] for _, row in rows.read(1, 2)] == texts[-1:]
    assert not (tmp_path / "caches").exists()
    with pytest.raises(UserError, match="cannot be read"):
        missing = open_stream(DocumentSource("json", data_files=f"{address}/02.jsonl"), tmp_path)
        list(missing.read(0))


def test_tar_shards(tmp_path: Path) -> None:
    """A row has the files of one name, some of which may be missing; a shard that was cut short is refused."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for number in range(3):
                files = {"png": b"picture", "json": json.dumps({"caption": f"{shard} {number}"}).encode()}
                if number == 1:
                    files["txt"] = b"beside"
                for ending, content in files.items():
                    member = tarfile.TarInfo(f"{number:03}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    rows = open_stream(ImageSource(str(tmp_path)), tmp_path / "caches")
    assert rows.shards == 2
    found = [row for _, row in rows.read(1, 1)]
    assert [column_of(row, "json.caption") for row in found] == ["1 1", "1 2"]
    assert [column_of(row, "txt") for row in found] == ["beside", None]
    assert found[0]["png"]["bytes"] == b"picture"
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:900])
    with pytest.raises(UserError, match=r"1\.tar"):
        open_stream(ImageSource(str(tmp_path)), tmp_path / "caches")
