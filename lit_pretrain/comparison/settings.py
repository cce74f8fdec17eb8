"""Settings of runs: which of them matter, which differ, and how they are called in little room."""

from collections.abc import Mapping, Sequence

from lit_pretrain.comparison.runs import Run

SECTIONS = ("model", "data", "trainer")
SEEDS = ("seed_everything", "data.seed")
# What does not change what is learned: where things lie, what is shown, what only a test reads.
WITHOUT_EFFECT = (
    "data.workers", "data.cache_", "data.test_", "trainer.logger", "trainer.enable_", "trainer.log_every_n_steps",
    "trainer.default_root_dir", "trainer.barebones", "trainer.profiler", "trainer.limit_test_batches",
    "trainer.limit_predict_batches", "trainer.num_sanity_val_steps", "trainer.inference_mode",
)  # fmt: skip
START = "init_from"
# As a setting is by default that was not always there, so that older configs mean what they meant.
OFF = ("None", "False", "0", "0.0", "[]", "{}")
ENCODERS = ("encoder", "text_encoder", "vision_encoder")


def settings_of(run: Run) -> dict[str, str]:
    """The settings of a run that matter, but for its seed; those that it went on with in the place of the first."""
    return {
        key: run.tags.get(f"resumed.{key}", value)
        for key, value in run.parameters.items()
        if key.partition(".")[0] in SECTIONS and key not in SEEDS and not key.startswith(WITHOUT_EFFECT)
    }


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the settings that are not the same in all, in the order of the config's sections; what a run starts
    from, which its lineage tells, is left out, and so are the settings of an encoder that it has from there.
    """
    names = dict.fromkeys(name for one in settings for name in one)
    found = [name for name in names if len(distinct_values(name, settings)) > 1]
    found = [name for name in found if name.rpartition(".")[2] != START]
    return sorted(found, key=lambda name: (SECTIONS.index(name.partition(".")[0]), name))


def distinct_values(name: str, settings: Sequence[Mapping[str, str]]) -> set[str | None]:
    """The values of a setting, with null for runs that have none, of which the settings of an encoder that it has from
    what it starts from are no values. Runs of a build before the setting was there have it off.
    """
    values = {one.get(name) for one in settings if not is_taken_over(name, one)}
    return {None if value in OFF else value for value in values} if None in values else values


def is_taken_over(name: str, settings: Mapping[str, str]) -> bool:
    """Whether a setting is of an encoder that a run has from what it starts from, and not from its own config."""
    given = settings.get(name) not in (None, "None")
    return not given and any(part in ENCODERS for part in name.split(".")) and has_start(settings)


def has_start(settings: Mapping[str, str]) -> bool:
    """Whether a run starts from another one's weights, or from public ones."""
    return any(name.rpartition(".")[2] == START and value not in ("None", "") for name, value in settings.items())


def short_names(names: Sequence[str], least: int = 1) -> dict[str, str]:
    """Each dotted name by as many of its last parts as tell it from the others, `least` at least and its section not
    among them unless it must.
    """
    short = {}
    for name in names:
        parts = name.split(".")
        for count in range(max(1, min(least, len(parts) - 1)), len(parts) + 1):
            tail = ".".join(parts[-count:])
            if sum(other == tail or other.endswith(f".{tail}") for other in names) == 1:
                break
        short[name] = tail
    return short


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters, its middle left out."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}" if end else text[:most]


def shown_setting(value: str | None) -> str:
    """A setting's value; a dash for one that a run does not have."""
    if value is None:
        return "–"
    try:
        number = float(value)
    except ValueError:
        return value
    return value if value.lstrip("-").isdecimal() else f"{number:g}"
