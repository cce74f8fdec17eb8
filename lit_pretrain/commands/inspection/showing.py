"""What a step's batch looked like: texts with what was hidden, and pictures as the encoders saw them, as a PNG."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_pretrain.commands.inspection.samples import SampleFigures
from lit_pretrain.commands.inspection.step import SeenBatch, Shown, ids_of, pairs_of
from lit_pretrain.objectives.objective import EncoderPass, clean_inputs
from lit_pretrain.objectives.picture_panels import Caption, grid

if TYPE_CHECKING:
    from PIL.Image import Image

# Pictures of a row, and labels that are told below a picture.
MOST_VIEWS = 10
LABELS = ("labels", "order_label", "next_sentence_label")
HIDDEN_SHADE = 0.5


def text_rows(shown: Shown, sample: int, samples: int, tokenizer: Any) -> list[tuple[str, str]]:
    """Each sequence that was encoded of a sample, with what it is of: "objective", "[was -> is] ...".

    Args:
        shown: What the objectives made of the batch.
        sample: Its place.
        samples: Of the batch.
        tokenizer: Of the texts.
    """
    rows, told = [], set()
    for objective in shown.objectives:
        made, name = shown.passes[objective.name], objective.pass_name or objective.name
        if name in told or made is None and len(shown.objectives) > 1:
            continue
        told.add(name)
        made = made or EncoderPass(clean_inputs(shown.batch))
        ids = made.inputs["input_ids"]
        where = objective.rows_of_sample(sample, samples, len(ids))
        mask = made.inputs.get("attention_mask")
        for place in range(len(ids))[where]:
            clean = shown.batch["input_ids"][sample] if len(ids) == samples else None
            real = torch.ones_like(ids[place]) if mask is None or mask.shape != ids.shape else mask[place]
            hidden = hidden_places(made.targets, place)
            rows.append((objective.name, marked(ids[place], clean, real, hidden, tokenizer)))
    labels = [
        (name, str(int(value[sample])))
        for name, value in shown.batch.items()
        if name in LABELS and isinstance(value, Tensor)
    ]
    return [*rows, *labels]


def hidden_places(targets: dict[str, Tensor], row: int) -> set[int]:
    """Places of a sequence that are predicted, those too that are shown as they are."""
    if "indices" not in targets or targets["indices"].ndim != 2 or row >= len(targets["indices"]):
        return set()
    valid = targets.get("valid")
    chosen = targets["indices"][row]
    return set((chosen if valid is None else chosen[valid[row].bool()]).tolist())


def marked(ids: Tensor, clean: Tensor | None, mask: Tensor, hidden: set[int], tokenizer: Any) -> str:
    """A sequence in words, with [what it was -> what was shown] where these differ or the piece is predicted."""
    shown = ids[mask.bool()].tolist()
    true = shown if clean is None else clean[: len(mask)][mask.bool()].tolist()
    places = mask.bool().nonzero().flatten().tolist()
    words: list[str] = []
    plain: list[int] = []

    def flush() -> None:
        if plain:
            words.append(tokenizer.decode(plain, keep_special=True))
            plain.clear()

    for place, now, before in zip(places, shown, true, strict=True):
        if now == before and place not in hidden:
            plain.append(now)
            continue
        flush()
        after = "itself" if now == before else tokenizer.id_to_token(now)
        words.append(f"[{tokenizer.id_to_token(before)} -> {after}]")
    flush()
    return " ".join(words)


def picture_rows(
    module: Any, seen: SeenBatch, figures: list[SampleFigures], order: list[int]
) -> tuple[list[list[Tensor]], list[list[Caption]]]:
    """Pictures of some samples with their captions, a row each: what the loader gave, then what was encoded."""
    rows: list[list[Tensor]] = []
    captions: list[list[Caption]] = []
    part, ids = pairs_of(seen.trained), ids_of(seen.trained)
    loaded = part.get("images")
    for sample in order:
        row, texts = [], []
        if loaded is not None:
            row.append(loaded[sample].float() / 255.0 if not loaded.is_floating_point() else loaded[sample])
            texts.append(Caption(f"sample {ids[sample]}"))
        if seen.views is not None:
            row.append(seen.views[sample])
            texts.append(Caption("as seen"))
        for shown in seen.shown:
            for objective in shown.objectives:
                made = shown.passes[objective.name]
                if made is None or "images" not in made.inputs:
                    continue
                images, samples = made.inputs["images"], len(shown.batch["images"])
                where = objective.rows_of_sample(sample, samples, len(images))
                for place in range(len(images))[where][:MOST_VIEWS]:
                    row.append(visible(images[place], made, place, shown.encoder))
                    texts.append(Caption(f"{objective.name}{label_of(made, place)}"))
        rows.append(row)
        captions.append(texts)
    return rows, captions


def visible(image: Tensor, made: EncoderPass, place: int, encoder: Any) -> Tensor:
    """What an encoder saw of a picture, in [0, 1]; patches that are left out are grey."""
    mean, std = (value.reshape(-1, 1, 1) for value in (encoder.mean, encoder.std))
    picture = (image.float() * std + mean).clamp(0.0, 1.0)
    keep = made.inputs.get("keep")
    if keep is None:
        return picture
    size = encoder.patch_size
    rows, columns = picture.shape[-2] // size, picture.shape[-1] // size
    seen = torch.zeros(rows * columns, device=picture.device)
    seen[keep[place]] = 1.0
    seen = seen.view(rows, columns).repeat_interleave(size, 0).repeat_interleave(size, 1)
    return torch.where(seen.bool(), picture, torch.full_like(picture, HIDDEN_SHADE))


def label_of(made: EncoderPass, place: int) -> str:
    """What is asked of a picture, where that is one number."""
    labels = made.targets.get("labels")
    if labels is None or labels.ndim != 1 or len(labels) != len(made.inputs["images"]):
        return ""
    return f"\n{int(labels[place])}"


def picture_of(module: Any, seen: SeenBatch, figures: list[SampleFigures], order: list[int]) -> "Image | None":
    """The panel of some samples; null where there are no pictures."""
    rows, captions = picture_rows(module, seen, figures, order)
    if not any(rows):
        return None
    found = figures[0] if figures else None
    for place, (sample, row) in enumerate(zip(order, captions, strict=True)):
        if found is not None and found.gradients and row:
            row[0] = Caption(f"{row[0].text}\ngradient {found.gradients[sample]:.3g}", None)
        captions[place] = row
    return grid([[one.detach().cpu() for one in row] for row in rows], [list(row) for row in captions])
