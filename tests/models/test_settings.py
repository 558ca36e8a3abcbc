"""Settings that differ between base and tuned: right by plain transformers, or refused by name."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import DECODERS, WRAPPERS, Tiny, build
from changed_settings import Change, Changed
from transformers import AutoConfig, LlamaConfig

from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.same import NOTHING, same_in_checkpoints, same_in_models
from raysweep.models.settings import check_settings, differences, settings_warning

SIZES = {k: v for k, v in DECODERS["llama"].sizes.items() if k != "head_dim"}
MORE = {  # settings that no architecture of the table has
    "mistral": Tiny("MistralConfig", "model.layers", {**SIZES, "sliding_window": 4}),
    "granite": Tiny("GraniteConfig", "model.layers", SIZES),
}
ALL = {**DECODERS, **WRAPPERS, **MORE}
SAMPLED = 2  # changes of each architecture in every run; all of them in `make soak`
COMPUTED: list[tuple[str, str, Any]] = [
    ("llama", "rms_norm_eps", 1e-2),
    ("llama", "hidden_act", "relu"),
    ("gpt2", "layer_norm_epsilon", 1e-2),
    ("gpt2", "activation_function", "relu"),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("mistral", "sliding_window", None),
    ("mistral", "sliding_window", 2),
    ("qwen2", "layer_types", ["full_attention", "sliding_attention"] * 2),
    ("gemma2", "sliding_window", 2),
    ("mixtral", "num_experts_per_tok", 1),
    ("qwen3_moe", "norm_topk_prob", True),
    ("deepseek_v3", "routed_scaling_factor", 0.5),
    ("gemma2", "attn_logit_softcapping", 0.5),
    ("gemma2", "final_logit_softcapping", 3.0),
    ("gemma2", "query_pre_attn_scalar", 2),
    ("cohere2", "logit_scale", 0.5),
    ("granite", "residual_multiplier", 0.5),
    ("granite", "embedding_multiplier", 3.0),
    ("granite", "attention_multiplier", 0.2),
    ("granite", "logits_scaling", 2.0),
]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example(i, rng.integers(3, 316, n), n // 2, "", "") for i, n in enumerate((9, 14))]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Changed]:
    """Pairs on disk by architecture, made when first asked for."""

    class Pairs(dict[str, Changed]):
        def __missing__(self, kind: str) -> Changed:
            self[kind] = Changed(ALL[kind], tmp_path_factory.mktemp(kind))
            return self[kind]

    return Pairs()


@pytest.mark.parametrize(("kind", "name", "value"), COMPUTED)
def test_what_a_layer_brings_along_is_computed(
    kind: str, name: str, value: Any, pairs: dict[str, Changed], examples: list[Example]
) -> None:
    assert pairs[kind].outcome(Change((name,), value), examples) == "equal"


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("llama", "hidden_act", "relu"), ("mixtral", "num_experts_per_tok", 1), ("mistral", "sliding_window", 2)],
)
def test_a_streamed_pair_brings_settings_along_too(
    kind: str, name: str, value: Any, pairs: dict[str, Changed], examples: list[Example]
) -> None:
    assert pairs[kind].outcome(Change((name,), value), examples, streamed=True) == "equal"


@pytest.mark.parametrize("kind", ALL)
def test_any_setting_is_right_or_refused(kind: str, pairs: dict[str, Changed], examples: list[Example]) -> None:
    changes = list(pairs[kind].changes())
    chosen = random.Random(kind).sample(changes, SAMPLED)
    outcomes = {change.text: pairs[kind].outcome(change, examples) for change in chosen}
    assert {text: said for text, said in outcomes.items() if said not in ("equal", "refused")} == {}


@pytest.mark.soak
@pytest.mark.parametrize("kind", ALL)
def test_every_setting_is_right_or_refused(kind: str, pairs: dict[str, Changed], examples: list[Example]) -> None:
    outcomes = {change.text: pairs[kind].outcome(change, examples) for change in pairs[kind].changes()}
    assert {text: said for text, said in outcomes.items() if said not in ("equal", "refused")} == {}


def test_the_reference_sees_a_setting_that_is_not_brought_along(
    pairs: dict[str, Changed], examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers with equal weights taken for identical whatever their settings: the fault that these tests are for."""
    import raysweep.models.same

    monkeypatch.setattr(raysweep.models.same, "differences", lambda base, tuned: ())
    monkeypatch.setattr(raysweep.models.same, "module_settings", lambda module: {})
    assert "apart from the reference" in pairs["llama"].outcome(Change(("hidden_act",), "relu"), examples)


def test_what_changes_no_output_is_no_difference() -> None:
    base = LlamaConfig(attention_dropout=0.0, eos_token_id=2, use_cache=True)
    tuned = LlamaConfig(
        attention_dropout=0.1, eos_token_id=[2, 7], use_cache=False, dtype="bfloat16", max_position_embeddings=9
    )
    assert differences(base, tuned) == ()


def test_a_difference_is_named_with_both_values() -> None:
    found = check_settings(LlamaConfig(rms_norm_eps=1e-6), LlamaConfig(rms_norm_eps=1e-5, my_scale=3), "base and tuned")
    assert [(d.name, d.base, d.tuned, d.known) for d in found] == [
        ("my_scale", None, 3, False),
        ("rms_norm_eps", 1e-6, 1e-5, True),
    ]
    said = settings_warning(found, "base and tuned")
    assert said is not None
    assert "rms_norm_eps (base 1e-06, tuned 1e-05)" in said
    assert "does not define my_scale" in said
    assert settings_warning((), "base and tuned") is None


def test_equal_weights_with_other_settings_are_not_the_same(tmp_path: Path) -> None:
    model = build(DECODERS["llama"])
    model.save_pretrained(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    base = describe(str(tmp_path / "base"))
    assert same_in_checkpoints(base, describe(str(tmp_path / "tuned"))).layers == frozenset(range(4))
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    (tmp_path / "tuned" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert same_in_checkpoints(base, describe(str(tmp_path / "tuned"))) == NOTHING


def test_a_setting_of_a_loaded_layer_counts() -> None:
    base, tuned = build(DECODERS["llama"]), build(DECODERS["llama"])
    tuned.get_submodule("model.layers.2.self_attn").scaling *= 2
    tuned.get_submodule("model.layers.1.self_attn").attention_dropout = 0.3
    found = same_in_models(Adapter(base), Adapter(tuned))
    assert found.layers == {0, 1, 3}
    assert found.rest


def test_a_config_of_its_own_class_equals_itself() -> None:
    for kind, tiny in ALL.items():
        config = build(tiny).config
        assert differences(config, AutoConfig.for_model(**config.to_dict())) == (), kind
