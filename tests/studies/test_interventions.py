"""Every kind of change in one pass against the plain way: a copy of the model, parameters overwritten by hand.

The plain way shares no code with the package: which parameters are attention and which MLP is written down here by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from architectures import DECODERS, build_pair, plain_loss
from test_substitution import assert_windows_matter
from transformers import PreTrainedModel

from raysweep.data.examples import Example, load_examples
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.models.parts import parts_of
from raysweep.studies.interventions import Change, Intervention, change_from_json, check_changes, to_json
from raysweep.studies.schedule import layer_applications
from raysweep.studies.substitution import Pair, Work, loss_table, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

TOLERANCE = 1e-5
Pairs = Callable[..., tuple[PreTrainedModel, PreTrainedModel]]
Draw = Callable[..., list[Example]]
# By the first part of a parameter's name inside its layer.
ATTENTION = {
    "gpt2": ("ln_1", "attn"),
    "falcon": ("input_layernorm", "self_attention"),
    "gpt_neox": ("input_layernorm", "attention"),
    "opt": ("self_attn_layer_norm", "self_attn"),
    "gemma2": ("input_layernorm", "self_attn", "post_attention_layernorm"),
    "gemma3": ("input_layernorm", "self_attn", "post_attention_layernorm"),
    "olmo2": ("self_attn", "post_attention_layernorm"),
    "qwen3_next": ("input_layernorm", "linear_attn", "self_attn"),
    "bamba": ("input_layernorm", "mamba", "self_attn"),
    "jamba": ("input_layernorm", "mamba", "self_attn"),
}


def plainly(base: PreTrainedModel, tuned: PreTrainedModel, change: Change, path: str, kind: str) -> PreTrainedModel:
    """The changed model, by the definition of each kind."""
    chosen = range(change.start, change.stop) if isinstance(change, Window) else change.chosen
    reverse = change.kind == "reverse"
    model, source = copy.deepcopy(base if reverse else tuned), tuned if reverse else base
    theirs, c = dict(source.named_parameters()), change.coefficient
    attention = ATTENTION.get(kind, ("input_layernorm", "self_attn"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(tuple(f"{path}.{layer}." for layer in chosen)):
                continue
            in_attention = name.removeprefix(f"{path}.").split(".")[1] in attention
            if (change.kind == "attention" and not in_attention) or (change.kind == "mlp" and in_attention):
                continue
            parameter.copy_((1 - c) * parameter + c * theirs[name])
    return model


def plain(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    changes: Sequence[Change],
    examples: list[Example],
    path: str,
    kind: str,
) -> np.ndarray:
    models = (plainly(base, tuned, change, path, kind) for change in changes)
    return np.array([[plain_loss(model, example) for example in examples] for model in models])


def every_kind(n_layers: int) -> list[Change]:
    sets = {"ends": [0, n_layers - 1], "three": [0, 1, n_layers - 1]}
    return check_changes(n_layers, [2], sets=sets, modules=["attention", "mlp"], coefficients=[0.25, 0.7], reverse=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "falcon"])
def test_every_kind_gives_the_plain_losses(
    kind: str, tiny_pair: Pairs, random_examples: Draw, block_path: dict[str, str]
) -> None:
    base, tuned = tiny_pair(kind, 4)
    pair, examples, changes = Pair(Adapter(base), Adapter(tuned)), random_examples(5), every_kind(4)
    before = [[copy.deepcopy(model.state_dict()), [id(m) for m in model.modules()]] for model in (base, tuned)]
    expected = plain(base, tuned, changes, examples, block_path[kind], kind)
    assert_windows_matter(expected, by=10 * TOLERANCE)
    for budget in (16, 4096):
        work = Work()
        found = sweep_losses(pair, examples, changes, batch_tokens=budget, work=work)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        assert work.applications % layer_applications(4, changes) == 0
    for model, (weights, modules) in zip((base, tuned), before, strict=True):
        assert [id(m) for m in model.modules()] == modules
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, weights[name])


def test_every_kind_gives_the_plain_losses_on_the_laboratorys_pair() -> None:
    base, tuned = (load_model(describe(source)) for source in ("lab://tiny", "lab://tiny/sums"))
    tokenizer = load_tokenizer(describe("lab://tiny"))
    examples = load_examples("lab://sums/test", "gsm8k", tokenizer, limit=2).examples
    changes: list[Change] = [
        Window(8, 13),
        Intervention("set", (3, 9, 20)),
        Intervention("window", (8, 9, 10), 0.5),
        Intervention("attention", (8, 9, 10, 11)),
        Intervention("mlp", (8, 9, 10, 11)),
        Intervention("reverse", ()),
        Intervention("reverse", (8, 9, 10, 11, 12)),
    ]
    expected = plain(base, tuned, changes, examples, "model.layers", "llama")
    found = sweep_losses(Pair(Adapter(base), Adapter(tuned)), examples, changes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


# Every kind whose layers have an attention and an MLP, each with its own naming.
TOLD = (
    *(
        "bamba",
        "bloom",
        "cohere2",
        "deepseek_v3",
        "gemma2",
        "gemma3",
        "gpt_neox",
        "gpt_oss",
        "gptj",
        "jamba",
        "mixtral",
    ),
    *("mpt", "olmo2", "opt", "phi", "qwen3_moe", "qwen3_next"),
)


@pytest.mark.parametrize("kind", ["gemma2", "olmo2", "opt", "mixtral", "qwen3_next"])
def test_other_architectures(kind: str, random_examples: Draw) -> None:
    base, tuned = build_pair(DECODERS[kind])
    pair, examples = Pair(Adapter(base), Adapter(tuned)), random_examples(3)
    changes = every_kind(pair.n_layers)
    expected = plain(base, tuned, changes, examples, DECODERS[kind].block_path, kind)
    found = sweep_losses(pair, examples, changes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", TOLD)
def test_attention_and_mlp_share_out_every_parameter_of_a_layer(kind: str) -> None:
    base, _ = build_pair(DECODERS[kind])
    for block in Adapter(base).blocks:
        parts = parts_of(block)
        assert not set(parts["attention"]) & set(parts["mlp"])
        assert {name.partition(".")[0] for name, _ in block.named_parameters()} == {
            n for ns in parts.values() for n in ns
        }


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "mamba",
            r"^MambaBlock has the part 'norm', and raysweep does not know whether it belongs to the attention or the",
        ),
        ("gemma3n", r"^Gemma3nTextDecoderLayer has the part 'altup', and raysweep does not know"),
    ],
)
def test_layers_that_have_no_such_parts_are_refused_by_name(kind: str, message: str) -> None:
    base, _ = build_pair(DECODERS[kind])
    with pytest.raises(InputError, match=message):
        parts_of(Adapter(base).blocks[0])


def test_identical_layers_cost_nothing_and_change_no_loss(
    tiny_pair: Pairs, random_examples: Draw, block_path: dict[str, str]
) -> None:
    base, tuned = tiny_pair("llama", 5)
    for layer in (0, 1, 3):
        tuned.model.layers[layer].load_state_dict(base.model.layers[layer].state_dict())
    pair, examples, windows = Pair(Adapter(base), Adapter(tuned)), random_examples(4), windows_of_widths(5, [1, 2])
    assert pair.same.layers == {0, 1, 3}
    assert not pair.same.rest
    work = Work()
    found = sweep_losses(pair, examples, windows, work=work)
    expected = plain(base, tuned, windows, examples, "model.layers", "llama")
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    untouched = [windows.index(Window(*w)) for w in [(0, 0), (0, 1), (1, 2), (3, 4), (0, 2)]]
    assert (found[untouched] == found[untouched[0]]).all()
    assert work.heads == 4, "the untouched model, layer 2, layer 4, both"
    assert work.applications == layer_applications(5, windows, pair.same) == 1 + 1 + 2 + 2 + 4
    one = Pair(Adapter(base), Adapter(base))
    assert one.same.rest
    work = Work()
    sweep_losses(one, examples, every_kind(5), work=work)
    assert (work.applications, work.heads) == (5, 1)


def test_the_table_tells_every_kind(tiny_pair: Pairs, random_examples: Draw) -> None:
    examples, changes = random_examples(1), every_kind(4)
    rows = loss_table(np.zeros((len(changes), 1)), changes, examples)
    told = {(r.kind, r.layers, r.coefficient): r for r in rows.itertuples()}
    one = told["set", "0,1,3", 0.25]
    assert (str(one.start), str(one.stop), one.width, np.isnan(one.centre)) == ("<NA>", "<NA>", 3, True)
    one = told["attention", "1-2", 1.0]
    assert (one.start, one.stop, one.width, one.centre) == (1, 3, 2, 1.5)
    one = told["reverse", "", 1.0]
    assert (one.start, one.stop, one.width, np.isnan(one.centre)) == (0, 0, 0, True)
    assert str(rows["start"].dtype) == "Int64"


def test_a_set_beyond_the_models_depth_is_refused() -> None:
    message = r"^set 'odd' has layer 4, which is not among the 4 decoder layers of model 'm'; give layers from 0 to 3$"
    with pytest.raises(InputError, match=message):
        check_changes(4, [1], sets={"odd": [1, 4]}, where=" of model 'm'")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"modules": ["norm"]},
            r"^modules has 'norm', which is neither 'attention' nor 'mlp'; give one of them, or both$",
        ),
        (
            {"coefficients": [0.5, 1.5]},
            r"^coefficient 1.5 is not between 0 \(tuned\) and 1 \(base\); give steps from 0 to 1$",
        ),
        ({"coefficients": [float("nan")]}, r"^coefficient nan is not between 0"),
        ({"sets": {"none": []}}, r"^set 'none' has no layer; give layers from 0 to 3$"),
        ({"widths": "every"}, r"^widths is 'every'; give a list of widths, or all$"),
    ],
)
def test_what_is_no_change_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_changes(4, **{"widths": [1], **asked})


def test_the_name_of_a_set_is_told_and_decides_nothing() -> None:
    (*_, early, half) = check_changes(4, [1], sets={"early": [0, 2]}, coefficients=[0.5])
    assert isinstance(early, Intervention)
    assert early == Intervention("set", (0, 2))
    assert (early.text, early.words) == ("set early 0,2", "set 0,2")
    assert (half.text, half.words) == ("set early 0,2 at 0.5", "set 0,2 at 0.5")
    assert Intervention("set", (0, 2)).text == "set 0,2"
    assert Intervention("window", (0, 1), 0.5).text == "0-1 at 0.5"
    back = change_from_json(to_json(early))
    assert isinstance(back, Intervention)
    assert back.name == "early"
    assert "name" not in to_json(Intervention("set", (0, 2)))
