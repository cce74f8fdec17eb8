"""Every number that a config may set: what is out of its range is refused in one sentence, by whatever takes it."""

import inspect
import math
import types
import typing

import pytest
from jsonargparse import ArgumentParser

from lit_pretrain import backbone, callbacks, data, modules, objectives
from lit_pretrain.backbone import TextEncoder, TransformerConfig, VisionEncoder, VisionTransformerConfig
from lit_pretrain.class_paths import arguments_of
from lit_pretrain.data.images.augmentation import ImageAugmentation
from lit_pretrain.errors import UserError, check_length, is_share
from lit_pretrain.modules.averaging import AverageConfig
from lit_pretrain.modules.contrastive.replay import TextReplay, VisionReplay
from lit_pretrain.modules.contrastive.towers import TowerConfig
from lit_pretrain.modules.fine_tuning.picture_mixing import MixingConfig
from lit_pretrain.modules.freezing import FreezingConfig
from lit_pretrain.modules.objective_mix import check_objectives
from lit_pretrain.modules.optimization import AdamWConfig, ScheduleConfig, in_steps
from lit_pretrain.modules.short_sequences import ShortSequencesConfig
from lit_pretrain.objectives import MaskedLanguageModeling, Objective, Rotation
from lit_pretrain.studies.settings import LabelEfficiencySettings, ScalingSettings
from lit_pretrain.studies.sweep_settings import SweepSettings
from lit_pretrain.tracking.mlflow_logger import MLflowLogger

PUBLIC = [
    vars(package)[name] for package in (backbone, callbacks, data, modules, objectives) for name in package.__all__
]
PUBLIC += [
    AdamWConfig,
    ScheduleConfig,
    AverageConfig,
    ShortSequencesConfig,
    FreezingConfig,
    TowerConfig,
    MixingConfig,
    ImageAugmentation,
    MLflowLogger,
]
PUBLIC += [AverageConfig, ShortSequencesConfig, TextReplay, VisionReplay, LabelEfficiencySettings, ScalingSettings]
PUBLIC += [SweepSettings]
# What has no settings of its own: bases, what is handed from function to function, and a Transformer's own config.
NO_SETTINGS = {
    "Objective",
    "VisionObjective",
    "ObjectiveOutput",
    "EncoderPass",
    "DataFacts",
    "TextBatch",
    "PictureBatch",
    "Transformer",
}
SMALL = {"depth": 1, "width": 16, "heads": 2}


def text() -> TextEncoder:
    """A small encoder."""
    return TextEncoder(30, transformer=TransformerConfig(**SMALL), max_positions=16)


def vision() -> VisionEncoder:
    """A small encoder."""
    return VisionEncoder(8, 4, transformer=VisionTransformerConfig(**SMALL))


STUDY = {"name": "study", "metric": "validation/loss"}
# What must be given beside the setting that is tried.
GIVEN = {
    "TowerConfig": lambda: {"locked": True},
    "TextEncoder": lambda: {"transformer": TransformerConfig(**SMALL), "ngrams": 1},
    "VisionEncoder": lambda: {"transformer": VisionTransformerConfig(**SMALL)},
    "TextReplay": lambda: {"objectives": [MaskedLanguageModeling()]},
    "VisionReplay": lambda: {"objectives": [Rotation()]},
    "TextPretraining": lambda: {"encoder": text(), "objectives": [MaskedLanguageModeling()]},
    "VisionPretraining": lambda: {"encoder": vision(), "objectives": [Rotation()]},
    "ContrastivePretraining": lambda: {"text_encoder": text(), "vision_encoder": vision()},
    "FineTuning": lambda: {"encoder": text()},
    "FeatureDistillation": lambda: {"teacher": "a"},
    "PairDataModule": lambda: {"caption_columns": ["caption"]},
    "ZeroShot": lambda: {"data": None},
    "LabelEfficiencySettings": lambda: STUDY | {"fine_tuning": "a", "encoders": {"b": None}, "label_budgets": [1]},
    "ScalingSettings": lambda: STUDY | {"pretraining": "a", "widths": [8], "depths": [1], "budget": {"steps": 1}},
    "SweepSettings": lambda: STUDY | {"config": "a", "parameters": {"data.batch_size": [1]}, "trials": 1},
}
# Where 0 means something: none, or no limit, or all.
ZERO = """
AdamWConfig.weight_decay AdamWConfig.beta1 AdamWConfig.beta2
ScheduleConfig.warm_up ScheduleConfig.decay ScheduleConfig.final
FreezingConfig.blocks MixingConfig.mixup MixingConfig.cutmix MixingConfig.probability MixingConfig.switch_probability
ImageAugmentation.padding ImageAugmentation.flip ImageAugmentation.brightness ImageAugmentation.contrast
ImageAugmentation.saturation ImageAugmentation.grey LeJEPA.patch_dropout
TransformerConfig.depth TransformerConfig.dropout TransformerConfig.attention_dropout TransformerConfig.stochastic_depth
TransformerConfig.layer_scale VisionTransformerConfig.dropout VisionTransformerConfig.attention_dropout
VisionTransformerConfig.stochastic_depth VisionTransformerConfig.layer_scale
TextEncoder.segments VisionEncoder.registers
FineTuning.dropout FineTuning.stochastic_depth FineTuning.head_dropout FineTuning.token_dropout
FineTuning.label_smoothing FineTuning.attention_dropout DocumentDataModule.new_pieces
BagOfNgrams.token_dropout BagOfWords.token_dropout ContrastiveSpans.token_dropout FeatureDistillation.token_dropout
Colorization.rebalancing
MaskedLanguageModeling.mask_share MaskedLanguageModeling.random_share
PatchLocation.gap PatchLocation.jitter PatchLocation.drop_share Jigsaw.gap Jigsaw.jitter Jigsaw.grey_share
DocumentDataModule.short_share DocumentDataModule.validation_share DocumentDataModule.workers
ImageDataModule.cache_gigabytes ImageDataModule.workers ImageDataModule.validation_share
LabelledDataModule.cache_gigabytes LabelledDataModule.workers LabelledDataModule.validation_share
PairDataModule.cache_gigabytes PairDataModule.workers PairDataModule.validation_share
ProgressBar.refresh_rate ProgressBar.line_seconds TestReport.mistakes Throughput.warm_up_batches
BestCheckpoint.save_top_k LabelEfficiencySettings.target
""".split()
# What no number is out of range of: seeds, Lightning's "all of them", a target of any metric.
ANY = ("seed", "save_top_k", "target")
# Shares and rates, of which more than all is nothing.
MORE_THAN_ALL = """
AdamWConfig.beta1 AdamWConfig.beta2 ScheduleConfig.final MixingConfig.probability MixingConfig.switch_probability
ImageAugmentation.smallest_area ImageAugmentation.flip ImageAugmentation.grey LeJEPA.patch_dropout
LeJEPA.gaussianity_share TransformerConfig.dropout TransformerConfig.attention_dropout
TransformerConfig.stochastic_depth FineTuning.head_dropout FineTuning.token_dropout FineTuning.label_smoothing
FineTuning.dropout FineTuning.stochastic_depth BagOfNgrams.token_dropout BagOfWords.token_dropout
ContrastiveSpans.token_dropout FeatureDistillation.token_dropout Colorization.rebalancing Colorization.cell_share
MaskedLanguageModeling.probability
MaskedLanguageModeling.mask_share MaskedLanguageModeling.random_share MaskedImageModeling.mask_ratio PatchLocation.gap
PatchLocation.jitter PatchLocation.drop_share Jigsaw.gap Jigsaw.jitter Jigsaw.grey_share
ReplacedTokenDetection.generator_width_share
DocumentDataModule.short_share DocumentDataModule.validation_share ImageDataModule.validation_share
LabelledDataModule.validation_share PairDataModule.validation_share Contrastive.temperature ContrastiveSpans.temperature
""".split()


def numbers_of(annotation) -> set[type]:
    """The kinds of number that a setting takes."""
    if annotation in (int, float):
        return {annotation}
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*map(numbers_of, typing.get_args(annotation)))
    return set()


def settings() -> list[tuple[type, str, set[type]]]:
    """Every setting that is a number, of every public class."""
    found = []
    for kind in PUBLIC:
        if not isinstance(kind, type) or kind.__name__ in NO_SETTINGS:
            continue
        for name, argument in arguments_of(kind).items():
            if kinds := numbers_of(argument.annotation):
                found.append((kind, name, kinds))
    return found


SETTINGS = settings()


def make(kind: type, name: str, value: float):
    """An object with one setting; an objective as a training takes it."""
    made = kind(**GIVEN.get(kind.__name__, dict)() | {name: value})
    if isinstance(made, Objective):
        check_objectives([made])
    return made


def out_of_range(name: str, kinds: set[type]) -> list[float]:
    """Values that a setting must refuse."""
    values = [] if name.endswith(ANY) else [-1]
    values += [] if name in ZERO or name.endswith(ANY) else [0]
    values += [math.nan, math.inf] if float in kinds else []
    return values + ([1.5] if name in MORE_THAN_ALL else [])


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in SETTINGS}, key=lambda one: one.__name__))
def test_numbers_out_of_their_range_are_refused_in_a_sentence(kind):
    for _, name, kinds in (one for one in SETTINGS if one[0] is kind):
        for value in out_of_range(f"{kind.__name__}.{name}", kinds):
            with pytest.raises(UserError) as caught:
                make(kind, name, value)
                pytest.fail(f"{kind.__name__}.{name} took {value}")
            assert name in str(caught.value) and str(caught.value).count(". ") == 0, caught.value
        if f"{kind.__name__}.{name}" in ZERO:
            make(kind, name, 0)


def test_the_lists_name_what_there_is():
    there = {f"{kind.__name__}.{name}" for kind, name, _ in SETTINGS}
    assert set(ZERO) | set(MORE_THAN_ALL) <= there and len(there) > 130


@pytest.mark.parametrize("kind", [*map(vars(data).get, data.__all__), *map(vars(modules).get, modules.__all__)])
def test_settings_that_classes_share_stand_beside_their_own(kind):
    """In a config each with its type and its documentation; in Python another name is a TypeError."""
    parser = ArgumentParser()
    names = parser.add_class_arguments(kind)
    assert sorted(names) == sorted(arguments_of(kind)) == sorted(inspect.signature(kind).parameters)
    documented = {action.dest for action in parser._actions if action.help.strip()}
    assert documented >= set(names)
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such_setting'"):
        kind(**GIVEN.get(kind.__name__, dict)(), no_such_setting=1)


def test_one_and_all_are_told_apart_everywhere():
    assert [in_steps(length, 20) for length in (0, 1, 7, 7.0, 0.1, 1.0)] == [0, 1, 7, 7, 2, 20]
    assert is_share(1.0) and not is_share(1) and not is_share(2.0)
    for value in (1.5, -0.1, math.nan):
        with pytest.raises(UserError, match=r"give a whole number from 0, or a share from 0.0 to 1.0, which is all"):
            check_length("schedule.warm_up", value)
