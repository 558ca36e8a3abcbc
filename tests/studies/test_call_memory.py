"""What a block call needs, by hand, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from architectures import DECODERS, build, build_pair

from raysweep.data.examples import Example
from raysweep.engine.room import token_bytes
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.sizes import experts_per_token, pinned_bytes, widest_product
from raysweep.models.stream import StreamedModel
from raysweep.studies import gradient
from raysweep.studies.call_memory import TokenBytes, fitting_tokens
from raysweep.studies.gradient import GRAPH, estimate_losses
from raysweep.studies.passes import states_of_a_way_back
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import LOGIT_BYTES, Pair
from raysweep.studies.windows import windows_of_widths

FUSED = TokenBytes.of(width=16, widest=40, heads=0, size=2)
EAGER = TokenBytes.of(width=16, widest=40, heads=4, size=2)


def test_a_call_has_states_in_and_out_products_masks_and_scores() -> None:
    assert FUSED.call(tokens=100, length=10) == 100 * (2 * 16 * 2 + 4 * 40 * 2 + 10 * 2)
    scores = 4 * (2 + 2 + 4)  # before and after the softmax, which is computed in float32
    assert EAGER.call(tokens=100, length=10) == FUSED.call(tokens=100, length=10) + 100 * 10 * scores


@pytest.mark.parametrize(
    ("batch_tokens", "of_call"),
    [(0, 100), (50, 100), (250, 250), (8192, 700)],
    ids=["a batch", "at least a batch", "copies of it", "a copy of each state"],
)
def test_a_batch_at_work_has_the_states_behind_the_layer_and_one_call(batch_tokens: int, of_call: int) -> None:
    found = FUSED.at_work(tokens=100, length=10, states=7, batch_tokens=batch_tokens)
    assert found == 100 * 7 * FUSED.state + FUSED.call(of_call, 10)


def test_batches_are_halved_until_they_fit_but_hold_the_longest_text() -> None:
    def need(tokens: int, of_call: int) -> int:
        return 10 * tokens + of_call

    lengths = [30] * 100
    assert fitting_tokens(1000, lengths, 11_000, need) == 1000
    assert fitting_tokens(1000, lengths, 10_999, need) == 500
    assert fitting_tokens(1000, lengths, 1500, need) == 125
    assert fitting_tokens(1000, lengths, 0, need) == 30
    assert fitting_tokens(20, lengths, 0, need) == 20
    assert fitting_tokens(1000, [30, 30], 1600, need) == 1000  # two texts are all that a batch has


@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "qwen3_moe", "mixtral", "gpt2"])
def test_plans_have_the_bytes_of_a_token_that_the_loaded_model_has(kind: str, tmp_path: Path) -> None:
    build(DECODERS[kind]).save_pretrained(tmp_path)
    checkpoint = describe(str(tmp_path))
    on_paper, loaded = token_bytes(checkpoint, "float32"), TokenBytes.of_model(StreamedModel(checkpoint).adapter)
    assert on_paper == loaded
    assert (on_paper.seen > on_paper.mask) == (kind == "gpt_oss"), "which keeps its scores"


def test_experts_of_a_mixture_take_the_same_token() -> None:
    config = build(DECODERS["qwen3_moe"]).config
    assert experts_per_token(config) == 2
    assert experts_per_token(build(DECODERS["llama"]).config) == 1
    shapes = {"0.mlp.experts.gate_up": (4, 32, 16), "0.mlp.shared_expert.up": (60, 16), "0.norm": (999,)}
    assert widest_product(shapes, experts=2) == 64
    assert widest_product(shapes) == 60


def test_a_pinned_buffer_takes_the_next_power_of_two() -> None:
    assert [pinned_bytes(n) for n in (0, 1, 2, 3, 1024, 1025, 1_700_000_000)] == [0, 1, 2, 4, 1024, 2048, 2**31]


def test_a_gradients_batches_are_smaller_if_less_is_left_on_a_gpu(
    random_examples: Callable[..., list[Example]], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = random_examples(8)
    pair = Pair(*(Adapter(model) for model in build_pair(DECODERS["llama"])))
    token, longest = TokenBytes.of_model(pair.tuned), max(e.length for e in examples) - 1
    each = (states_of_a_way_back(4) + GRAPH) * token.state + 4 * token.widest + longest * token.seen
    tried, real = [], gradient.make_batches
    monkeypatch.setattr(
        gradient, "make_batches", lambda n, budget, kinds: tried.append(budget) or real(n, budget, kinds)
    )
    for room in (None, 3 * LOGIT_BYTES + 8 * longest * each, 3 * LOGIT_BYTES + 60 * each):
        monkeypatch.setattr(Pair, "room", lambda self, room=room: room)
        estimate_losses(pair, examples, windows_of_widths(4, [2]), batch_tokens=400)
    assert tried[:2] == [400, 400]
    assert tried[2] < 60


def test_a_gradients_budget_counts_what_is_there(
    random_examples: Callable[..., list[Example]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, name in zip(build_pair(DECODERS["llama"]), ("base", "tuned"), strict=True):
        model.save_pretrained(tmp_path / name)
    models = [StreamedModel(describe(str(tmp_path / name))) for name in ("base", "tuned")]
    pair = replace(StreamedPair.of(*models), memory=10**9)
    asked = []
    monkeypatch.setattr(gradient, "room_left", lambda *how: asked.append(how) or 10**8)
    with pytest.raises(
        InputError, match=r"^a memory budget of 1\.00 GB is too small: .* pass need 1\.1\d GB; set exec"
    ):
        estimate_losses(pair, random_examples(2), windows_of_widths(4, [2]))
    assert asked == [("cpu", 10**9)]
