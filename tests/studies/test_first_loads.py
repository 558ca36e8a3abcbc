"""A training that is sharded over processes: the first one alone reads the weights, and results are those of one process."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from two_processes import run_in_two

from raysweep.data.examples import Example
from raysweep.errors import RunError
from raysweep.models.checkpoint import describe
from raysweep.studies import first_loads, sharding
from raysweep.studies.finetune import finetune
from raysweep.studies.first_loads import Weights, load_on_first
from raysweep.studies.training import Lora, Recipe, Trained

WIDTH, LAYERS = 1024, 64
MEBIBYTE = 2**20
WITHIN = {"full": 1e-5, "lora": 0.02, "bf16": 0.02}  # trainings, and how close two processes come to one


def examples(n, seed):
    rng = np.random.default_rng(seed)
    return [Example(i, rng.integers(3, 64, 9), 3, "", "") for i in range(n)]


def recipe(name, batch):
    arguments = {
        "max_steps": 3,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_steps": 3,
        "save_steps": 2,
    }
    if name == "lora":
        return Recipe(arguments={**arguments, "bf16": True}, lora=Lora(r=3), dtype="bfloat16")
    if name == "bf16":
        return Recipe(arguments={**arguments, "bf16": True}, dtype="bfloat16")
    return Recipe(Trained("freeze", (1,)), arguments=arguments)


def trained(name, folder, base, batch):
    """Losses of a training, and how many tensors stayed as they were."""
    done = finetune(
        base, Tokenizer(), examples(16, 0), examples(5, 1), recipe(name, batch), folder / name, strategy="fsdp"
    )
    return {"rows": done.rows.to_dict("list"), "frozen": done.frozen, "resumed": done.resumed_from}


class Tokenizer:
    """What is written next to kept weights."""

    def save_pretrained(self, folder):
        Path(folder).mkdir(exist_ok=True)


def in_two(rank, folder, out):
    """In each of two processes: train, resume from step 2, and tell which weight files were opened; then load for memory."""
    opened = []
    base = describe(folder)
    grown = grow(rank)
    sys.addaudithook(
        lambda event, arguments: opened.append(str(arguments[0])) if event in ("open", "os.open") else None
    )
    first = {name: trained(name, Path(out), base, 2) for name in WITHIN}
    files = [path for path in opened if path.startswith(folder) and path.endswith(".safetensors")]
    again = {name: trained(name, Path(out), base, 2) for name in ("lora",)}
    return {"first": first, "again": again, "files": files, "grown": grown}


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """A small checkpoint with tied embeddings."""
    folder = tmp_path_factory.mktemp("base")
    tiny("llama", 3, tie_word_embeddings=True, initializer_range=0.1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two(base, tmp_path_factory):
    """What `in_two` told in both processes, by rank."""
    folder = tmp_path_factory.mktemp("two")
    return run_in_two(__file__, "in_two", folder / "told", str(base), str(folder / "trained"))


def test_the_first_process_alone_opens_files_of_weights(two):
    assert two[0]["files"]
    assert two[1]["files"] == []


@pytest.mark.parametrize("name", list(WITHIN))
def test_losses_are_those_of_one_process(two, base, tmp_path, name):
    alone = trained(name, tmp_path, describe(str(base)), 4)
    for run in ("first", "again"):
        if name not in two[0][run]:
            continue
        ours, theirs = two[0][run][name], alone
        assert (ours["rows"]["step"], ours["rows"]["split"]) == (theirs["rows"]["step"], theirs["rows"]["split"])
        np.testing.assert_allclose(ours["rows"]["loss"], theirs["rows"]["loss"], atol=WITHIN[name], rtol=0)
        assert (ours["frozen"], ours["resumed"]) == (alone["frozen"], 2 if run == "again" else None)


# --- memory -------------------------------------------------------------------------------------------------------


def made(device):
    """Layers of 4 MiB each, 256 MiB in all; one more of a single row, and tables of which one is not stored."""
    with torch.device(device):
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)), nn.Linear(WIDTH, 1))
        model.register_buffer("table", torch.arange(5.0))
        model.register_buffer("counts", torch.arange(3) + 7, persistent=False)
    return model


def peak():
    """The most memory that the process has had since `forget_peak`, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def grow(rank):
    """How much a process grows while it gets its shards, in MiB, and what they are."""
    from torch.distributed.fsdp import fully_shard

    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    model = load_on_first(lambda: made("cpu"), lambda: made("meta"))
    weights = Weights(model)
    first = [parameter[:1].detach().clone() for parameter in model.parameters()] if rank == 0 else []
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    weights.distribute(model, torch.device("cpu"))
    grown = peak() - before
    matrices = [parameter.full_tensor() for parameter in model.parameters()]
    same = all(torch.equal(matrix[:1], row) for matrix, row in zip(matrices, first, strict=False))
    sums = [float(matrix.double().sum()) for matrix in matrices]
    rows = [len(parameter.to_local()) for parameter in model.parameters()]
    return {"grown": grown, "same": same, "sums": sums, "rows": rows, "tables": [b.tolist() for b in model.buffers()]}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_process_that_does_not_load_holds_its_shards_only(two):
    first, second = (told["grown"] for told in two)
    whole = LAYERS * WIDTH * WIDTH * 4 / MEBIBYTE
    assert first["grown"] > whole
    assert whole / 2 <= second["grown"] < 0.75 * whole


def test_every_process_gets_its_rows_and_all_tables(two):
    first, second = (told["grown"] for told in two)
    assert first["same"]
    assert first["sums"] == second["sums"]
    assert (first["rows"][-2:], second["rows"][-2:]) == ([1, 1], [0, 0])
    assert first["tables"] == second["tables"] == [[0, 1, 2, 3, 4], [7, 8, 9]]


# --- one process --------------------------------------------------------------------------------------------------


def test_what_loading_raises_is_raised_on_every_process(monkeypatch):
    monkeypatch.setattr(first_loads, "rank", lambda: 1)
    monkeypatch.setattr(first_loads, "first_decides", lambda decide: (_ for _ in ()).throw(RunError("a damaged file")))
    with pytest.raises(RunError, match="a damaged file"):
        load_on_first(lambda: pytest.fail("the first process loads"), lambda: pytest.fail("nothing was loaded"))


def test_weights_take_the_first_models_shapes_dtypes_and_ties(tiny, monkeypatch):
    loaded = tiny("llama", 2, tie_word_embeddings=True)
    loaded.model.norm.to(torch.float64).requires_grad_(False)
    described = first_loads._describe(loaded)
    with torch.device("meta"):
        other = type(loaded)(loaded.config)
    first_loads._reserve(other, described)
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert (other.model.norm.weight.dtype, other.model.norm.weight.requires_grad) == (torch.float64, False)
    theirs = {name: (value.shape, value.device.type) for name, value in loaded.state_dict().items()}
    assert {name: (value.shape, value.device.type) for name, value in other.state_dict().items()} == theirs
    places = [parameter.data_ptr() for parameter in other.parameters()]
    assert len(set(places)) == len(places), "accelerate knows parameters by their addresses"
    monkeypatch.setattr(sharding, "rank", lambda: 1)
    with pytest.raises(
        RunError, match=r"differ in 9 tensors, model\.layers\.2\.input_layernorm\.weight among them; the"
    ):
        first_loads._reserve(tiny("llama", 3, tie_word_embeddings=True), described)
