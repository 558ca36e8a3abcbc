"""The checks hold, and each can fail: a mistake made on purpose in raysweep's source ends in a failed check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checks import CHECKS
from mutants import mutated
from pretend import MixedDevicesError

from raysweep.errors import InputError

NOTICED = (AssertionError, MixedDevicesError, InputError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Mutant:
    """`new` in place of `old` in a module of raysweep's, which the check of this name has to notice."""

    module: str
    old: str
    new: str
    check: str


UNSHAKEN = {"text_is_the_cpus"}  # what a mutant of it would be is caught by a sweep's checks
M, S = "raysweep.models.", "raysweep.studies."
MUTANTS = {
    "tokens stay on the CPU": Mutant(
        f"{M}adapter", "to_device(tokens, self.device)", "tokens", "a_sweep_has_the_losses_of_the_cpu"
    ),
    "targets stay where the states are": Mutant(
        f"{S}substitution", "target.to(logits.device)", "target", "a_spread_sweep_has_the_losses_of_the_cpu"
    ),
    "states of two devices are stacked": Mutant(
        f"{S}substitution", "branch.states.to(device)", "branch.states", "a_spread_sweep_has_the_losses_of_the_cpu"
    ),
    "a layer is used before its copy is there": Mutant(
        f"{M}stream",
        "torch.cuda.current_stream(self._device).wait_event(room.copied)",
        "pass",
        "a_streamed_sweep_waits_for_its_copies",
    ),
    "a pinned buffer is filled while it is copied": Mutant(
        f"{M}stream", "room.copied.synchronize()", "pass", "a_streamed_sweep_waits_for_its_copies"
    ),
    "a layer is overwritten while it is used": Mutant(
        f"{M}stream", "self._side.wait_event(room.used)", "pass", "a_streamed_sweep_waits_for_its_copies"
    ),
    "the last use of a layer is not recorded": Mutant(
        f"{M}stream",
        "self._slots[slot].used.record(torch.cuda.current_stream(self._device))",
        "pass",
        "a_streamed_sweep_waits_for_its_copies",
    ),
    "captured states are read before they are there": Mutant(
        f"{S}capture",
        "self._on_device.pop(at).cpu()",
        'self._on_device.pop(at).to("cpu", non_blocking=True)',
        "a_capture_has_the_states_of_the_cpu",
    ),
    "every captured layer is waited for": Mutant(
        f"{S}capture", 'if pooled.device.type == "cpu":', "if True:", "a_capture_waits_once_a_batch"
    ),
    "every change's losses are waited for": Mutant(
        f"{S}substitution", "to_host(found)", "[loss.cpu() for loss in found]", "a_sweep_waits_once_a_batch"
    ),
    "states pass a block one by one": Mutant(
        f"{S}substitution",
        "max(1, batch_tokens // padded[i].numel())",
        "1",
        "a_sweep_calls_blocks_and_head_as_often_as_its_states_need",
    ),
    "ended states take the head one by one": Mutant(
        f"{S}substitution",
        "max(1, budget // (4 * vocabulary))",
        "chosen[0].shape[-2]",
        "a_sweep_calls_blocks_and_head_as_often_as_its_states_need",
    ),
    "the head replays the model": Mutant(
        f"{M}adapter", "if self.calls_head_directly:", "if False:", "a_head_call_waits_for_nothing"
    ),
    "logits take more than a block call left": Mutant(
        f"{S}substitution",
        "states, batch_tokens) // 3",
        "states, batch_tokens) * 30",
        "a_sweep_takes_no_more_memory_than_reckoned",
    ),
    "labels are copied and waited for": Mutant(
        f"{S}labels",
        "to_device(self._positions, device).unbind()",
        "self._positions.to(device).unbind()",
        "a_sweep_waits_once_a_batch",
    ),
    "rows of text are copied for every token": Mutant(
        f"{M}forked",
        "if device not in self._rows:\n            chosen = to_device(self._chosen, device)",
        "if True:\n            chosen = self._chosen.to(device)",
        "text_waits_for_nothing_of_ours_per_token",
    ),
    "cycles keep an evicted model": Mutant(
        f"{M}release", "    if collect:\n", "    if False:\n", "an_evicted_model_leaves_the_device"
    ),
    "a call that runs out of memory is not tried again": Mutant(
        "raysweep.engine.work", "if not short:", "if True:", "a_sweep_goes_on_after_running_out_of_memory"
    ),
    "a load that fails makes batches smaller": Mutant(
        "raysweep.engine.residents",
        "if is_out_of_memory(error):",
        "if False:",
        "a_load_that_runs_out_of_memory_is_tried_again",
    ),
    "a worker plans with all of a GPU": Mutant(
        f"{M}memory", "min(free + unused, own)", "(free + unused)", "a_worker_plans_with_its_share_of_a_gpu"
    ),
    "batches are as large as asked": Mutant(
        f"{S}call_memory", "and not fits(batch_tokens)", "and False", "batches_fit_into_the_memory_that_is_left"
    ),
    "every layer is filled at the start": Mutant(
        f"{M}stream",
        "place.set(place.view(flat))\n        try:",
        "place.set(place.view(flat).copy_(torch.randn(place.empty.shape)))\n        try:",
        "a_deeper_streamed_model_starts_with_as_few_values",
    ),
    "a worker goes on with a dead context": Mutant(
        "raysweep.engine.work",
        'failure="lost" if self._dead else failure',
        "failure=failure",
        "a_dead_context_takes_no_more_calls",
    ),
    "products of the MLP take no memory": Mutant(
        f"{S}call_memory", "4 * self.widest", "0 * self.widest", "a_sweep_takes_no_more_memory_than_reckoned"
    ),
    "tf32 stays on after a training": Mutant(
        f"{S}process_state", "_random, _flags, _precision):", "_random, _flags):", "a_training_leaves_torchs_settings"
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_check_holds(name: str) -> None:
    CHECKS[name]()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_check_notices(name: str) -> None:
    mutant = MUTANTS[name]
    with mutated(mutant.module, mutant.old, mutant.new), pytest.raises(NOTICED):
        CHECKS[mutant.check]()


def test_the_readme_lists_the_mutants() -> None:
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (.+?) \| `(\w+)` \|$", text, re.MULTILINE) == [
        (name, mutant.check) for name, mutant in MUTANTS.items()
    ]


def test_every_check_has_a_mutant() -> None:
    assert {mutant.check for mutant in MUTANTS.values()} | UNSHAKEN >= CHECKS.keys()
