"""The one-pass sweep against the plain way: copy the model, overwrite the window's parameters, run one example at a time.

The plain way shares no code with the package: the model's own forward, no padding, no batching, float64 arithmetic.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import plain_loss, plain_losses
from transformers import PreTrainedModel

from raysweep.data.examples import Example, load_examples
from raysweep.errors import InputError
from raysweep.lab.tasks import FORMAT
from raysweep.lab.train import TUNED
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.notebook import sweep_windows
from raysweep.studies.interventions import Intervention
from raysweep.studies.schedule import layer_applications
from raysweep.studies.substitution import Pair, Work, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

KINDS = ("llama", "gpt2", "qwen3", "falcon")
TOLERANCE = 1e-5
Pairs = Callable[..., tuple[PreTrainedModel, PreTrainedModel]]
Draw = Callable[..., list[Example]]


def assert_windows_matter(losses: np.ndarray, by: float = 100 * TOLERANCE) -> None:
    """Else agreement would prove nothing: every two windows differ by more than the tolerance on some example."""
    apart = np.abs(losses[:, None] - losses[None]).max(-1)
    assert apart[~np.eye(len(losses), dtype=bool)].min() > by


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_one_pass_gives_the_plain_losses(
    kind: str, seed: int, tiny_pair: Pairs, random_examples: Draw, block_path: dict[str, str]
) -> None:
    base, tuned = tiny_pair(kind, 4, seed=seed)
    examples, windows = random_examples(7, seed), windows_of_widths(4, [1, 2, 3])
    expected = plain_losses(base, tuned, examples, windows, block_path[kind])
    assert_windows_matter(expected)
    found = sweep_losses(Pair(Adapter(base), Adapter(tuned)), examples, windows)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("set_name", TUNED)
def test_one_pass_gives_the_plain_losses_on_the_laboratorys_trained_pairs(set_name: str) -> None:
    base, tuned = (load_model(describe(source)) for source in ("lab://tiny", f"lab://tiny/{set_name}"))
    tokenizer = load_tokenizer(describe("lab://tiny"))
    examples = load_examples(f"lab://{set_name}/test", FORMAT[set_name], tokenizer, limit=3).examples
    layers = base.config.num_hidden_layers
    windows = [Window(*w) for w in [(0, 0), (0, 5), (9, 12), (9, 14), (layers - 5, layers), (0, layers)]]
    expected = plain_losses(base, tuned, examples, windows, "model.layers")
    assert_windows_matter(expected, by=3 * TOLERANCE)
    found = sweep_losses(Pair(Adapter(base), Adapter(tuned)), examples, windows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_budget_does_not_change_the_losses(kind: str, tiny_pair: Pairs, random_examples: Draw) -> None:
    pair = Pair(*map(Adapter, tiny_pair(kind, 4)))
    examples, windows = random_examples(9, longest=40), windows_of_widths(4, [1, 2])
    losses = [sweep_losses(pair, examples, windows, batch_tokens=budget) for budget in (1, 64, 256, 65_536)]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=0, atol=TOLERANCE)


def test_windows_and_examples_may_come_in_any_order(tiny_pair: Pairs, random_examples: Draw) -> None:
    pair = Pair(*map(Adapter, tiny_pair("llama", 4)))
    examples, windows = random_examples(6), windows_of_widths(4, [1, 3])
    losses = sweep_losses(pair, examples, windows, batch_tokens=64)
    turned = sweep_losses(pair, examples[::-1], windows[::-1], batch_tokens=64)
    np.testing.assert_allclose(turned[::-1, ::-1], losses, rtol=0, atol=TOLERANCE)


def test_windows_without_the_untouched_model_are_as_with_it(tiny_pair: Pairs, random_examples: Draw) -> None:
    pair = Pair(*map(Adapter, tiny_pair("qwen3", 5)))
    examples, windows = random_examples(4), windows_of_widths(5, [2])
    losses = sweep_losses(pair, examples, windows)
    for row in (1, 3, len(windows) - 1):
        np.testing.assert_allclose(sweep_losses(pair, examples, windows[row : row + 1]), losses[row, None], atol=1e-5)


def test_a_window_twice_is_refused(tiny_pair: Pairs, random_examples: Draw) -> None:
    pair = Pair(*map(Adapter, tiny_pair("llama", 4)))
    with pytest.raises(ValueError, match="windows must be distinct"):
        sweep_losses(pair, random_examples(2), [Window(0, 1), Window(1, 2), Window(0, 1)])


class Counter:
    """Rows and tokens that went through the decoder layers of some models, told by forward hooks."""

    def __init__(self, *adapters: Adapter) -> None:
        self.calls: list[tuple[int, int]] = []
        for adapter in adapters:
            for block in adapter.blocks:
                block.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, block: torch.nn.Module, args: tuple[torch.Tensor], kwargs: dict[str, object]) -> None:
        self.calls.append((args[0].shape[0], args[0].shape[1]))


@pytest.mark.parametrize("budget", [1, 100, 65_536])
@pytest.mark.parametrize(
    ("layers", "widths", "expected"), [(32, [5], 577), (4, [1, 2, 3], None), (6, [2], None), (5, [5], None)]
)
def test_as_many_layer_applications_are_done_as_are_planned(
    layers: int, widths: list[int], expected: int | None, budget: int, tiny_pair: Pairs, random_examples: Draw
) -> None:
    pair = Pair(*map(Adapter, tiny_pair("llama", layers, width=8, initializer_range=0.05)))
    rows, windows = 3, windows_of_widths(layers, widths)
    examples = [replace(e, tokens=e.tokens[:9], n_prompt=4) for e in random_examples(20, longest=24) if e.length > 9]
    examples = examples[:rows]
    counter, work = Counter(pair.base, pair.tuned), Work()
    sweep_losses(pair, examples, windows, batch_tokens=budget, work=work)
    batches = rows if budget == 1 else 1
    planned = layer_applications(layers, windows)
    if expected is not None:
        assert planned == expected
    assert sum(n for n, _ in counter.calls) == planned * rows, "each application takes every example's row once"
    assert work.applications == planned * batches
    assert work.token_applications == sum(n * length for n, length in counter.calls)
    assert work.heads == len(windows) * batches
    if budget == 65_536:
        assert len(counter.calls) < 2 * layers + 1, "all states of a layer go through it in one call"


@pytest.mark.parametrize("rows_at_a_time", [None, 7, 1])
def test_all_ended_states_of_a_batch_take_each_head_in_one_call_if_the_budget_holds_them(
    rows_at_a_time: int | None, tiny_pair: Pairs, random_examples: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(*map(Adapter, tiny_pair("llama", 4)))
    examples, windows = random_examples(5), [*windows_of_widths(4, [1]), Intervention("reverse", (1,))]
    expected = sweep_losses(pair, examples, windows)
    calls: list[tuple[Adapter, int]] = []
    logits = Adapter.logits

    def noted(self: Adapter, states: torch.Tensor) -> torch.Tensor:
        calls.append((self, len(states)))
        return logits(self, states)

    monkeypatch.setattr(Adapter, "logits", noted)
    if rows_at_a_time is not None:
        monkeypatch.setattr("raysweep.studies.substitution.LOGIT_BYTES", 4 * 320 * rows_at_a_time + 1)
    np.testing.assert_allclose(sweep_losses(pair, examples, windows), expected, rtol=0, atol=TOLERANCE)
    labels = sum(example.n_tokens for example in examples)
    for adapter, ended in ((pair.base, 1), (pair.tuned, len(windows) - 1)):
        rows = [n for each, n in calls if each is adapter]
        assert sum(rows) == ended * labels
        assert len(rows) == (1 if rows_at_a_time is None else -(-ended * labels // rows_at_a_time))


def test_a_merged_adapter_is_swept_as_any_other_tuned_model(
    tiny: Callable[..., PreTrainedModel], random_examples: Draw, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    tiny("llama").save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, about transformers
        unmerged = get_peft_model(tiny("llama"), config)
    unmerged.save_pretrained(tmp_path / "lora")
    checkpoint = describe(str(tmp_path / "base"))
    base, tuned = load_model(checkpoint), load_model(describe(str(tmp_path / "lora")), base=checkpoint)
    examples, windows = random_examples(5), windows_of_widths(4, [1, 2])
    expected = plain_losses(base, tuned, examples, windows, "model.layers")
    # The head and the embedding are the base's, so [0, L) is the base itself; width 0 is the adapter at work, unmerged.
    np.testing.assert_allclose(expected[0], [plain_loss(unmerged, e) for e in examples], atol=TOLERANCE)
    np.testing.assert_allclose(expected[-1], [plain_loss(base, e) for e in examples], atol=TOLERANCE)
    found = sweep_losses(Pair(Adapter(base), Adapter(tuned)), examples, windows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_nan_stays_with_the_example_and_the_windows_it_comes_from(tiny_pair: Pairs, random_examples: Draw) -> None:
    base, tuned = tiny_pair("llama", 4)
    pair = Pair(Adapter(base), Adapter(tuned))
    examples, windows = random_examples(6, longest=12), windows_of_widths(4, [1])
    clean = sweep_losses(pair, examples, windows)
    special = 319  # in the third example's prompt only
    tokens = [np.where(e.tokens == special, 0, e.tokens) for e in examples]
    examples = [replace(e, tokens=t) for e, t in zip(examples, tokens, strict=True)]
    examples[2] = replace(examples[2], tokens=np.concatenate([[special], examples[2].tokens[1:]]))
    with torch.no_grad():
        tuned.model.embed_tokens.weight[special] = torch.nan
    losses = sweep_losses(pair, examples, windows)
    assert np.isnan(losses[:, 2]).all()
    others = [0, 1, 3, 4, 5]
    assert np.isfinite(losses[:, others]).all()
    np.testing.assert_allclose(losses[:, others], clean[:, others], atol=TOLERANCE)

    with torch.no_grad():
        tuned.model.embed_tokens.weight[special] = 1.0
        base.model.layers[1].mlp.down_proj.weight[0] = torch.inf
    losses = sweep_losses(pair, examples, windows)
    damaged = [window.start <= 1 < window.stop for window in windows]
    assert np.isnan(losses).all(axis=1).tolist() == damaged
    assert np.isfinite(losses).all(axis=1).tolist() == [not d for d in damaged]


def test_the_table_has_the_contracts_columns_and_order(tiny_pair: Pairs, random_examples: Draw) -> None:
    base, tuned = tiny_pair("llama", 4)
    examples = random_examples(3)
    table = sweep_windows(base, tuned, examples, [(1, 3), (2, 3), (1, 3)], batch_tokens=64)
    assert list(table.columns) == (
        [
            "kind",
            "layers",
            "start",
            "stop",
            "width",
            "centre",
            "coefficient",
            "estimator",
            "example_id",
            "n_tokens",
            "loss",
        ]
    )
    windows = [(0, 0), (2, 3), (1, 3), (0, 4)]
    assert table["example_id"].tolist() == [e.id for e in examples] * 4
    assert table["n_tokens"].tolist() == [e.n_tokens for e in examples] * 4
    assert list(zip(table["start"], table["stop"], strict=True)) == [w for w in windows for _ in examples]
    assert table["width"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [4] * 3
    assert table["layers"].tolist() == [""] * 3 + ["2"] * 3 + ["1-2"] * 3 + ["0-3"] * 3
    np.testing.assert_array_equal(table["centre"], [np.nan] * 3 + [2.0] * 3 + [1.5] * 3 + [1.5] * 3)
    assert (table["kind"] == "window").all()
    assert (table["coefficient"] == 1.0).all()
    assert (table["estimator"] == "exact").all()
    kinds = {name: str(table.dtypes[name]) for name in ("start", "stop", "width", "example_id", "n_tokens")}
    assert set(kinds.values()) == {"int64"}
    assert {str(table.dtypes[name]) for name in ("centre", "coefficient", "loss")} == {"float64"}
    assert isinstance(table.index, pd.RangeIndex)
    expected = plain_losses(base, tuned, examples, windows, "model.layers")
    np.testing.assert_allclose(table["loss"], expected.ravel(), rtol=0, atol=TOLERANCE)


def test_a_window_beyond_the_models_depth_is_refused(tiny_pair: Pairs, random_examples: Draw) -> None:
    base, tuned = tiny_pair("llama", 4)
    with pytest.raises(
        InputError, match=r"window \[3, 6\) does not fit the 4 decoder layers; give 0 <= start < stop <="
    ):
        sweep_windows(base, tuned, random_examples(1), [(3, 6)])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"layers": 5}, "base has 4 decoder layers and tuned 5; a pair has the same"),
        (
            {"intermediate_size": 44},
            r"base and tuned differ in tensor model\.layers\.0\.mlp\.gate_proj\.weight: \[40, 16\] and \[44, 16\]; a pair",
        ),
        ({"attention_bias": True}, None),
        ({"vocab_size": 330}, "base and tuned differ in vocab_size: 320 and 330"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "base and tuned differ in rope_parameters: .* a layer of the base model in the tuned model would use the "
            "wrong rotary tables",
        ),
    ],
)
def test_loaded_models_that_are_no_pair_are_refused(
    other: dict[str, object], message: str | None, tiny: Callable[..., PreTrainedModel], random_examples: Draw
) -> None:
    one, another = tiny("llama"), tiny("llama", **other)
    message = message or r"base and tuned differ in tensor model\.layers\.0\.self_attn\.q_proj\.bias: \[16\] and none"
    base, tuned = (another, one) if "attention_bias" in other else (one, another)
    with pytest.raises(InputError, match=message):
        sweep_windows(base, tuned, random_examples(1), [(0, 1)])
