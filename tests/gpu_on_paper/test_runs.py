"""Whole runs on a pretended GPU: the CPU's tables, memory within the plan, and nothing left on the device."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pandas as pd
import pytest
import torch
from architectures import DECODERS, build_pair
from pretend import pretended
from streams import late
from transformers import PreTrainedTokenizerBase

from raysweep.config import parse_config
from raysweep.engine.driver import drive
from raysweep.planned import plan_run
from raysweep.report.tables import collect_tables

STUDIES: dict[str, Any] = {
    "substitution": {
        "widths": [1, 2],
        "modules": ["mlp"],
        "coefficients": [0.5, 1.0],
        "reverse": True,
        "verify": 2,
        "generate": {"examples": 2, "tokens": 3},
    },
    "similarity": {"metrics": ["cka_linear", "procrustes"]},
    "spectrum": {},
    "removal": {"layers": [1], "components": [1], "examples": 2, "tokens": 2},
}
STREAMED: dict[str, Any] = {"substitution": {"widths": [1, 2]}, "similarity": {}}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Any:
    """config(storage, device, studies, **execution) is that of a pair of four layers and nine records."""
    folder = tmp_path_factory.mktemp("gpu_on_paper")
    for name, model in zip(("base", "tuned"), build_pair(DECODERS["llama"]), strict=True):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    records = [{"q": "two " * (1 + i % 4), "a": "three " * (1 + i % 3)} for i in range(9)]
    (folder / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(storage: str, device: str, studies: dict[str, Any], **execution: Any) -> dict[str, Any]:
        return {
            "name": "paper",
            "models": [
                {"name": "m", "base": str(folder / "base"), "tuned": {"d": str(folder / "tuned")}, "dtype": "float32"}
            ],
            "datasets": [
                {"name": "d", "path": str(folder / "d.jsonl"), "format": "columns", "prompt": "q", "response": "a"}
            ],
            "studies": studies,
            "execution": {"chunk": 4, "device": device, "batch_tokens": 64, **execution},
            "storage": str(folder / storage),
        }

    return make


Tables = dict[str, pd.DataFrame]


def ran(values: dict[str, Any], listener: Any = None) -> Tables:
    """The tables of a run of which nothing failed."""
    done = drive(parse_config(values), listener=listener)
    assert done.failed == {}
    return collect_tables(done.folder, done.graph)


def check_equal(found: Tables, expected: Tables) -> None:
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def on_cpu(config: Any) -> dict[str, Tables]:
    return {name: ran(config(name, "cpu", studies)) for name, studies in (("all", STUDIES), ("streamed", STREAMED))}


def test_a_run_has_the_tables_of_the_cpu(config: Any, on_cpu: dict[str, Tables]) -> None:
    """On the second of two GPUs, so that what goes to the first by mistake is seen."""
    with pretended(2) as gpus:
        found = ran(config("resident", "cuda:1", STUDIES))
        assert gpus.live[1] == 0, "models stay on the device after the run"
        assert gpus.peak[0] == 0, "another device was used"
    check_equal(found, on_cpu["all"])


def test_a_streamed_run_has_the_tables_of_the_cpu(config: Any, on_cpu: dict[str, Tables]) -> None:
    with pretended() as gpu, late(gpu) as streams:
        found = ran(config("on_gpu", "cuda", STREAMED, residency="stream"))
        assert gpu.live[0] == 0
    assert streams.errors == []
    for name in ("substitution", "similarity"):  # ranks of δ turn on the last bit
        pd.testing.assert_frame_equal(found[name], on_cpu["streamed"][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("residency", ["resident", "stream"])
def test_calls_take_no_more_memory_than_planned(residency: str, config: Any) -> None:
    peaks: dict[str, int] = defaultdict(int)

    def note(event: Any) -> None:
        if event["event"] == "call_done":
            kind = str(event["call"]).split()[0]
            peaks[kind] = max(peaks[kind], int(event["measured"]["peak_bytes"]))

    values = config(f"memory_{residency}", "cuda", STREAMED, residency=residency)
    with pretended() as gpu, late(gpu):
        planned = {kind.kind: kind.memory for kind in plan_run(parse_config(values)).kinds}
        ran(values, note)
    on_device = [kind for kind in ("capture", "substitute") if kind in planned]  # a similarity is a CPU's
    assert on_device
    for kind in on_device:
        assert planned[kind] / 3 < peaks[kind] <= planned[kind], kind


def test_settings_of_torch_are_as_before(config: Any) -> None:
    before = settings()
    with pretended():
        ran(config("settings", "cuda", {"substitution": {"widths": [4]}}))
    assert settings() == before


def settings() -> dict[str, object]:
    """What is set for the whole process, and would change the figures of later sweeps."""
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "reduced bf16": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "reduced fp16": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }
