"""`prepare` of a large corpus beside the bare rate of `tokenizers` on the same sentences, in turns, and its peak.

    python -m lit_pretrain samples large-corpus --bytes 2e9 --to corpus.parquet
    python tests/preparation_rate.py --config CONFIG --corpus corpus.parquet --tokenizer DIRECTORY --turns 2

Each is a process of its own: `prepare` from start to end with an empty directory of caches, `encode_batch` over all
sentences alone, split before its clock starts. Said are wall and processor seconds, the largest resident memory of the
process (it has no others) and what opening once more takes.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 2000


def bare(corpus: str, tokenizer_file: str) -> dict[str, float]:
    """Wall and processor seconds of `encode_batch` over the corpus's sentences."""
    import pyarrow.parquet
    from tokenizers import Tokenizer

    from lit_pretrain.data.text.token_cache import split_sentences

    tokenizer = Tokenizer.from_file(tokenizer_file)
    wall = processor = 0.0
    for batch in pyarrow.parquet.ParquetFile(corpus).iter_batches(ROWS, columns=["text"]):
        sentences = [sentence for text in batch.column(0).to_pylist() for sentence in split_sentences(text)]
        began, used = time.perf_counter(), processor_seconds()
        encodings = tokenizer.encode_batch(sentences, add_special_tokens=False)
        wall, processor = wall + time.perf_counter() - began, processor + processor_seconds() - used
        del encodings
    return {"wall": wall, "processor": processor}


def processor_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """Seconds of all cores."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


# Its peak before the interpreter ends: as it does, the libraries' own ends read in 0.1 GB of their files.
PREPARE = """
import resource, sys
from lit_pretrain.__main__ import main
status = main(sys.argv[1:])
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def prepared(arguments: argparse.Namespace, caches: str) -> dict[str, float]:
    """Wall and processor seconds and the peak of `prepare`."""
    command = [sys.executable, "-c", PREPARE, "prepare", "--config", arguments.config]
    command += ["--data.path", arguments.corpus, "--data.tokenizer", arguments.tokenizer]
    command += ["--data.cache_directory", caches]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = {"wall": time.perf_counter() - began, "processor": usage.ru_utime + usage.ru_stime}
    *said, peak = output.splitlines()
    found |= {"peak_bytes": float(peak), "inside": float(" ".join(said).split()[-2])}
    return found


def main() -> None:
    """Measure in turns and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--bare", action="store_true")
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments.corpus, str(Path(arguments.tokenizer) / "tokenizer.json"))))
        return
    for turn in range(arguments.turns):
        caches = tempfile.mkdtemp(prefix="preparation-", dir=Path(arguments.corpus).parent)
        for name in ("prepare", "open again"):
            print(json.dumps({"turn": turn, "what": name, **prepared(arguments, caches)}), flush=True)
        shutil.rmtree(caches)
        command = [sys.executable, __file__, "--bare", "--corpus", arguments.corpus, "--tokenizer", arguments.tokenizer]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(json.dumps({"turn": turn, "what": "bare", **found}), flush=True)


if __name__ == "__main__":
    main()
