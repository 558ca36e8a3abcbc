"""PEFT adapters in a run: what inspection refuses and warns of, and losses against PEFT's own unmerged model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from peft_warnings import pefts_warnings
from transformers import AutoModelForCausalLM

from raysweep.config import Config
from raysweep.engine.driver import drive
from raysweep.engine.inspection import inspect
from raysweep.errors import InputError

Write = Callable[..., Path]
LAYERS = 4


@pytest.fixture
def write(tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Write:
    """write(name, tied, **LoRA settings) writes a base with its tokenizer, and an adapter `name` of it with random factors."""

    def make(name: str, tied: bool, **settings: Any) -> Path:
        base, folder = tmp_path / f"base-{tied}", tmp_path / name
        if not base.exists():
            tiny("llama", LAYERS, max_position_embeddings=128, tie_word_embeddings=tied).save_pretrained(base)
            tokenizer.save_pretrained(base)
        asked = {"r": 3, "target_modules": ["q_proj"], "init_lora_weights": False} | settings
        torch.manual_seed(1)
        with pefts_warnings():
            model = peft.get_peft_model(_plain(base), LoraConfig(**asked))
            model.save_pretrained(folder, save_embedding_layers=False)
        return folder

    return make


@pytest.fixture
def adapted(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """adapted(adapter, tied, "key=value", …): substitution on the first data set, of the adapter on its base."""

    def make(adapter: Path, tied: bool, *overrides: str) -> Config:
        asked = [f"models.0.base={tmp_path / f'base-{tied}'}", f"models.0.tuned.first={adapter}"]
        asked += ["studies.similarity=null", "studies.correlation=null", *overrides]
        return make_config(tmp_path / "run", *asked)

    return make


def _plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_losses_of_an_adapter_on_tied_weights_are_those_of_peft(
    write: Write, adapted: Callable[..., Config], tables_of: Any, tmp_path: Path
) -> None:
    adapter = write("both", True, target_modules=["q_proj", "down_proj", "embed_tokens", "lm_head"])
    done = drive(adapted(adapter, True))
    assert not done.failed
    rows = tables_of(done)["substitution"]
    base = _plain(tmp_path / "base-True")
    with pefts_warnings():
        tuned = peft.PeftModel.from_pretrained(_plain(tmp_path / "base-True"), adapter).eval()
    examples = inspect(adapted(adapter, True)).cells["m", "first"].examples[:4]
    compared = 0
    for (start, stop), found in rows.groupby(["start", "stop"]):
        model = copy.deepcopy(tuned)
        layers = model.base_model.model.model.layers
        for layer in range(int(start), int(stop)):
            layers[layer] = base.model.layers[layer]
        for example in examples:
            loss = _loss(model, example.tokens.tolist(), example.n_prompt)
            assert found[found.example_id == example.id].loss.item() == pytest.approx(loss, abs=1e-5)
            compared += 1
    assert compared == 4 * len(rows.groupby(["start", "stop"])) > 4 * LAYERS


@torch.no_grad()
def _loss(model: Any, tokens: list[int], n_prompt: int) -> float:
    out = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double().log_softmax(-1)
    return -float(torch.stack([out[place - 1, tokens[place]] for place in range(n_prompt, len(tokens))]).mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "random values that are not saved"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"alora_invocation_tokens": [4], "task_type": "CAUSAL_LM"}, "alora_invocation_tokens"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_runs(
    settings: dict[str, Any], message: str, write: Write, adapted: Callable[..., Config], tmp_path: Path
) -> None:
    adapter = write("bad", False, **settings)
    with pytest.raises(InputError, match=rf"PEFT adapter '.*/bad' of type LORA.*{message}"):
        drive(adapted(adapter, False))
    assert not (tmp_path / "run").exists()


def test_another_base_is_a_warning_of_the_run(write: Write, adapted: Callable[..., Config]) -> None:
    adapter = write("other", False)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "acme/llama-chat"}))
    [warning] = inspect(adapted(adapter, False)).warnings
    assert warning.startswith(
        f"first (for m): adapter '{adapter}' was trained on 'acme/llama-chat' according to its adapter_config.json"
    )


@pytest.mark.parametrize(("modules", "own"), [(["q_proj"], True), (["q_proj", "lm_head"], False)])
def test_an_adapter_on_tied_weights_is_known_by_another_fingerprint(
    modules: list[str], own: bool, write: Write, adapted: Callable[..., Config]
) -> None:
    """What was measured when it was merged into both weights is not to be found again; others keep their results."""
    from raysweep.models.checkpoint import describe

    adapter = write("adapter", True, target_modules=modules)
    found = inspect(adapted(adapter, True)).models["m"].tuned["first"]
    assert (found.fingerprint == describe(str(adapter)).fingerprint) == own
