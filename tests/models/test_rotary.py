"""Rotary tables that depend on a text's length, against the model's own forward on one unpadded text at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import DECODERS, build, build_pair, plain_losses

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.rotary import rotary_settings, rotary_table
from raysweep.notebook import capture
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import windows_of_widths

LONG = {
    "original_max_position_embeddings": 10,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0, 1.0],
        "long_factor": [4.0, 8.0],
    },
}
DYNAMIC = {"max_position_embeddings": 12, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}


def examples(*lengths: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example(i, rng.integers(3, 310, n), 2, "", "") for i, n in enumerate(lengths)]


def test_texts_of_unlike_tables_share_no_batch() -> None:
    tiny = replace(DECODERS["phi3"], sizes=DECODERS["phi3"].sizes | LONG)
    base, tuned = build_pair(tiny)
    chosen, windows = examples(5, 12, 20, 6, 30, 9), windows_of_widths(4, [2])
    expected = plain_losses(base, tuned, chosen, windows, "model.layers")
    for budget in (16, 4096):
        found = sweep_losses(Pair(Adapter(base), Adapter(tuned)), chosen, windows, batch_tokens=budget)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    prompts = [replace(e, n_prompt=e.length) for e in chosen]
    alone, together = (capture(base, prompts, batch_tokens=budget) for budget in (1, 4096))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    config = base.config
    assert [rotary_table(config, n) for n in (1, 10, 11, 60)] == [0, 0, 1, 1]


def test_tables_that_depend_on_what_was_read_before_are_refused() -> None:
    adapter = Adapter(build(DECODERS["llama"], **DYNAMIC))
    capture(adapter, [replace(e, n_prompt=12) for e in examples(12)])
    with pytest.raises(InputError) as caught:
        capture(adapter, [replace(e, n_prompt=13) for e in examples(13)])
    assert str(caught.value) == (
        "a text of 13 tokens is longer than the model's max_position_embeddings 12, beyond which its rotary tables "
        "('dynamic') depend on the texts it has read before; set max_tokens to 12 or less"
    )


def test_settings_may_differ_by_kind_of_layer_or_be_none() -> None:
    kinds = [s["rope_type"] for s in rotary_settings(build(DECODERS["gemma3"]).config)]
    assert kinds == ["default", "default"]
    assert list(rotary_settings(build(DECODERS["gpt2"]).config)) == []
    assert rotary_table(build(DECODERS["gpt2"]).config, 1000) == 0
