"""A model that was to be sharded and is not is refused; a sharded one is put together as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from raysweep.errors import InputError, RunError
from raysweep.studies import sharding


@pytest.fixture
def group(tmp_path):
    """A group of this process alone, and its mesh."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def sharded(model, mesh):
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def refusal(call, *arguments):
    with pytest.raises(RunError) as caught:
        call(*arguments)
    return str(caught.value)


# --- nothing less than was asked for ------------------------------------------------------------------------------


def test_a_model_that_is_whole_in_every_process_is_refused(tiny, group):
    model = tiny("llama", 2)
    assert refusal(sharding.check_sharded, model, "cpu") == (
        "strategy is fsdp, and accelerate left a LlamaForCausalLM that is not sharded"
    )
    fully_shard(model.model.layers[0], mesh=group)
    fully_shard(model, mesh=group, ignored_params={model.lm_head.weight})
    assert refusal(sharding.check_sharded, model, "cpu") == (
        "strategy is fsdp, and parameter lm_head.weight is not sharded: every process would train a copy of it"
    )


def test_a_sharded_model_is_taken_on_its_own_device_over_all_processes(tiny, group, monkeypatch):
    model = sharded(tiny("llama", 2), group)
    sharding.check_sharded(model, "cpu")
    assert "is sharded over 1 processes on cpu, but 1 train on cuda" in refusal(sharding.check_sharded, model, "cuda")
    monkeypatch.setattr(sharding, "processes", lambda: 2)
    assert "is sharded over 1 processes on cpu, but 2 train on cpu" in refusal(sharding.check_sharded, model, "cpu")


def trainer(kind, sharded=False):
    """The parts of a trainer that are looked at."""
    plugin = {"fsdp_version": 2, "cpu_ram_efficient_loading": False}
    state = SimpleNamespace(distributed_type=kind, num_processes=2, device=torch.device("cpu"), mixed_precision="no")
    accelerator = SimpleNamespace(state=state, is_fsdp2=sharded)
    return SimpleNamespace(
        accelerator=accelerator, args=SimpleNamespace(fsdp_plugin_args=plugin), is_fsdp_enabled=sharded
    )


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU])
def test_an_accelerator_that_does_not_shard_is_refused(kind):
    told = refusal(sharding.turn_on, trainer(kind))
    assert told.startswith("strategy is fsdp, and accelerate made ")
    assert told.endswith(" of 2 processes on cpu; set strategy to ddp, or processes to 2 or more")


def test_on_accelerators_accelerate_is_left_alone():
    made = trainer(DistributedType.FSDP, sharded=True)
    sharding.turn_on(made)
    assert not hasattr(made.accelerator.state, "fsdp_plugin")


def test_losses_and_sums_of_gradients_are_not_rounded():
    arguments = SimpleNamespace(bf16=True, fp16=False, fsdp_plugin_args={"fsdp_version": 2})
    sharding.set_precision(arguments)
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args, cpu_ram_efficient_loading=False)
    plugin.set_mixed_precision("bf16")  # as accelerate does
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)


# --- put together -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_a_sharded_model_is_put_together_bit_for_bit(tiny, group, tied):
    model = tiny("llama", 2, tie_word_embeddings=tied)
    assert sharding.whole(model, lambda: pytest.fail("what is whole needs no other")) is model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    whole = sharding.whole(sharded(model, group), lambda: tiny("llama", 2, seed=1, tie_word_embeddings=tied))
    assert torch.equal(torch.get_rng_state(), drawn), "what the training draws next is what it would have drawn"
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert (whole.lm_head.weight is whole.model.embed_tokens.weight) is tied


def test_models_of_other_tensors_are_not_mixed(tiny, group):
    model = sharded(tiny("llama", 2), group)
    told = refusal(sharding.whole, model, lambda: tiny("llama", 3))
    assert (
        told
        == "the sharded model and the full one differ in 9 tensors, model.layers.2.input_layernorm.weight among them"
    )


# --- processes ----------------------------------------------------------------------------------------------------


def refuse():
    raise InputError("this folder is of another training")


def test_what_the_first_process_decides_or_raises_holds_for_all(group):
    assert (sharding.processes(), sharding.rank()) == (1, 0)
    assert sharding.first_decides(lambda: "checkpoint-20") == "checkpoint-20"
    with pytest.raises(InputError, match="this folder is of another training"):
        sharding.first_decides(refuse)


def test_one_process_decides_by_itself():
    assert (sharding.processes(), sharding.rank()) == (1, 0)
    assert sharding.first_decides(lambda: 3) == 3
