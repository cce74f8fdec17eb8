"""What jsonargparse says of a wrong config, in one sentence with the nearest right name.

Its own messages list every class and every layer that a value was tried against; the person needs the innermost: which
key or value, where, and what was probably meant.
"""

import inspect
import re

from lit_pretrain.errors import nearest


def known_names() -> dict[str, set[str]]:
    """Argument names of every class that a config may name, by class name, and the top level's as ""."""
    import lightning
    from lightning import LightningDataModule, LightningModule
    from lightning.pytorch.callbacks import Callback

    from lit_pretrain.backbone import TextEncoder, TransformerConfig
    from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig
    from lit_pretrain.modules.pretraining import subclasses
    from lit_pretrain.objectives import Objective
    from lit_pretrain.tracking.mlflow_logger import MLflowLogger

    names = {"": {"trainer", "model", "data", "seed_everything", "ckpt_path", "config", "class_path", "init_args"}}
    kinds = [TextEncoder, TransformerConfig, AdamWConfig, ScheduleConfig, MLflowLogger, lightning.Trainer]
    for base in (LightningModule, LightningDataModule, Objective, Callback):
        kinds += [kind for kind in subclasses(base) if kind.__module__.startswith(("lit_pretrain", "lightning"))]
    for kind in kinds:
        names[kind.__name__] = set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"}
    return names


def explain(message: str, error: BaseException | None = None) -> str:
    """Turn jsonargparse's message into one sentence."""
    text = " ".join(str(message).split())
    causes = [text]
    while error is not None:
        causes.append(" ".join(str(error).split()))
        error = error.__cause__ or error.__context__
    everything = " ".join(causes)

    wrong_key = (
        re.search(r"[Kk]ey '([^']+)' is not expected", everything)
        or re.search(r"No action for key '([^']+)'", everything)
        or re.search(r"[Uu]nrecognized arguments: --?([^\s=]+)", everything)
        or re.search(r"[Oo]ption '([^']+)' is not accepted", everything)
        or re.search(r"Nested key '?([^'\s]+)'? (?:not accepted|is not)", everything)
    )
    if wrong_key:
        return explain_key(wrong_key.group(1), everything)
    missing = re.search(r"[Kk]ey \"?'?([\w.]+)'?\"? is required", everything) or re.search(
        r"Option '([^']+)' is required", everything
    )
    if missing:
        name = missing.group(1)
        return f"The config lacks '{name}': set it, or start from one of the files in configs/."
    unknown_class = (
        re.search(r"Import path ([\w.]+)", everything)
        or re.search(r"[Uu]nexpected import path format: ([\w.]+)", everything)
        or re.search(r"class_path ['\"]?([\w.]+)['\"]? (?:is not|does not)", everything)
        or re.search(r"No module named '?([\w.]+)'?", everything)
    )
    where = re.search(r"[Pp]arser key \"([\w.]+)\"", everything)
    place = f" in '{where.group(1)}'" if where else ""
    if unknown_class:
        name = unknown_class.group(1)
        classes = sorted(one for one in known_names() if one)
        guess = nearest(name.rpartition(".")[2], classes)
        return f"The config{place} names a class '{name}' that does not fit there{guess}: check class_path."
    innermost = re.findall(r"(?:Expected|expected|Got value|Does not validate|does not)[^:;]*[:;]?[^:;]*", everything)
    invalid = re.search(r"Expected a? ?(.{1,120}?)\. Got value: (.{1,80}?)(?: |$)", everything)
    if invalid and where:
        return f"The config's '{where.group(1)}' is {invalid.group(2)}, but must be {invalid.group(1)}: correct it."
    reason = (innermost[-1] if innermost else text).strip()[:240]
    return f"The config{place} cannot be used: {reason.rstrip('.')}."


def explain_key(key: str, everything: str) -> str:
    """The sentence for a key that does not exist."""
    names = known_names()
    parts = [part for part in key.strip("-").split(".") if part]
    everywhere = set().union(*names.values())
    wrong = next((part for part in parts if part not in everywhere), parts[-1])
    # The class that was being filled, if the message names one: its own names are the likeliest to be meant.
    owner = next((name for name in reversed(re.findall(r"\b([A-Z]\w+)\b", everything)) if name in names), "")
    guess = nearest(wrong, names.get(owner, ())) or nearest(wrong, everywhere)
    place = f" of {owner}" if owner else ""
    return f"There is no setting '{'.'.join(parts)}'{place}{guess}: correct the config or the command line."
