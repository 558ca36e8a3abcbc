"""What a training's estimate of memory has for states and logits, against what autograd keeps for the way back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raysweep.engine.calls import TrainCall
from raysweep.engine.inspection import inspect
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.training_estimate import training_of
from raysweep.models.loading import load_model
from raysweep.studies.choosing import choose
from raysweep.studies.trainer import Rows, collate

VOCABULARY = 320


@pytest.fixture
def estimated(training_config):
    """estimated(**asked) has the call of a fine-tuning in batches of two, and the bytes that its estimate has beside weights."""

    def of(**asked):
        trainer = {
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 1,
            "report_to": "none",
        }
        config = training_config("nowhere", {"finetune": {"trainer": trainer, **asked}})
        facts = inspect(config)
        (call,) = (
            each for each in model_calls(config, facts, plan(config, facts), set()) if isinstance(each, TrainCall)
        )
        model = choose(load_model(call.base), call.recipe, call.base.source)
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        held = 4 * sum(n for n, _ in sizes) + 3 * 4 * sum(n for n, trained in sizes if trained)
        return call, model, training_of(call).memory - held

    return of


def kept(model, call):
    """The bytes of states that autograd keeps of a batch as long as the longest example, each tensor's storage once."""
    longest = max(call.examples, key=lambda example: example.length)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def seen(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    batch = collate([Rows([longest], places=False)[0]] * 2)
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        model.train()(**batch).loss.backward()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("asked", [{}, {"layers": [3, 5]}, {"layers": [5]}, {"freeze": [0, 1, 2]}])
def test_states_are_kept_from_the_lowest_trained_layer_on_and_there_is_no_more(estimated, asked):
    call, model, bytes_of_states = estimated(**asked)
    real = kept(model, call)
    assert real < bytes_of_states < 3 * real, "states of a layer are reckoned for the widest architectures"


def test_test_losses_take_the_logits_of_a_whole_batch(estimated):
    call, _, _ = estimated(layers=[5])
    longest = max(example.length for example in call.test)

    def memory(batch):
        told = {**call.recipe.arguments, "per_device_eval_batch_size": batch}
        return training_of(replace(call, recipe=replace(call.recipe, arguments=told))).memory

    assert memory(2000) - memory(1000) == 1000 * longest * VOCABULARY * 4
    assert memory(1) == memory(2), "the way back takes more"
