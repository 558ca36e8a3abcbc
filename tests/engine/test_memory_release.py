"""What a worker let go of is out of memory at once, with the collector off: models of each kind, trainings, failed attempts."""

from __future__ import annotations

import gc
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_execution_device_hook
from peft import LoraConfig, get_peft_model
from small_trainings import TRAINER

from raysweep.engine import residents, work
from raysweep.engine.calls import CaptureCall, Loading, SubstituteCall, TrainCall
from raysweep.engine.inspection import inspect
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.residents import Residents
from raysweep.engine.work import Worker
from raysweep.models.checkpoint import describe
from raysweep.studies import finetune as finetune_study

ON_CPU = Loading("float32", "cpu", None, 1024)


@pytest.fixture(autouse=True)
def _no_collections():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def calls(small):
    return list(model_calls(*small, plan(*small), set()))


@pytest.fixture
def weights(monkeypatch):
    """Weak references to the weights of every model that is loaded."""
    seen, load = [], residents.load_model

    def noting(checkpoint, **how):
        model = load(checkpoint, **how)
        if how["device_map"] is not None:  # what accelerate does on several devices
            for module in model.modules():
                if not list(module.children()):
                    add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
            attach_execution_device_hook(model, "cpu")
            add_hook_to_module(model, AlignDevicesHook(execution_device="cpu", io_same_device=True))
        seen.extend(map(weakref.ref, model.parameters()))
        return model

    monkeypatch.setattr(residents, "load_model", noting)
    return seen


@pytest.fixture(scope="module")
def lora(tiny, tmp_path_factory):
    """A LoRA adapter of the base."""
    folder = tmp_path_factory.mktemp("lora")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, about transformers
        get_peft_model(tiny("llama", 6), config).save_pretrained(folder)
    return describe(str(folder))


def alive(weights):
    return sum(weight() is not None for weight in weights)


@pytest.mark.parametrize("ended", ["evicted", "kept others", "cleared"])
@pytest.mark.parametrize("kind", ["plain", "spread", "merged"])
def test_a_model_is_gone_once_it_is_let_go_of(kind, ended, world, lora, weights):
    base = describe(str(world / "base"))
    models, loading = Residents(1), replace(ON_CPU, device_map={"": "cpu"} if kind == "spread" else None)
    if kind == "merged":
        models.adapter(lora, replace(loading, dtype="bfloat16"), base=base)
    else:
        models.adapter(base, loading)
    assert alive(weights)
    if ended == "evicted":
        models.streamed(describe(str(world / "tuned")), loading)
    elif ended == "cleared":
        models.clear()
    else:
        models.keep_only([])
    assert alive(weights) == 0


def test_a_streamed_model_is_gone_once_it_is_let_go_of(world):
    models = Residents(1)
    model = models.streamed(describe(str(world / "base")), ON_CPU)
    held = [weakref.ref(slot.device) for slot in model._slots] + [
        weakref.ref(p) for p in model.adapter.model.parameters()
    ]
    for _ in model.layers():
        pass
    del model, _
    models.clear()
    assert alive(held) == 0


def test_a_float32_copy_that_was_merged_is_gone_once_the_model_is_loaded(world, lora, monkeypatch):
    from raysweep.models import loading

    copies, cast = [], loading.in_dtype

    def noting(merged, *arguments, **more):
        copies.extend(map(weakref.ref, merged.parameters()))
        return cast(merged, *arguments, **more)

    monkeypatch.setattr(loading, "in_dtype", noting)
    models = Residents(1)
    models.adapter(lora, replace(ON_CPU, dtype="bfloat16"), base=describe(str(world / "base")))
    assert copies
    assert alive(copies) == 0


@pytest.mark.parametrize("streams", [False, True])
def test_a_failed_attempt_holds_nothing_while_it_is_repeated(streams, calls, monkeypatch, tmp_path):
    sweep = next(call for call in calls if isinstance(call, SubstituteCall))
    sweep = replace(sweep, loading=replace(sweep.loading, stream=streams))
    held, losses = [], work.sweep_losses

    def short_at_first(pair, examples, windows, **how):
        assert alive(held) == 0
        if len(held) == 2:
            return losses(pair, examples, windows, **how)
        states = torch.ones(3)
        held.append(weakref.ref(states))
        collector, collector.itself = how.get("work"), states
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(work, "sweep_losses", short_at_first)
    outcome = Worker(tmp_path).attempt(sweep)
    assert outcome.error is None
    assert len(held) == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("other")])
def test_a_load_that_failed_holds_nothing(error, calls, monkeypatch, tmp_path):
    """transformers' loading threads keep their exceptions, and these the model."""
    from transformers import core_model_loading

    capture = next(call for call in calls if isinstance(call, CaptureCall))
    held, read = [], core_model_loading._materialize_copy

    def full_after_five(*arguments, **more):
        if len(held) >= 5:
            raise type(error)(*error.args)
        tensor = read(*arguments, **more)
        held.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(core_model_loading, "_materialize_copy", full_after_five)
    outcome = Worker(tmp_path).attempt(capture)
    assert outcome.error is not None
    assert len(held) >= 5
    assert alive(held) == 0


@pytest.mark.parametrize(
    ("ends", "arguments"), [("done", {}), ("done", {"bf16": True}), ("out of memory", {}), ("other", {})], ids=str
)
def test_a_trained_model_is_gone_once_it_is_trained(ends, arguments, training_config, monkeypatch, tmp_path):
    config = training_config(tmp_path, {"finetune": {"trainer": {**TRAINER, **arguments}}})
    facts = inspect(config)
    call = next(call for call in model_calls(config, facts, plan(config, facts), set()) if isinstance(call, TrainCall))
    held, finished = [], finetune_study._finished

    def noting(trainer, fresh):
        held.extend(map(weakref.ref, trainer.model.parameters()))
        if ends == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if ends == "other":
            raise ValueError("other")
        return finished(trainer, fresh)

    monkeypatch.setattr(finetune_study, "_finished", noting)
    outcome = Worker(tmp_path).attempt(call)
    assert (outcome.error is None) is (ends == "done"), outcome.traceback
    assert held
    assert alive(held) == 0
