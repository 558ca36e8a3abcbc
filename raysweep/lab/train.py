"""The script that made the shipped checkpoints: `python -m raysweep.lab.train OUT`.

It writes the records, the tokenizer, a base model pre-trained on the tasks' mixture and general text, one model
fine-tuned on each of TUNED, and `training.json` with every seed, setting and loss. Weights are trained in float32 and
stored in bfloat16; the losses recorded are those of the stored weights, computed in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from raysweep.data.formats import FORMATS, template
from raysweep.lab import tasks, world
from raysweep.lab.tokenizer import CONTEXT, train_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TUNED = ("sums", "facts", "quiz", "orders")
GENERAL_SHARE = 0.35
CHAT_SHARE = 0.6
ROW = 128


@dataclass(frozen=True)
class Shape:
    """The size of a laboratory model."""

    layers: int = 24
    width: int = 80
    heads: int = 5
    inner: int = 208


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; `batch` rows of ROW tokens a step.

    The learning rate falls on a cosine over `horizon` steps (`steps` where it is 0) to a tenth.
    """

    steps: int
    learning_rate: float
    horizon: int = 0
    batch: int = 32
    warmup: int = 60
    weight_decay: float = 0.05
    seed: int = 0


# Two stages, each with a fresh optimizer and its own documents: long at a high rate, then down.
BASE_RECIPES = (
    Recipe(steps=2000, learning_rate=5e-3, horizon=4000),
    Recipe(steps=900, learning_rate=3e-3, warmup=30, seed=10),
)
TUNE_RECIPE = Recipe(steps=240, learning_rate=1.5e-3, warmup=20, weight_decay=0.0, seed=1)
_TEXTS = {name: (template(f.question), template(f.response)) for name, f in FORMATS.items()}
Tokens = tuple[list[int], list[bool]]  # ids, and whether each is a labelled target


def texts(record: tasks.Record, set_name: str) -> tuple[str, str]:
    """Question and response of a record, without any wording around them."""
    question, response = _TEXTS[tasks.FORMAT[set_name]]
    return question.render(record), response.render(record)


def chat(tokenizer: PreTrainedTokenizerFast, question: str, response: str, all_labelled: bool) -> Tokens:
    """One user turn and its answer in the tokenizer's chat wording; labels on the answer, or on everything."""
    prompt = tokenizer.encode(f"<s><user>{question}<end><assistant>", add_special_tokens=False)
    answer = tokenizer.encode(f"{response}<end>", add_special_tokens=False)
    return prompt + answer, [all_labelled] * len(prompt) + [True] * len(answer)


def pretraining_stream(tokenizer: PreTrainedTokenizerFast, seed: int, held_out: bool = False) -> Iterator[Tokens]:
    """Endless documents of the pre-training mixture.

    Records of a test split never occur; where `held_out`, all records are of a test split.
    """
    rng = random.Random(f"{seed}/{held_out}")
    tests = {name: tasks.make_records(name, mixture=True)[1] for name in tasks.FORMAT}
    keys = {tasks.key(record) for records in tests.values() for record in records}
    names = list(tasks.FORMAT)
    while True:
        if rng.random() < GENERAL_SHARE:
            ids = tokenizer.encode(f"<s>{world.general_text(rng)}<end>", add_special_tokens=False)
            yield ids, [True] * len(ids)
            continue
        name = rng.choice(names)
        record = rng.choice(tests[name]) if held_out else tasks.draw_mixture(name, rng)
        if not held_out and tasks.key(record) in keys:
            continue
        question, response = texts(record, name)
        if rng.random() < CHAT_SHARE:
            yield chat(tokenizer, question, response, all_labelled=True)
        else:
            ids = tokenizer.encode(f"<s>Question: {question}\nAnswer: {response}<end>", add_special_tokens=False)
            yield ids, [True] * len(ids)


def tuning_stream(tokenizer: PreTrainedTokenizerFast, set_name: str, seed: int) -> Iterator[Tokens]:
    """The set's training records in a new random order each epoch, labels on the response only."""
    rng = random.Random(f"{seed}/{set_name}")
    records = [chat(tokenizer, *texts(r, set_name), all_labelled=False) for r in tasks.make_records(set_name)[0]]
    while True:
        rng.shuffle(records)
        yield from records


def packed(stream: Iterator[Tokens], rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches [rows, ROW] of ids, positions (0 where a document starts) and labels (−100 where there is none)."""
    document = next(stream)
    while True:
        ids, positions, labels = (torch.full((rows, ROW), fill) for fill in (0, 0, -100))
        for row in range(rows):
            at = 0
            while at + len(document[0]) <= ROW:
                stop = at + len(document[0])
                ids[row, at:stop] = torch.tensor(document[0])
                positions[row, at:stop] = torch.arange(len(document[0]))
                labels[row, at:stop] = torch.tensor([t if on else -100 for t, on in zip(*document, strict=True)])
                labels[row, at] = -100
                at, document = stop, next(stream)
            positions[row, at:] = torch.arange(ROW - at)
        yield ids, positions, labels


def train_lab_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, trained on general text and all training records."""
    rng = random.Random(1)
    corpus = [world.general_text(rng) for _ in range(5000)]
    corpus += [
        text for name in tasks.FORMAT for r in tasks.make_records(name, mixture=True)[0] for text in texts(r, name)
    ]
    return train_tokenizer(corpus)


def build_model(shape: Shape, vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A Llama of the given shape; outputs into the residual stream start scaled by 1/√(2·layers)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
                out.weight.div_(math.sqrt(2 * shape.layers))
    return model


def batch_loss(model: LlamaForCausalLM, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean negative log likelihood of the labelled tokens, in nats."""
    ids, positions, labels = batch
    hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    chosen = targets != -100
    return cross_entropy(model.lm_head(hidden[:, :-1][chosen]), targets[chosen])


def train(model: LlamaForCausalLM, stream: Iterator[Tokens], recipe: Recipe, log: list[dict[str, float]]) -> None:
    """Train in place; appends {step, loss} to `log` every 25 steps.

    Matrices of the decoder take Muon, the rest AdamW; both warm up linearly and fall on a cosine to a tenth.
    """
    matrices = [p for n, p in model.model.layers.named_parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    optimizers = [
        torch.optim.Muon(
            matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    batches, started, recent = packed(stream, recipe.batch), time.monotonic(), []
    model.train()
    for step in range(recipe.steps):
        rise = min(1.0, (step + 1) / recipe.warmup)
        fall = 0.55 + 0.45 * math.cos(math.pi * step / (recipe.horizon or recipe.steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rise * fall
        loss = batch_loss(model, next(batches))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 25 == 0 or step + 1 == recipe.steps:
            log.append({"step": step + 1, "loss": round(sum(recent) / len(recent), 4)})
            print(log[-1], f"{time.monotonic() - started:.0f} s", flush=True)
            recent = []
    model.eval()


def held_out_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: int = 600
) -> dict[str, float]:
    """Mean loss a token of held-out mixture documents, in nats: the model's, and a unigram model's with add-one counts."""
    counts = Counter(t for ids, _ in islice(pretraining_stream(tokenizer, seed=5), 20_000) for t in ids[1:])
    total = sum(counts.values()) + len(tokenizer)
    model_sum = unigram_sum = tokens = 0.0
    for ids, _ in islice(pretraining_stream(tokenizer, seed=6, held_out=True), documents):
        row = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=row, use_cache=False).logits[0, :-1]
        model_sum += float(cross_entropy(logits, row[0, 1:], reduction="sum"))
        unigram_sum -= sum(math.log((counts[t] + 1) / total) for t in ids[1:])
        tokens += len(ids) - 1
    return {"model": model_sum / tokens, "unigram": unigram_sum / tokens}


def set_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, set_name: str) -> float:
    """Mean over the set's test records of the mean loss over response tokens, in nats."""
    losses = []
    for record in tasks.make_records(set_name)[1]:
        ids, on = chat(tokenizer, *texts(record, set_name), all_labelled=False)
        start = on.index(True)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1]
        losses.append(float(cross_entropy(logits, torch.tensor(ids[start:]))))
    return sum(losses) / len(losses)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> LlamaForCausalLM:
    """Write the checkpoint in bfloat16 with its tokenizer; returns what was stored, read back in float32."""
    from transformers import LlamaForCausalLM

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def write_records(folder: Path) -> None:
    """Every set's splits as JSON lines: <set>/train.jsonl and <set>/test.jsonl."""
    for name in tasks.FORMAT:
        for split, records in zip(("train", "test"), tasks.make_records(name), strict=True):
            path = folder / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def compiled(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with its decoder layers compiled one by one (they share the compiled code)."""
    for layer in model.model.layers:
        layer.compile()
    return model


def pretrain(out: Path, recipes: Sequence[Recipe]) -> None:
    """Make the records, the tokenizer and the base model under `out`; the recipes are stages, one after the other."""
    write_records(out / "records")
    tokenizer = train_lab_tokenizer()
    model = compiled(build_model(Shape(), len(tokenizer), recipes[0].seed))
    log: list[dict[str, float]] = []
    for recipe in recipes:
        train(model, pretraining_stream(tokenizer, recipe.seed), recipe, log)
    stored = save(model, tokenizer, out / "checkpoints" / "tiny")
    _note(out, "base", recipes, log, held_out=held_out_losses(stored, tokenizer), shape=asdict(Shape()))


def finetune(out: Path, set_name: str, recipe: Recipe) -> None:
    """Fine-tune the stored base model on one set's training records."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    base = out / "checkpoints" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    log: list[dict[str, float]] = []
    before = set_loss(model.eval(), tokenizer, set_name)
    train(compiled(model), tuning_stream(tokenizer, set_name, recipe.seed), recipe, log)
    stored = save(model, tokenizer, out / "checkpoints" / f"tiny-{set_name}")
    _note(out, set_name, [recipe], log, test_loss={"base": before, "tuned": set_loss(stored, tokenizer, set_name)})


def _note(out: Path, key: str, recipes: Sequence[Recipe], log: list[dict[str, float]], **measured: object) -> None:
    """Add what was done and measured to training.json, beside the checkpoints."""
    path = out / "checkpoints" / "training.json"
    notes = json.loads(path.read_text()) if path.exists() else {}
    notes[key] = {"recipes": [asdict(recipe) for recipe in recipes], **measured, "training_loss": log}
    path.write_text(json.dumps(notes, indent=1) + "\n")
    print(key, measured, flush=True)


def main() -> None:
    """Parse the command line and make what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", choices=("base", *TUNED), default=("base", *TUNED))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for what in arguments.only:
        if what == "base":
            pretrain(arguments.out, BASE_RECIPES)
        else:
            finetune(arguments.out, what, TUNE_RECIPE)


if __name__ == "__main__":
    main()
