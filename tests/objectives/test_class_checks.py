"""Mistakes in an objective's class: each is one sentence that names class and file, before any training."""

import inspect
import re

import pytest
import torch
from torch import nn

from lit_pretrain.errors import UserError
from lit_pretrain.modules.objective_mix import check_objectives, count_terms
from lit_pretrain.objectives import MaskedLanguageModeling, NextSentencePrediction, Objective, Rotation
from lit_pretrain.objectives.objective import (
    EncoderPass,
    ObjectiveOutput,
    clean_inputs,
    compute_objectives,
    global_mean,
    passes_run,
)


class Reversed(Objective):
    """Reads every text backwards, in a pass of its own rows."""

    name = "reversed"

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def make_pass(self, batch, encoder, generator):
        return EncoderPass(clean_inputs(batch) | {"input_ids": batch["input_ids"].flip(1)})

    def compute(self, features, targets, batch, encoder):
        total, count = features.square().sum(), torch.tensor(features.numel())
        return ObjectiveOutput(global_mean(total, count, self.training), {"loss": (total.detach(), count)})


def constructor(body):
    """A constructor with an argument."""
    return {"__init__": lambda self, share=0.5: (Objective.__init__(self), body(self, share))[0]}


MISTAKES = {
    "no name": ({"name": ""}, "Mine .*test_class_checks.py.* has no name: set name"),
    "an odd name": ({"name": "order/mine"}, "has the name 'order/mine': set name"),
    "no constructor of the base": ({"__init__": lambda self: None}, "does not begin with super"),
    "a lost argument": (constructor(lambda self, share: None), "of the name of its argument share, so that"),
    "an argument no checkpoint keeps": (
        constructor(lambda self, share: setattr(self, "share", torch.float32)),
        "arguments that no checkpoint can keep",
    ),
    "no compute": ({"compute": Objective.compute}, r"has no method compute\(features, targets, batch, encoder\)"),
    "no pass": ({"make_pass": Objective.make_pass}, r"no method make_pass\(.*or set passes = 0"),
    "no terms": ({"uneven": True}, r"is uneven and has no method terms\(targets, batch\)"),
    "other arguments": (
        {"make_pass": lambda self, batch, generator: None},
        r"make_pass of Mine .* takes \(batch, generator\), and is called with \(batch, encoder, generator\)",
    ),
    "a former method": ({"panel": lambda self: None}, r"has a method panel, which is examples\(encoder, batch, voc"),
    "a former check": ({"check_pictures": lambda self: None}, r"which is check_data\(encoder, facts\) now"),
    "a weight of nothing": ({"weight": 0.0}, "Mine.weight is 0"),
}


@pytest.mark.parametrize(("change", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_class_is_one_sentence(change, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        check_objectives([type("Mine", (Reversed,), {"__module__": __name__} | change)()])
    check_objectives([type("Mine", (Reversed,), {"__module__": __name__})()])


def test_what_is_no_objective_and_a_name_that_another_has() -> None:
    with pytest.raises(UserError, match=r"annotate that argument with Sequence\[Objective\]"):
        check_objectives([{"class_path": "MaskedLanguageModeling"}])
    with pytest.raises(UserError, match="Linear .*linear.py.* is no objective: derive it from"):
        check_objectives([nn.Linear(1, 1)])
    with pytest.raises(UserError, match="^Rotation and Mine .*both have the name 'rotation'"):
        check_objectives([Rotation(), type("Mine", (Reversed,), {"__module__": __name__, "name": "rotation"})()])


RETURNED = {
    "no pass": ("make_pass", None, "make_pass of Mine .*test_class_checks.py.* returns None: return an EncoderPass"),
    "a dict": ("make_pass", {"input_ids": 1}, "make_pass of Mine .* returns dict: return EncoderPass"),
    "targets alone": ("make_pass", EncoderPass({}, torch.ones(2)), "targets of a tensor of shape"),
    "no batch": ("arrange", None, "arrange of Mine .* returns None: return the whole batch"),
    "a loss": ("compute", torch.ones(()), r"compute of Mine .* returns a tensor of shape \(\): return ObjectiveOutput"),
    "no scalar": ("compute", ObjectiveOutput(torch.ones(2), {}), r"shape \(2,\) as the loss: return a scalar"),
    "a mean": (
        "compute",
        ObjectiveOutput(torch.ones(()), {"accuracy": torch.ones(())}),
        r"gives a tensor of shape \(\) as the statistic 'accuracy': give a pair",
    ),
    "numbers": (
        "compute",
        ObjectiveOutput(torch.ones(()), {"loss": (torch.ones(()), 3)}),
        r"gives a tuple of 2 \(a tensor of shape \(\), the int 3\) as the statistic 'loss'",
    ),
    "a graph": (
        "compute",
        ObjectiveOutput(torch.ones(()), {"loss": (torch.ones((), requires_grad=True), torch.ones(()))}),
        "statistic 'loss' that requires a gradient, .* as .detach",
    ),
    "no gradient": (
        "compute",
        ObjectiveOutput(torch.ones(()), {}),
        "compute of Mine .* returns a loss without a gradient, from which nothing is learned: leave out .detach",
    ),
    "an input that is none": (
        "make_pass",
        EncoderPass({"input_ids": torch.ones(2, 3, dtype=torch.long), "hidden": torch.ones(2, 3)}),
        r"inputs that TextEncoder.forward_features does not take \(got an unexpected keyword argument 'hidden'\): it "
        "takes input_ids, .* goes into the targets",
    ),
    "another device": (
        "compute",
        ObjectiveOutput(torch.ones(()), {"loss": (torch.ones(()), torch.ones((), device="meta"))}),
        "statistic 'loss' that is not on the features' device: make its count with device=features.device, here cpu",
    ),
}


@pytest.mark.parametrize(("method", "returned", "sentence"), RETURNED.values(), ids=RETURNED)
def test_what_a_method_returns_is_told_at_the_first_batch(method, returned, sentence, encoder, batch) -> None:
    mine = type("Mine", (Reversed,), {"__module__": __name__, method: lambda self, *arguments: returned})()
    with pytest.raises(UserError, match=sentence):
        mine(encoder, batch, None)


def test_an_error_within_the_encoder_says_whose_pass_it_was(encoder, batch) -> None:
    made = EncoderPass({"input_ids": torch.ones(2, 3)})
    mine = type("Mine", (Reversed,), {"__module__": __name__, "make_pass": lambda self, *arguments: made})()
    with pytest.raises(RuntimeError) as raised:
        mine(encoder, batch, None)
    (note,) = raised.value.__notes__
    assert re.fullmatch(r"In the pass that Mine \(.*\) has made, of input_ids \(2, 3\) float32.", note)


def writes(batch):
    batch["input_ids"][:, 1] = 7


def replaces(batch):
    batch["input_ids"] = batch["input_ids"].clone()


def adds(batch):
    batch["answers"] = batch["input_ids"]


@pytest.mark.parametrize("method", ["arrange", "make_pass", "compute"])
@pytest.mark.parametrize("change", [writes, replaces, adds])
def test_the_batch_stays_as_it_is(method, change, encoder, batch) -> None:
    place = list(inspect.signature(getattr(Objective, method)).parameters).index("batch") - 1

    def changing(self, *arguments):
        made = getattr(Reversed, method)(self, *arguments)
        change(arguments[place])
        return made

    mine = type("Mine", (Reversed,), {"__module__": __name__, method: changing})()
    field = "answers" if change is adds else "input_ids"
    with pytest.raises(UserError, match=f"^{method} of Mine .* changes the batch's own {field}, which others read too"):
        mine(encoder, batch, None)


TERMS = {
    "a tensor": (torch.ones(()), r"terms of Mine .* returns a tensor of shape \(\): return a dict of scalar tensors"),
    "a number": ({"loss": 3}, "terms of Mine .* gives the int 3 as the number 'loss'"),
    "a vector": ({"loss": torch.ones(2)}, r"gives a tensor of shape \(2,\) as the number 'loss'"),
    "another mean": (
        {"swaps": torch.ones(())},
        "counts 'swaps', and the loss is a mean by the name of 'loss'",
    ),
}


@pytest.mark.parametrize(("terms", "sentence"), TERMS.values(), ids=TERMS)
def test_terms_are_looked_at_before_batches_are_accumulated(terms, sentence, encoder, batch) -> None:
    members = {"__module__": __name__, "uneven": True, "terms": lambda self, targets, batch: terms}
    mine = type("Mine", (Reversed,), members)().eval()
    with torch.no_grad(), pytest.raises(UserError, match=sentence):
        mine(encoder, batch, None)
    if "mean" not in sentence:
        with pytest.raises(UserError, match=sentence):
            count_terms([mine], encoder, batch, None)


def test_a_pass_of_other_rows_is_read_by_nobody_else(encoder, vocabulary, batch) -> None:
    """Next sentence prediction reads the masked pass, wherever it stands in the mix, else one of the clean batch."""
    seen, forward = [], encoder.forward_features
    encoder.forward_features = lambda **inputs: seen.append(forward(**inputs)) or seen[-1]
    masked, mine, reader = MaskedLanguageModeling(), Reversed(), NextSentencePrediction()
    for objective in (masked, reader):
        objective.build(encoder, vocabulary)
    read = []
    reader.logits = lambda features, encoder: (
        read.append(features) or NextSentencePrediction.logits(reader, features, encoder)
    )
    for mix, makes, passes in (
        ([mine, reader], [mine, reader], 2),
        ([mine, masked, reader], [mine, masked], 2),
        ([reader, mine, masked], [mine, masked], 2),
    ):
        seen.clear(), read.clear()
        outputs = compute_objectives(encoder, mix, batch, torch.Generator().manual_seed(0))
        assert list(outputs) == [one.name for one in mix]
        assert len(seen) == passes and passes_run(mix) == makes and read[0] is seen[-1]
    # Alone, the clean batch gives the same loss as beside the pass of other rows.
    clean = reader(encoder, batch, None).loss
    assert compute_objectives(encoder, [mine, reader], batch, None)[reader.name].loss == clean


def test_a_pass_that_nobody_has_spoken_of_is_read_by_nobody() -> None:
    """A class that makes another pass than its base inherits what the base said of its own."""
    backwards = {"__module__": __name__, "name": "mine", "make_pass": Reversed.make_pass}
    kind = type("Mine", (MaskedLanguageModeling,), backwards)
    check_objectives([kind()])
    with pytest.raises(UserError, match="Mine .* makes a pass of its own, which NextSentencePrediction would read"):
        check_objectives([NextSentencePrediction(), kind()])
    kind.shares_pass = False
    check_objectives([NextSentencePrediction(), kind()])
