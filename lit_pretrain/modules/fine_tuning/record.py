"""What a checkpoint of fine-tuning knows beside its weights, so that it can be used without its config and its data.

And what the record of a run says of the module.
"""

from typing import Any

from lit_pretrain.class_paths import class_path_of
from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.text.tokenizers_by_kind import tokenizer_from_json
from lit_pretrain.errors import UserError
from lit_pretrain.modules.checkpoints import common_record, difference
from lit_pretrain.modules.export_format import export_facts
from lit_pretrain.modules.optimization import count_elements


def record_of(module: Any, data: Any) -> dict[str, Any]:
    """The record of a `FineTuning`.

    Args:
        module: The module, its labels known.
        data: Its data module, or null.

    Returns:
        Primitives only, for `checkpoint["lit_pretrain"]`.
    """
    return common_record(module, data) | {
        "encoder_class": class_path_of(type(module.encoder)),
        "encoder": module.encoder.settings(),
        "label_facts": module.facts.to_dict(),
        "lineage": dict(module.lineage),
        "fresh": list(module.fresh),
        "modality": module.modality.settings(),
    }


def check_record(record: dict[str, Any], module: Any) -> None:
    """Refuse to load a checkpoint of another kind, shape, tokenizer or other classes into a `FineTuning`.

    Args:
        record: The checkpoint's, empty if it is not one of ours.
        module: The module, as its config and its data made it.

    Raises:
        UserError: In one sentence.
    """
    if record.get("module") != type(module).__name__:
        raise UserError(
            f"The checkpoint is of {record.get('module', 'another program')}, not of {type(module).__name__}: give it "
            "to model.init_from to start from its encoder."
        )
    lines = difference("encoder", record["encoder"], module.encoder.settings())
    if lines and module.head is not None:
        raise UserError(
            f"The checkpoint's encoder has other settings than this config's ({', '.join(lines[:4])}): go on with its "
            "own config.yaml."
        )
    facts = LabelFacts.from_dict(record["label_facts"])
    if module.facts is not None and (facts.task, facts.classes) != (module.facts.task, module.facts.classes):
        raise UserError(
            f"The checkpoint knows {named(facts)}, the data has {named(module.facts)}: give the data that it was "
            "trained on."
        )
    if module.tokenizer is not None and record.get("tokenizer_hash") != module.tokenizer.hash:
        raise UserError(
            f"The checkpoint was trained with tokenizer {record.get('tokenizer_hash')}, this data uses tokenizer "
            f"{module.tokenizer.hash}: leave data.tokenizer out, so that the checkpoint's is taken."
        )


def take_record(record: dict[str, Any], module: Any) -> None:
    """Give a `FineTuning` that has its encoder what else a checkpoint knows; its head is made by `configure_model`."""
    module.lineage = dict(record["lineage"])
    # A training that is resumed starts from its own checkpoint, to which nothing is new.
    module.fresh = list(record.get("fresh", module.fresh))
    if module.head is None:
        # Else the data at hand has said how it cuts its texts.
        module.modality.take(record["modality"])
    if module.tokenizer is None and "tokenizer" in record:
        module.tokenizer = tokenizer_from_json(record["tokenizer"])
    # The labels that were trained on, their mean and spread, and not those of the data at hand.
    module.facts = LabelFacts.from_dict(record["label_facts"])
    if module.task is not None:
        module.task.facts = module.facts


def description_of(module: Any) -> dict[str, Any]:
    """What a `FineTuning` is made of and where it comes from, for the record of a run."""
    encoder = module.encoder
    description: dict[str, Any] = {
        "parameters": count_elements(module.parameters()),
        "encoder": type(encoder).__name__,
        "depth": encoder.config.depth,
        "width": encoder.config.width,
        "pooling": encoder.pooling,
        **export_facts(encoder),
    }
    if module.facts is not None:
        description |= {"task": module.facts.task, "classes": len(module.facts.classes)}
    description |= {**module.modality.describe(encoder), **module.lineage}
    if module.tokenizer is not None:
        description["tokenizer_hash"] = module.tokenizer.hash
    for name, names in (("fresh_parameters", module.start.fresh), ("left_out_parameters", module.start.left_out)):
        if names:
            description[name] = " ".join(names)
    return description


def named(facts: LabelFacts) -> str:
    """A task as a person knows it."""
    if facts.task == "regression":
        return "numbers"
    more = f" and {len(facts.classes) - 8} more" if len(facts.classes) > 8 else ""
    each = " (any number of them each)" if facts.task == "multi_label" else ""
    return f"the classes {', '.join(facts.classes[:8])}{more}{each}"
