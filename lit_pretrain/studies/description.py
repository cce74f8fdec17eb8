"""A study in a few lines of Markdown, for MLflow's page of its run, which is the parent of its trainings' runs."""

import math
from collections.abc import Mapping, Sequence

from lit_pretrain.comparison.next_commands import PROGRAM
from lit_pretrain.comparison.table import shown_number
from lit_pretrain.tracking.best import direction

# Of many trainings the best are listed.
MOST_ROWS = 20


def study_description(
    kind: str,
    metric: str,
    trainings: Sequence[tuple[str, str, float | None]],
    notes: Sequence[str],
    commands: Mapping[str, str],
) -> str:
    """Describe a study as far as it has come.

    Args:
        kind: Which.
        metric: What its trainings are judged by.
        trainings: Name, state and figure (null if it has none) of each.
        notes: Sentences on what came of it.
        commands: What a person would type next, by what it does.
    """
    finished = [one for one in trainings if one[1] == "finished"]
    lines = [
        f"**{kind.replace('-', ' ').capitalize()}: {len(finished)} of {len(trainings)} trainings finished**",
        "",
        f"- **Judged by** {metric}",
        *(f"- {note}" for note in notes),
    ]
    ranked = [one for one in trainings if one[2] is not None and math.isfinite(one[2])]
    ranked.sort(key=lambda one: one[2] or 0.0, reverse=direction(metric) == "max")
    rest = [one for one in trainings if one not in ranked and one[1] != "waiting"]
    shown = [*ranked, *rest][:MOST_ROWS]
    if shown:
        lines += ["", f"| training | {metric} |", "|---|---|"]
        for name, state, value in shown:
            cell = shown_number(value) if value is not None and math.isfinite(value) else state
            lines.append(f"| {name.replace('|', '/')} | {cell} |")
        if len(trainings) > len(shown):
            lines.append(f"\n{len(trainings) - len(shown)} more are not listed.")
    lines += ["", "**Next**", "", "```bash"]
    lines += [line for purpose, command in commands.items() for line in (f"# {purpose}", command)]
    return "\n".join([*lines, "```"])


def study_commands(command: str, experiment: str) -> dict[str, str]:
    """What a person would type next.

    Args:
        command: That starts the study, without the program.
        experiment: Its, in the form for a shell.
    """
    return {
        "do what is left": f"{PROGRAM} {command}",
        "put its trainings side by side": f"{PROGRAM} compare --experiment {experiment}",
    }
