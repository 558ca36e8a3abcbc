"""A folder of shards and its base's folder as a Hugging Face folder: the same weights, or nothing."""

from __future__ import annotations

import pytest
import torch
from shard_files import write_shards

from raysweep.errors import InputError
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.consolidate import consolidate


@pytest.fixture(scope="module")
def pairs(tiny_pair, tokenizer, tmp_path_factory):
    """kind → (the base's folder, the tuned model)."""
    found = {}
    for name, kind, more in (
        ("llama", "llama", {}),
        ("tied", "llama", {"tie_word_embeddings": True}),
        ("gpt2", "gpt2", {}),
    ):
        folder = tmp_path_factory.mktemp(name)
        base, tuned = tiny_pair(kind, 2, **more)
        base.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = folder, tuned
    return found


def sharded(model, folder, dtypes=()):
    state = {
        f"model.{name}": tensor.to(dict(dtypes).get(name, tensor.dtype)) for name, tensor in model.state_dict().items()
    }
    write_shards(folder / "pytorch_model_fsdp_0", state)
    return folder


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
def test_weights_config_and_tokenizer_are_whole(pairs, tmp_path, kind):
    base, tuned = pairs[kind]
    shards = sharded(tuned, tmp_path / "checkpoint-5")
    done = consolidate(shards, str(base), tmp_path / "out")
    written = describe(str(tmp_path / "out"))
    assert written.shapes == describe(str(base)).shapes
    assert written.dtype == done.dtype == "float32"
    same(load_model(written).state_dict(), tuned.state_dict())
    assert load_tokenizer(written)("2 + 3")["input_ids"] == load_tokenizer(describe(str(base)))("2 + 3")["input_ids"]
    assert (
        done.to_text()
        == f"wrote {len(written.shapes)} tensors, {written.n_parameters} values in float32: {tmp_path / 'out'}"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "out"], "nothing is left beside it"


def test_no_value_changes_unless_a_dtype_is_asked_for(pairs, tmp_path):
    """As under mixed precision: what is trained in float32, and what is frozen as it is stored."""
    base, tuned = pairs["llama"]
    frozen = "model.layers.0.mlp.up_proj.weight"
    sharded(tuned, tmp_path / "shards", [(frozen, torch.bfloat16)])
    assert consolidate(tmp_path / "shards", str(base), tmp_path / "out").dtype == "float32"
    state = load_model(describe(str(tmp_path / "out"))).state_dict()
    expected = {**tuned.state_dict(), frozen: tuned.state_dict()[frozen].bfloat16().float()}
    same(state, expected)
    assert consolidate(tmp_path / "shards", str(base), tmp_path / "half", dtype="bfloat16").dtype == "bfloat16"
    assert describe(str(tmp_path / "half")).dtype == "bfloat16"
    same(
        load_model(describe(str(tmp_path / "half")), dtype="bfloat16").state_dict(),
        {n: t.bfloat16() for n, t in expected.items()},
    )


# --- refused, with nothing written --------------------------------------------------------------------------------


def refusal(shards, base, out, **more):
    with pytest.raises(InputError) as caught:
        consolidate(shards, str(base), out, **more)
    assert not out.exists()
    return str(caught.value)


def test_shards_of_another_model(pairs, tiny, tmp_path):
    base, tuned = pairs["llama"]
    deeper, wider = tiny("llama", 3), tiny("llama", 2, width=32)
    for model, told in (
        (deeper, "they have too many tensors (9: model.layers.2.input_layernorm.weight, "),
        (wider, "tensor lm_head.weight is [320, 32] in the shards and [320, 16] in the base's config; give the base"),
        (tuned.model, "they lack tensors of LlamaForCausalLM ("),
    ):
        shards = sharded(model, tmp_path / f"{len(told)}")
        told_all = refusal(shards, base, tmp_path / "out")
        assert f"shards '{shards / 'pytorch_model_fsdp_0'}' do not fit base '{base}': " in told_all
        assert told in told_all


def test_a_tensor_that_is_lacking_and_one_too_many(pairs, tmp_path):
    base, tuned = pairs["llama"]
    state = {f"model.{name}": tensor for name, tensor in tuned.state_dict().items()}
    lost = state.pop("model.model.layers.1.mlp.down_proj.weight")
    write_shards(tmp_path / "lacking", state)
    assert "(1: model.layers.1.mlp.down_proj.weight); give the base" in refusal(
        tmp_path / "lacking", base, tmp_path / "out"
    )
    write_shards(tmp_path / "more", {**state, "model.model.layers.1.mlp.down_proj.weight": lost, "model.extra": lost})
    assert "they have too many tensors (1: extra)" in refusal(tmp_path / "more", base, tmp_path / "out")


def test_weights_that_are_not_finite(pairs, tiny, tmp_path):
    base, _ = pairs["llama"]
    broken = tiny("llama", 2)
    broken.model.layers[1].mlp.up_proj.weight.data[2, 3] = float("nan")
    assert "layer 1 has a weight that is not finite (NaN at [2, 3])" in refusal(
        sharded(broken, tmp_path / "shards"), base, tmp_path / "out"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_a_folder_with_something_in_it_and_an_unknown_dtype(pairs, tmp_path):
    base, tuned = pairs["llama"]
    shards = sharded(tuned, tmp_path / "shards")
    assert (
        refusal(shards, base, tmp_path / "out", dtype="float23") == "unknown dtype 'float23'; did you mean 'float32'?"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="is not empty; give a new folder, or empty this one"):
        consolidate(shards, str(base), tmp_path / "full")
    assert "has no config.json" in refusal(shards, tmp_path / "full", tmp_path / "out")


def test_the_command_writes_it_and_tells_of_bad_input(pairs, raysweep, tmp_path):
    base, tuned = pairs["llama"]
    shards = sharded(tuned, tmp_path / "checkpoint-5")
    done = raysweep("consolidate", shards, base, tmp_path / "out")
    assert (done.code, done.out.split(": ")[-1].strip()) == (0, str(tmp_path / "out")), done.err
    again = raysweep("consolidate", shards, base, tmp_path / "out")
    assert (again.code, again.err) == (
        2,
        f"error: '{tmp_path / 'out'}' is not empty; give a new folder, or empty this one\n",
    )
