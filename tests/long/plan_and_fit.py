"""What `plan` says of trainings of ten minutes beside what they take: time, memory and checkpoints.

    python tests/long/plan_and_fit.py --directory /tmp/planned

For a text, a vision and a contrastive config: `plan` tells how many steps ten minutes permit, `plan` of so many steps
tells what they take, and `fit` makes them. Wall times tell something on a machine that does nothing else. Where others
work, `--clock processor` compares seconds of the processor on one thread: plan counts them in the place of the wall's,
and of fit those of user and system are taken. The exit status is 1 where they, or the memory, are more than 15 % apart.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "text": "configs/quickstart.yaml",
    "vision": "configs/vision/quickstart.yaml",
    "contrastive": "configs/contrastive/quickstart.yaml",
}
MOST_APART = 0.15
# One thread and no workers, so that on a machine that is free both clocks say the same.
BY_PROCESSOR = "import sys, time; time.perf_counter = time.process_time; "
# What is resident before the interpreter ends: as it does, the libraries' own ends read in 0.1 GB of their files.
COMMAND = """
import os, resource, sys
from lit_pretrain.__main__ import main
status = main(sys.argv[1:])
with open(os.environ["PEAK_FILE"], "w") as file:
    file.write(str(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
sys.exit(status)
"""


def call(clock: str, runs: Path, output: Path, *arguments: str) -> tuple[int, float, float, float]:
    """Run a command of the suite; its exit status, seconds, seconds of the processor, and most bytes resident."""
    peak = output.with_suffix(".peak")
    peak.write_text("nan")
    environment = os.environ | {"LIT_PRETRAIN_RUNS": str(runs), "PYTHONPATH": str(ROOT), "PEAK_FILE": str(peak)}
    environment |= {"OMP_NUM_THREADS": "1"} if clock == "processor" else {}
    code = (BY_PROCESSOR if clock == "processor" and arguments[0] == "plan" else "") + COMMAND
    began = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    return process.returncode, seconds, usage.ru_utime + usage.ru_stime, float(peak.read_text())


def compare(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plan and train one of the configs.

    Raises:
        RuntimeError: If a command fails.
    """
    place = arguments.directory / kind
    place.mkdir()
    runs, plan = place / "runs", place / "plan.json"
    config = ["--config", str(ROOT / CONFIGS[kind]), "--trainer.enable_progress_bar", "false"]
    probe = ["--seconds", f"{arguments.seconds:g}", "--json", str(plan)]

    def done(name: str, *words: str) -> tuple[float, float, float]:
        status, *figures = call(arguments.clock, runs, place / f"{name}.log", *words)
        # A budget that the config's own number of steps does not fit is what is asked for.
        if status != 0 and name != "budget":
            raise RuntimeError(f"{kind}: {name} ended with {status}, see {place / name}.log.")
        return figures[0], figures[1], figures[2]

    # More steps than the time permits.
    budget = f"{60 * arguments.minutes:g}s"
    done("budget", "plan", *config, "--trainer.max_steps", "1000000", "--budget", budget, *probe)
    steps = json.loads(plan.read_text())["steps_within_budget"]
    done("plan", "plan", *config, "--steps", str(steps), *probe)
    planned = json.loads(plan.read_text())
    wall, processor, memory = done("fit", "fit", *config, "--trainer.max_steps", str(steps))
    taken = processor if arguments.clock == "processor" else wall
    checkpoints = [file.stat().st_size for file in runs.glob("*/*/checkpoints/*.ckpt")]
    return {
        "kind": kind,
        "steps": steps,
        "planned_seconds": planned["seconds"],
        "seconds": wall,
        "processor_seconds": processor,
        "planned_over_taken": planned["seconds"] / taken,
        "planned_memory": planned["memory_bytes"],
        "memory": memory,
        "planned_checkpoint": planned["checkpoint_bytes"],
        "checkpoint": max(checkpoints, default=0),
        "planned_seconds_by_part": planned["seconds_by_part"],
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, required=True, help="a new directory for all that is written")
    parser.add_argument("--kinds", nargs="+", choices=list(CONFIGS), default=list(CONFIGS), help="one after the other")
    parser.add_argument("--minutes", type=float, default=10.0, help="of a training (10)")
    parser.add_argument("--seconds", type=float, default=45.0, help="of a probe (45, as plan's own)")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="what is compared")
    arguments = parser.parse_args()
    arguments.directory = arguments.directory.resolve()
    arguments.directory.mkdir(parents=True)
    rows = []
    print("| config | steps | planned, s | taken, s | processor, s | planned / taken | memory, GiB | checkpoint, MB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for kind in arguments.kinds:
        row = compare(kind, arguments)
        rows.append(row)
        print(
            f"| `{CONFIGS[kind]}` | {row['steps']:,} | {row['planned_seconds']:.0f} | {row['seconds']:.0f} "
            f"| {row['processor_seconds']:.0f} | {row['planned_over_taken']:.3f} "
            f"| {row['planned_memory'] / 2**30:.2f} planned, {row['memory'] / 2**30:.2f} "
            f"| {row['planned_checkpoint'] / 1e6:.1f} planned, {row['checkpoint'] / 1e6:.1f} |",
            flush=True,
        )
        (arguments.directory / "summary.json").write_text(json.dumps(rows, indent=1))
        shutil.rmtree(arguments.directory / kind / "runs")
    ratios = [ratio for row in rows for ratio in (row["planned_over_taken"], row["planned_memory"] / row["memory"])]
    return 0 if all(abs(ratio - 1.0) <= MOST_APART for ratio in ratios) else 1


if __name__ == "__main__":
    sys.exit(main())
