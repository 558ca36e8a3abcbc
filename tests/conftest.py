"""Small random models of the tested architectures, pairs of them, and examples that fit them.

Weights are drawn wide, so that putting a layer back moves a loss by far more than any tolerance in these tests.
"""

from __future__ import annotations

import atexit
import copy
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from command_line import Result
from s3_server import CREDENTIALS, S3, serve

from raysweep.data.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VOCABULARY = 320
CONTEXT = 64
BLOCKS = {"llama": "model.layers", "qwen3": "model.layers", "gpt2": "transformer.h", "falcon": "transformer.h"}
TEXTS = ["Name a red fruit.", "A: cherry", "Cherries are red; limes are green.", "2 + 3 = 5", "one two three"] * 4


def _config(kind: str, layers: int, width: int, **changes: Any) -> Any:
    import transformers as hf

    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    rotary = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    grouped = {**rotary, "intermediate_size": 40, "num_key_value_heads": 2, "tie_word_embeddings": False}
    if kind == "llama":
        return hf.LlamaConfig(**(shared | grouped | changes))
    if kind == "qwen3":
        return hf.Qwen3Config(**(shared | grouped | {"head_dim": 12} | changes))
    if kind == "gpt2":
        sizes = {"n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": CONTEXT}
        return hf.GPT2Config(**(shared | sizes | changes))
    if kind == "falcon":
        return hf.FalconConfig(**(shared | rotary | changes))
    raise KeyError(kind)


def pytest_configure() -> None:
    """Ray's workers are forked from a warm process: see warm/sitecustomize.py. One serves all of pytest's own workers.

    Plans read all weights: a test that wants the cache of digests switches it on.
    """
    os.environ["RAYSWEEP_DIGEST_CACHE"] = "off"
    if "RAYSWEEP_WARM" not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="rs-warm-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        (folder / "owner").write_text(str(os.getpid()))
        above = [str(Path(__file__).parent / "warm"), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ |= {"RAYSWEEP_WARM": str(folder), "PYTHONPATH": os.pathsep.join(above)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, lest one is left to a single process in the end."""
    long = ("test_readme", "test_types", "test_ray_", "test_s3_run", "test_real_model")
    items.sort(
        key=lambda item: next((at for at, name in enumerate(long) if item.path.name.startswith(name)), len(long))
    )


def pytest_collection_finish() -> None:
    """What imports have made is there to stay: no collection, of which tests make many, is to go over it again."""
    import transformers.modeling_utils  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., PreTrainedModel]:
    """tiny(kind, layers=4, width=16, seed=0, **config) builds a random model, in evaluation mode and float32."""

    def build(kind: str, layers: int = 4, width: int = 16, seed: int = 0, **changes: Any) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(_config(kind, layers, width, **changes)).eval()

    return build


@pytest.fixture(scope="session")
def tiny_pair(tiny: Callable[..., PreTrainedModel]) -> Callable[..., tuple[PreTrainedModel, PreTrainedModel]]:
    """tiny_pair(kind, …) builds (base, tuned), as `tiny`; tuned is the base with noise on every parameter it has."""

    def build(kind: str, layers: int = 4, seed: int = 0, **more: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
        import torch

        base = tiny(kind, layers, seed=seed, **more)
        tuned = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return base, tuned

    return build


@pytest.fixture(scope="session")
def random_examples() -> Callable[..., list[Example]]:
    """random_examples(n=6, seed=0, longest=24) draws examples of unlike lengths, ids 0, 3, 6, …"""

    def draw(n: int = 6, seed: int = 0, longest: int = 24) -> list[Example]:
        rng = np.random.default_rng(seed)
        examples = []
        for index in range(n):
            length = int(rng.integers(3, longest + 1))
            tokens = rng.integers(0, VOCABULARY, length)
            examples.append(Example(3 * index, tokens, int(rng.integers(1, length)), "", ""))
        return examples

    return draw


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with a chat template, of the tiny models' vocabulary; not to be changed by a test."""
    from raysweep.lab.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS, vocabulary=VOCABULARY)


@pytest.fixture(scope="session")
def block_path() -> dict[str, str]:
    """Where each kind of tiny model keeps its decoder layers."""
    return BLOCKS


@pytest.fixture
def raysweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """raysweep("run", …) calls the entry point in this process."""
    from raysweep import cli

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["raysweep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Result(int(ended.value.code or 0), said.out, said.err)

    return call


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3]:
    """moto's S3 server, started once."""
    with serve() as s3:
        yield s3


@pytest.fixture
def s3(s3_process: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """The S3 server, failing nothing until told to, with credentials for it in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    yield s3_process
    s3_process.fail(0)
