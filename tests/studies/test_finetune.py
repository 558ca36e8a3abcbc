"""Fine-tuning through the trainer: what is trained, what is measured, and that an interruption changes nothing."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from raysweep.data.examples import Example
from raysweep.errors import InputError, RunError
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import load_model
from raysweep.studies.finetune import Tuned, finetune, save_tuned
from raysweep.studies.trainer import IGNORED, response_losses
from raysweep.studies.training import Lora, Progress, Recipe, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUICK = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "eval_steps": 4,
}


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """The trainer collects garbage at each start; what was imported need not be looked through every time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A small random checkpoint of each architecture, 3 layers wide 16."""
    import transformers as hf

    shared: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    grouped = shared | sizes | {"num_key_value_heads": 2, "max_position_embeddings": 64}
    configs = {
        "llama": lambda: hf.LlamaConfig(**grouped),
        "qwen2": lambda: hf.Qwen2Config(**grouped, tie_word_embeddings=True),
        "gpt2": lambda: hf.GPT2Config(**shared, n_embd=16, n_layer=3, n_head=4, n_positions=64),
        "mixtral": lambda: hf.MixtralConfig(**grouped, num_local_experts=2, num_experts_per_tok=1),
    }
    made: dict[str, Checkpoint] = {}

    def base(kind: str) -> Checkpoint:
        if kind not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(kind)
            hf.AutoModelForCausalLM.from_config(configs[kind]()).save_pretrained(folder)
            made[kind] = describe(str(folder))
        return made[kind]

    return base


def examples(n: int, seed: int) -> list[Example]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 12, n)
    return [
        Example(i, rng.integers(3, 64, int(size)), int(rng.integers(1, size)), "", "") for i, size in enumerate(lengths)
    ]


TRAIN, TEST = examples(20, 0), examples(7, 1)


def tune(base: Checkpoint, tokenizer: Any, folder: Path, recipe: Recipe | None = None, **more: Any) -> Tuned:
    return finetune(base, tokenizer, TRAIN, TEST, recipe or Recipe(arguments=QUICK), folder, **more)


def plain_loss(model: Any, rows: Sequence[Example]) -> float:
    """The mean over examples of the mean over response tokens, one example at a time."""
    losses = []
    for example in rows:
        with torch.no_grad():
            logits = model(torch.from_numpy(example.tokens)[None]).logits[0].double()
        chosen = [-logits.log_softmax(-1)[t - 1, example.tokens[t]] for t in range(example.n_prompt, example.length)]
        losses.append(float(torch.stack(chosen).mean()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_examples_are_those_of_their_labelled_tokens_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 1500, 7).to(dtype), torch.randint(0, 7, (4, 1500))
    labels[0, :3], labels[1, :1400], labels[2, 1:1300] = IGNORED, IGNORED, IGNORED
    labels[3] = IGNORED
    logits[1, :1000] = float("nan")  # of a token without a label
    found = response_losses(logits, labels)
    for row in range(3):
        chosen = labels[row, 1:] != IGNORED
        values = cross_entropy(logits[row, :-1][chosen].float(), labels[row, 1:][chosen], reduction="none")
        assert float(found[row]) == pytest.approx(float(values.double().mean()), rel=1e-13)
    assert bool(found[3].isnan())


def moved(base: Checkpoint, tuned: Any) -> dict[str, bool]:
    before = load_model(base).state_dict()
    return {name: not torch.equal(before[name], value) for name, value in tuned.state_dict().items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize(
    "trained", [Trained(), Trained("only", (1,)), Trained("freeze", (0, 2))], ids=["all", "only", "freeze"]
)
def test_what_is_trained_changes_and_the_rest_is_bit_for_bit_the_base(
    kind: str,
    trained: Trained,
    bases: Any,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    block_path: dict[str, str],
) -> None:
    path = {**block_path, "qwen2": "model.layers"}[kind]
    tuned = tune(bases(kind), tokenizer, tmp_path, Recipe(trained, arguments=QUICK))
    changes = moved(bases(kind), tuned.model)
    for name, changed in changes.items():
        layer = int(name.removeprefix(f"{path}.").split(".")[0]) if name.startswith(f"{path}.") else None
        assert changed == (trained.trains_rest if layer is None else trained.trains(layer)), name
    tied = 0 if kind == "llama" else 1
    assert (tuned.changed, tuned.frozen) == (
        sum(changes.values()) - tied * trained.trains_rest,
        len(changes) - sum(changes.values()) - tied * (not trained.trains_rest),
    )
    assert tuned.unchanged == ()
    assert not any(parameter.requires_grad for parameter in tuned.model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("trained", [Trained(), Trained("only", (0, 2))], ids=["all", "only"])
def test_lora_trains_updates_of_the_chosen_layers_and_leaves_the_base_alone(
    kind: str, trained: Trained, bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tuned = tune(bases(kind), tokenizer, tmp_path / "run", Recipe(trained, arguments=QUICK, lora=Lora(r=2)))
    save_tuned(tuned, tokenizer, tmp_path / "adapter")
    adapter = describe(str(tmp_path / "adapter"))
    assert adapter.adapter
    names = {name.split(".lora_")[0] for name in adapter.shapes}
    assert {int(next(p for p in name.split(".") if p.isdigit())) for name in names} == (
        {0, 1, 2} if trained.mode == "all" else {0, 2}
    )
    assert tuned.changed == len(adapter.shapes) > 0
    assert tuned.frozen == len({id(p) for p in load_model(bases(kind)).parameters()})
    merged = load_model(adapter, base=bases(kind))
    touched = {name for name, changed in moved(bases(kind), merged).items() if changed}
    assert len(touched) == len(adapter.shapes) // 2
    assert plain_loss(merged, TEST) == pytest.approx(tuned.rows["loss"].iloc[-1], abs=1e-5)


def test_the_test_loss_is_the_plain_one_at_every_batch_size(
    bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    told: list[Progress] = []
    recipe = Recipe(
        arguments={**QUICK, "per_device_eval_batch_size": 3, "eval_steps": 3, "logging_steps": 3}, keep=(2, 3)
    )
    tuned = tune(bases("llama"), tokenizer, tmp_path, recipe, tell=told.append)
    rows = tuned.rows
    assert rows.columns.tolist() == ["step", "split", "loss"]
    test = rows[rows["split"] == "test"].set_index("step")["loss"]
    assert test.index.tolist() == [0, 3, 4]
    assert rows[rows["split"] == "train"]["step"].tolist() == [3, 4]
    assert test[0] == pytest.approx(plain_loss(load_model(bases("llama")), TEST), abs=1e-5)
    assert test[3] == pytest.approx(plain_loss(load_model(describe(str(tmp_path / "step-3"))), TEST), abs=1e-5)
    assert test[4] == pytest.approx(plain_loss(tuned.model, TEST), abs=1e-5)
    assert {path.name for path in tmp_path.glob("step-*")} == {"step-2", "step-3"}
    assert [(p.step, p.of, p.split) for p in told] == [
        (0, 4, "test"),
        (3, 4, "train"),
        (3, 4, "test"),
        (4, 4, "train"),
        (4, 4, "test"),
    ]
    save_tuned(tuned, tokenizer, tmp_path / "tuned")
    saved = describe(str(tmp_path / "tuned"))
    assert saved.config["use_cache"] is True
    assert plain_loss(load_model(saved), TEST) == pytest.approx(test[4], abs=1e-6)


@pytest.mark.parametrize("asked", [{"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"num_return_sequences": 3}])
def test_a_generation_config_that_contradicts_itself_goes_with_the_tuned_model(
    asked: dict[str, Any], bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(bases("llama").folder, folder)
    stored = json.dumps({"eos_token_id": [2, 9], **asked})
    (folder / "generation_config.json").write_text(stored)
    base = describe(str(folder))
    arguments = {**QUICK, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    tuned = tune(base, tokenizer, tmp_path / "run", Recipe(arguments=arguments, keep=(1,)))
    save_tuned(tuned, tokenizer, tmp_path / "tuned", base)
    for written in (tmp_path / "run" / "step-1", tmp_path / "tuned"):
        assert (written / "generation_config.json").read_text() == stored
        assert load_model(describe(str(written))).generation_config.eos_token_id == [2, 9]


def test_the_seed_alone_decides(bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    losses = [
        tune(bases("llama"), tokenizer, tmp_path / str(index), Recipe(seed=seed, arguments=QUICK)).rows["loss"].tolist()
        for index, seed in enumerate((1, 1, 2))
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_accumulation_bf16_and_checkpointing_go_by_the_trainers_names(
    bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    whole = tune(bases("llama"), tokenizer, tmp_path / "whole", Recipe(Trained("only", (1,)), arguments=QUICK))
    parts = {
        **QUICK,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
    }
    apart = tune(bases("llama"), tokenizer, tmp_path / "apart", Recipe(Trained("only", (1,)), arguments=parts))
    assert apart.rows["loss"].to_numpy() == pytest.approx(whole.rows["loss"].to_numpy(), abs=1e-4)
    half = tune(bases("llama"), tokenizer, tmp_path / "half", Recipe(arguments={**QUICK, "bf16": True}))
    assert next(half.model.parameters()).dtype == torch.float32
    assert half.rows["loss"].iloc[-1] != whole.rows["loss"].iloc[-1]
    pure = tune(bases("llama"), tokenizer, tmp_path / "pure", Recipe(arguments=QUICK, dtype="bfloat16"))
    assert next(pure.model.parameters()).dtype == torch.bfloat16


CUT = """
import os, signal, sys
from pathlib import Path
import torch
from raysweep.models.checkpoint import describe
from raysweep.studies.finetune import finetune
from raysweep.studies import trainer
sys.path.insert(0, sys.argv[1])
from test_finetune import LONG, TEST, TRAIN
torch.set_num_threads(1)
kill_at = int(sys.argv[4])
writing = trainer.mark_whole
def mark_whole(checkpoint, training):
    if checkpoint.name == f"checkpoint-{kill_at}":  # the trainer wrote its files; torn, for the list is not there
        (checkpoint / "optimizer.pt").write_bytes(b"torn")
        os.kill(os.getpid(), signal.SIGKILL)
    writing(checkpoint, training)
trainer.mark_whole = mark_whole
class Tokenizer: pass
finetune(describe(sys.argv[2]), Tokenizer(), TRAIN, TEST, LONG, Path(sys.argv[3]))
"""
LONG = Recipe(
    arguments={
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "save_steps": 4,
        "eval_steps": 4,
        "logging_steps": 1,
    }
)


def test_a_killed_training_goes_on_from_its_last_whole_checkpoint(
    bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = bases("gpt2")  # which has dropout, whose draws have to go on as well
    arguments = [str(Path(__file__).parent), base.source, str(tmp_path / "cut"), "12"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", CUT, *arguments], env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {"checkpoint-8", "checkpoint-12"}
    resumed = tune(base, tokenizer, tmp_path / "cut", LONG)
    assert resumed.resumed_from == 8
    whole = tune(base, tokenizer, tmp_path / "whole", LONG)
    assert (whole.resumed_from, whole.steps, resumed.steps) == (None, 15, 15)
    assert resumed.rows[["step", "split"]].equals(whole.rows[["step", "split"]])
    assert resumed.rows["loss"].to_numpy() == pytest.approx(whole.rows["loss"].to_numpy(), abs=1e-6)
    with pytest.raises(InputError, match=r"checkpoint-12 is of another training \(another base, recipe"):
        tune(base, tokenizer, tmp_path / "cut", replace(LONG, seed=5))


def test_an_interrupted_lora_training_goes_on(bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    recipe = Recipe(arguments={**QUICK, "save_strategy": "steps", "save_steps": 1}, lora=Lora(r=2, lora_dropout=0.2))
    whole = tune(bases("llama"), tokenizer, tmp_path / "whole", recipe)

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(bases("llama"), tokenizer, tmp_path / "cut", recipe, tell=stop)
    resumed = tune(bases("llama"), tokenizer, tmp_path / "cut", recipe)
    assert (resumed.resumed_from, resumed.changed) == (2, whole.changed)
    assert resumed.rows["loss"].to_numpy() == pytest.approx(whole.rows["loss"].to_numpy(), abs=1e-6)


def test_a_mixture_of_experts_is_resumed_with_its_experts(
    bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    recipe = Recipe(arguments={**QUICK, "save_strategy": "steps", "save_steps": 2})
    whole = tune(bases("mixtral"), tokenizer, tmp_path, recipe)
    resumed = tune(bases("mixtral"), tokenizer, tmp_path, recipe)
    assert resumed.resumed_from == 2
    assert resumed.rows["loss"].tolist() == pytest.approx(whole.rows["loss"].tolist(), abs=1e-6)


def test_a_loss_that_is_not_finite_ends_the_training(
    bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    arguments = {**QUICK, "learning_rate": 1e30, "max_grad_norm": 0, "eval_steps": 4}
    with pytest.raises(
        RunError,
        match=r"the training loss is nan at step 2, learning rate 1e\+30; the last finite one was [\d.]+ at step 1: lower",
    ):
        tune(bases("llama"), tokenizer, tmp_path / "train", Recipe(arguments=arguments))
    with pytest.raises(
        RunError,
        match=r"the test loss is nan at step 1, learning rate 1e\+30; the last finite one was 4\.\d+ at step 0: ",
    ):
        tune(bases("llama"), tokenizer, tmp_path / "test", Recipe(arguments={**arguments, "eval_steps": 1}))


class Reads(TorchDispatchMode):
    """Counts how often raysweep reads a tensor's value, which on a GPU waits for all that it has to do."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            files = [frame.filename for frame in traceback.extract_stack()]
            last = next(name for name in reversed(files) if "/raysweep/" in name or "/transformers/" in name)
            self.n += "/raysweep/" in last
        return func(*args, **(kwargs or {}))


def test_values_are_not_read_after_every_micro_batch(
    bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    counts = []
    for parts in (1, 4):
        arguments = {
            **QUICK,
            "per_device_train_batch_size": 4 // parts,
            "gradient_accumulation_steps": parts,
            "max_grad_norm": 0,
            "logging_steps": 4,
        }
        with Reads() as reads:
            tune(bases("llama"), tokenizer, tmp_path / str(parts), Recipe(arguments=arguments))
        counts.append(reads.n)
    assert counts[0] == counts[1] <= 6


def test_no_weights_are_kept_of_a_step_whose_loss_is_not_finite(
    bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    arguments = {**QUICK, "learning_rate": 1e30, "max_grad_norm": 0, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(RunError, match="the training loss is nan at step 2"):
        tune(bases("llama"), tokenizer, tmp_path, Recipe(arguments={**arguments, "logging_steps": 4}, keep=(2,)))
    assert not list(tmp_path.glob("step-*"))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_nothing_changed_is_told(bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none of the 30 trained tensors changed: is the learning rate 0"):
        tune(bases("llama"), tokenizer, tmp_path, Recipe(arguments={**QUICK, "learning_rate": 0}))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(Trained("only", (1, 3))), r"layer 3 cannot be chosen: '.*' has 3 decoder layers, 0 to 2"),
        (Recipe(Trained("freeze", (3, 7))), r"layers 3, 7 cannot be chosen"),
        (Recipe(Trained("only")), r"no layer of '.*' is chosen, so nothing would be trained"),
        (
            Recipe(keep=(5,), arguments={"max_steps": 4}),
            r"weights of step 5 are requested, but the training has 4 steps",
        ),
        (Recipe(Trained("freeze", (0,)), lora=Lora()), r"LoRA trains only chosen layers"),
        (
            Recipe(Trained("only", (0,)), lora=Lora(target_modules="all-linear")),
            r"'all-linear', but PEFT selects layers only",
        ),
        (Recipe(lora=Lora(target_modules=("nothing",))), r"LoRA does not fit '.*' \(model\.layers\): Target modules"),
        (Recipe(arguments={"lerning_rate": 1}), r"lerning_rate is not an argument .* did you mean 'learning_rate'\?"),
        (
            Recipe(arguments={"lr_scheduler_type": "cosin"}),
            r"trainer is refused by transformers' trainer: cosin is not a valid",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    recipe: Recipe, message: str, bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        tune(bases("llama"), tokenizer, tmp_path, recipe)


def test_no_examples_are_refused(bases: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no example with a response to train on"):
        finetune(bases("llama"), tokenizer, [], TEST, Recipe(), tmp_path)
    with pytest.raises(InputError, match="no example with a response to measure the loss on"):
        finetune(bases("llama"), tokenizer, TRAIN, [], Recipe(), tmp_path)
