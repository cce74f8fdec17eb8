"""Where the weights of a run come from, over any number of trainings."""

import re
from dataclasses import dataclass
from pathlib import PurePath

from lit_pretrain.comparison.runs import Run, RunStore
from lit_pretrain.tracking.find import TOWERS

SCRATCH = "scratch"


@dataclass(frozen=True)
class Start:
    """What a training started from.

    Attributes:
        name: Of the run, or of public weights; "scratch" for none.
        step: Optimiser step of the run's checkpoint; null if that is not known.
        run: The run; null for public weights, scratch, and a run that the store no longer has.
        gone: Whether it is a run that the store no longer has.
        tower: "text" or "vision" where a run has started two encoders; else empty.
        starts: What that run started from itself.
    """

    name: str
    step: int | None = None
    run: Run | None = None
    gone: bool = False
    tower: str = ""
    starts: tuple["Start", ...] = ()

    def __str__(self) -> str:
        """The name with its step."""
        return self.name + (f" (step {self.step})" if self.step is not None else "")


def starts_of(run: Run, store: RunStore, seen: frozenset[str] = frozenset()) -> tuple[Start, ...]:
    """What a run started from: nothing is known of one that has not begun; contrastive pretraining has two starts."""
    found = []
    for tower in ("", *TOWERS):
        prefix = f"model_facts.{tower}_" if tower else "model_facts."
        source, run_id = run.parameters.get(f"{prefix}init_from"), run.parameters.get(f"{prefix}init_from_run")
        if source is None or f"{prefix}architecture_from" in run.parameters:
            # Without pretrained weights only the shape is taken.
            continue
        if source == SCRATCH or run_id in {*seen, run.run_id}:
            found.append(Start(SCRATCH, tower=tower))
            continue
        if run_id is None:
            found.append(Start(public_name(source), tower=tower))
            continue
        step = run.parameters.get(f"{prefix}init_from_step", "")
        former = store.run(run_id)
        found.append(
            Start(
                former.name if former is not None else name_in_path(source) or run_id[:8],
                int(step) if step.isdecimal() else None,
                former,
                former is None,
                tower,
                starts_of(former, store, seen | {run.run_id}) if former is not None else (),
            )
        )
    if not found and (run.parameters.get("model_facts.objectives") or run.parameters.get("model_facts.task")):
        return (Start(SCRATCH),)
    return tuple(found)


def public_name(source: str) -> str:
    """A short name of weights: those of the hub as they are, of a path its last two parts."""
    path = PurePath(source)
    return "/".join(path.parts[-2:]) if path.is_absolute() or len(path.parts) > 2 else source


def name_in_path(checkpoint: str) -> str:
    """The run's name in the path of a checkpoint in its directory `<name>-<id>/checkpoints/`; else empty."""
    for part in PurePath(checkpoint).parts:
        if found := re.fullmatch(r"(.+)-[0-9a-f]{8}", part):
            return found[1]
    return ""


def lineage_words(starts: tuple[Start, ...]) -> str:
    """The whole lineage in words, the nearest first: "from spans (step 800), from scratch"."""
    if not starts:
        return ""
    if len(starts) > 1:
        return "; ".join(f"{start.tower} {lineage_words((start,))}" for start in starts)
    (start,) = starts
    gone = ", a run that is gone" if start.gone else ""
    rest = lineage_words(start.starts)
    return f"from {start}{gone}" + (f", {rest}" if rest else "")


def ancestors(starts: tuple[Start, ...]) -> list[Start]:
    """Everything in a lineage, the nearest first."""
    return [one for start in starts for one in (start, *ancestors(start.starts))]
