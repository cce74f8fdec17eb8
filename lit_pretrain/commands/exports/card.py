"""The model card (README.md) beside an export, with the hub's front matter (Mitchell et al. 2019, arXiv:1810.03993)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from huggingface_hub import ModelCardData

from lit_pretrain import __version__
from lit_pretrain.commands.exports.check import Difference
from lit_pretrain.commands.exports.provenance import Provenance
from lit_pretrain.commands.exports.subject import Subject
from lit_pretrain.modules import ContrastivePretraining
from lit_pretrain.required import required
from lit_pretrain.tracking.paths import shown_path

LIBRARIES = {"hf": "transformers", "timm": "timm", "open_clip": "open_clip", "onnx": "onnx"}
# By which `--overwrite` knows an export, the only thing that it may remove.
MARK = "lit_pretrain"
UNKNOWN = "unknown"
PIPELINES = {"BertForMaskedLM": "fill-mask", "BertForPreTraining": "fill-mask", "BertLMHeadModel": "text-generation"}
# What the config says of the training, and what a reader calls it.
SETTINGS = {
    "trainer.max_steps": "optimiser steps planned",
    "trainer.max_epochs": "epochs planned",
    "model.schedule.budget": "training time planned",
    "seed_everything": "seed of everything",
    "model.seed": "seed of the model's draws",
    "data.seed": "seed of the data's order",
    "data.batch_size": "batch size",
    "data.sequence_length": "sequence length",
    "data.maximum_length": "maximum length",
    "data.label_budget": "label budget",
    "model.optimizer.learning_rate": "learning rate",
    "model.layer_decay": "layer decay",
    "model.average.decay": "decay of the averaged weights",
    "model.freeze.blocks": "frozen blocks",
    "trainer.precision": "precision",
}
DATA_SETTINGS = (
    "path",
    "name",
    "data_files",
    "split",
    "text_column",
    "text_pair_column",
    "image_column",
    "label_column",
)


@dataclass(frozen=True)
class Loading:
    """How an export is used.

    Attributes:
        architecture: The class that loads it.
        code: Lines of Python.
        notes: What a reader must know of this format.
    """

    architecture: str
    code: str
    notes: tuple[str, ...] = ()


def write_card(
    subject: Subject,
    format_name: str,
    loading: Loading,
    provenance: Provenance,
    differences: list[Difference],
    sentence: str,
) -> str:
    """The whole card.

    Args:
        subject: What was exported.
        format_name: hf, timm or onnx.
        loading: How it is used.
        provenance: Where it comes from.
        differences: Of the numeric check.
        sentence: The check's result.
    """
    parts = [
        front_matter(subject, format_name, loading.architecture),
        f"# {provenance.run.run_name if provenance.run else subject.path.stem}",
        description(subject, loading.architecture),
        "License: not stated. Whoever publishes this chooses one that the data allows, and adds `license:` above.",
        section("How to load it", f"```python\n{loading.code}\n```", *loading.notes),
        section("Inputs", inputs_of(subject)),
        section("Data", data(subject, provenance)),
        section("Training", training(subject, provenance)),
        section("Metrics", metrics(subject, provenance)),
        section("Lineage", lineage(provenance)),
        section("Numeric check", sentence, check(differences)),
    ]
    if provenance.unknown:
        parts.append(section("What could not be read", "\n".join(f"- {line}" for line in provenance.unknown)))
    return "\n\n".join(parts) + "\n"


def front_matter(subject: Subject, format_name: str, architecture: str) -> str:
    """What the hub reads; without a license, which is the person's to choose."""
    if subject.is_pair:
        pipeline, kind = "zero-shot-image-classification", "clip"
    elif subject.is_text:
        kind = "bert"
        pipeline = (
            "text-classification" if subject.has_classifier else PIPELINES.get(architecture, "feature-extraction")
        )
    else:
        kind = "vit"
        pipeline = "image-classification" if subject.has_classifier else "image-feature-extraction"
    names = [re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower() for name in subject.objective_names]
    tags = [MARK, kind, *names]
    return f"---\n{ModelCardData(library_name=LIBRARIES[format_name], pipeline_tag=pipeline, tags=tags).to_yaml()}\n---"


def section(name: str, *paragraphs: str) -> str:
    """A heading and what stands below it."""
    return "\n\n".join([f"## {name}", *(paragraph for paragraph in paragraphs if paragraph)])


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """A table of Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def figure(value: float | None) -> str:
    """A number as tables show it."""
    return "" if value is None else f"{value:.4g}"


# -- what it is


def description(subject: Subject, architecture: str) -> str:
    """One paragraph: shape, size, what it was trained to do."""
    parts = list(subject.parts.values()) if subject.is_pair else [subject]
    text = "A " + " and a ".join(map(shape_of, parts)) + f": {subject.parameters:,} parameters. "
    if isinstance(subject.module, ContrastivePretraining):
        text += f"Texts and pictures meet in {subject.module.embedding_width} features. "
    if subject.has_classifier:
        facts = required(subject.facts)
        names = ", ".join(facts.classes[:20]) + (", ..." if len(facts.classes) > 20 else "")
        tasks = {
            "single_label": f"tells one of {len(facts.classes)} classes ({names})",
            "multi_label": f"tells any of {len(facts.classes)} classes ({names})",
            "regression": "predicts a number",
        }
        text += f"Fine-tuned: it {tasks[facts.task]}. "
    else:
        text += f"Pretrained by {' and '.join(subject.objective_names)}. "
    return text + f"Exported as `{architecture}` by lit_pretrain {__version__}."


def shape_of(subject: Subject) -> str:
    """An encoder's kind and shape."""
    config, encoder = subject.encoder.config, subject.encoder
    kind = f"{'causal ' if subject.causal else ''}text encoder" if subject.is_text else "picture encoder (ViT)"
    return (
        f"{kind} of {config.depth} blocks, width {config.width}, {config.resolved_heads} heads, "
        f"{config.norm_order}-norm, {encoder.positions} positions, pooling `{encoder.pooling}`"
    )


def inputs_of(subject: Subject) -> str:
    """How what goes in is prepared."""
    if subject.is_pair:
        return "\n\n".join(map(inputs_of, subject.parts.values()))
    encoder = subject.encoder
    if not subject.is_text:
        means, stds = (", ".join(map(figure, values)) for values in (encoder.channel_means, encoder.channel_stds))
        return (
            f"Pictures of {encoder.image_size} x {encoder.image_size} pixels, {encoder.channels} channels, as floats "
            f"in [0, 1], in patches of {encoder.patch_size}: the middle of pictures whose shorter side is resized to "
            f"{encoder.framed_size} pixels; means [{means}] and standard deviations [{stds}]."
        )
    longest = f"up to {encoder.max_positions} tokens" if encoder.positions == "learned" else "of any length"
    if subject.has_classifier or subject.tower is not None:
        longest += f" (trained on {subject.maximum_length} at most)"
    tokenizer = required(subject.tokenizer)
    begin, end = (tokenizer.id_to_token(token_id) for token_id in (tokenizer.cls_id, tokenizer.sep_id))
    pair = (
        f", or {begin} text {' '.join([end] * tokenizer.separators)} second text {end}" if subject.tower is None else ""
    )
    return (
        f"{begin} text {end}{pair}, {longest}, in {tokenizer.vocabulary_size:,} word pieces; the tokenizer (hash "
        f"{tokenizer.hash}) lies beside the weights."
    )


# -- where it comes from


def data(subject: Subject, provenance: Provenance) -> str:
    """Source and fingerprint."""
    rows = [
        (name, provenance.settings[f"data.{name}"]) for name in DATA_SETTINGS if f"data.{name}" in provenance.settings
    ]
    facts = {name: subject.record[name] for name in ("data_fingerprint",) if name in subject.record}
    facts |= {
        name.partition(".")[2]: value for name, value in provenance.facts.items() if name.startswith("data_facts.")
    }
    rows += [(name.replace("_", " "), value) for name, value in sorted(facts.items())]
    return table(("data", ""), [(name, f"`{value}`") for name, value in rows]) if rows else f"The data is {UNKNOWN}."


def training(subject: Subject, provenance: Provenance) -> str:
    """Objectives, steps, seeds, code."""
    rows: list[tuple[object, object]] = [("optimiser steps", f"{subject.step:,}")]
    objectives = subject.record.get("objectives", [])
    if isinstance(subject.module, ContrastivePretraining):
        objectives = [{"class_path": subject.objective_names[0], "init_args": subject.module.objective.settings()}]
    for objective in objectives:
        settings = ", ".join(f"{name} {value}" for name, value in objective["init_args"].items())
        rows.append((f"objective {objective['class_path']}", settings))
    rows += [(name, provenance.settings[key]) for key, name in SETTINGS.items() if key in provenance.settings]
    if provenance.run:
        rows.append(
            ("run", f"{provenance.run.run_name} ({provenance.run.run_id}), experiment {provenance.run.experiment}")
        )
    commit = provenance.tags.get("git.commit")
    if commit:
        changed = " with uncommitted changes" if provenance.tags.get("git.dirty") == "true" else ""
        rows.append(("commit", commit + changed))
    versions = [
        f"{name[9:]} {value}" for name, value in sorted(provenance.tags.items()) if name.startswith("versions.")
    ]
    rows += [("versions", ", ".join(versions))] if versions else []
    machine = [
        provenance.tags[name] for name in ("machine.processor", "devices", "machine.gpus") if name in provenance.tags
    ]
    rows += [("machine", ", ".join(machine))] if machine else []
    return table(("training", ""), rows)


def metrics(subject: Subject, provenance: Provenance) -> str:
    """The run's metrics, and by which protocol they were measured."""
    if not provenance.metrics:
        return (
            f"The metrics are {UNKNOWN}."
            if provenance.unknown
            else "The run has measured nothing on validation or test data."
        )
    rows = [
        (metric.name, figure(metric.here), figure(metric.best), figure(metric.last)) for metric in provenance.metrics
    ]
    protocol = "all weights and the classifier trained" if subject.has_classifier else "the pretext tasks' own losses"
    if isinstance(subject.module, ContrastivePretraining):
        protocol = "retrieval among all pairs of the stage"
    if provenance.settings.get("model.freeze.blocks") == "all":
        protocol = "a frozen encoder, the classifier trained on its features"
    return (
        table(("metric", f"here, at step {subject.step}", "best of the run", "last of the run"), rows)
        + f"\n\nProtocol: {protocol}; one run with one seed."
    )


def lineage(provenance: Provenance) -> str:
    """What the weights were initialised from, step by step."""
    if all({**ancestor, "tower": ""} == {"init_from": "scratch", "tower": ""} for ancestor in provenance.ancestors):
        return "Trained from fresh weights."
    lines = []
    for place, ancestor in enumerate(provenance.ancestors, 1):
        source, whose = (
            ancestor.get("init_from", UNKNOWN),
            f"the {ancestor['tower']} tower from " if ancestor.get("tower") else "",
        )
        if source == "scratch":
            shape = f" in the shape of {ancestor['architecture_from']}" if "architecture_from" in ancestor else ""
            lines.append(f"{place}. {whose}fresh weights{shape}")
            continue
        made = [
            f"{word} {ancestor[f'init_from_{name}']}"
            for name, word in ANCESTRY.items()
            if ancestor.get(f"init_from_{name}")
        ]
        if "new_pieces" in ancestor:
            made.append(f"its tokenizer {ancestor['tokenizer_from']} with {ancestor['new_pieces']} new word pieces")
        lines.append(f"{place}. {whose}`{shown_path(source)}`" + (f": {', '.join(made)}" if made else ""))
    return "Initialised from, the nearest first:\n\n" + "\n".join(lines)


ANCESTRY = {"module": "a", "tower": "the tower of", "objectives": "by", "step": "at step", "run": "of run"}


def check(differences: list[Difference]) -> str:
    """The check's figures."""
    rows = [
        (
            difference.output,
            f"{difference.difference:.1e}",
            f"{difference.tolerance:.0e}",
            figure(difference.largest),
            difference.inputs,
        )
        for difference in differences
    ]
    return table(("output", "largest difference", "tolerance", "largest value", "inputs"), rows)
