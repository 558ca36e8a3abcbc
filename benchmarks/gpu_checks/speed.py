"""Time ÷ limit of each kind of work, in bfloat16 on the large random model.

The limit is what the work cannot be faster than at the rates that limits.py measured. Only real tokens count, so padding
makes the ratio worse. With --tiny the figures say nothing: the model is too small to load any processor.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from gpu_checks import limits, models
from gpu_checks.record import Setup
from raysweep.data.batches import labelled_positions, make_batches, pad
from raysweep.models.adapter import Adapter
from raysweep.numerics.cka import cka_matrix
from raysweep.studies.capture import capture_states
from raysweep.studies.generation import generate_text
from raysweep.studies.schedule import schedule
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raysweep.data.examples import Example

RESIDENT = (
    "sweep: time / limit",
    "sweep: time / plain forwards of as many layer applications",
    "sweep: real tokens / padded tokens",
    "capture: time / limit",
    "generation: time per token / limit",
    "CKA: time / limit",
)
STREAMED = ("streamed sweep: time / limit", "streamed sweep: time / resident sweep", "streamed capture: time / limit")
_SECONDS = "sweep: seconds"
_ROUNDS = 5


def layer_flops(model: PreTrainedModel, length: float) -> float:
    """Operations of one decoder layer on one token of a text of `length` tokens, on average.

    Two for each value of each matrix, and 4 · width · (length + 1) / 2 for attention: a token attends to itself and to
    all tokens before it, and each of them costs a product with its key and one with its value.
    """
    config = model.config
    weights = sum(weight.numel() for weight in model.model.layers[0].parameters() if weight.ndim == 2)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return 2 * weights + 4 * width * (length + 1) / 2


def head_flops(model: PreTrainedModel) -> float:
    """Operations of the head for one token: two for each value of its matrix."""
    return 2 * model.lm_head.weight.numel()


def applied_flops(model: PreTrainedModel, lengths: Sequence[int], applications: int) -> float:
    """Operations of `applications` layer applications on texts of these lengths."""
    return applications * sum(length * layer_flops(model, length) for length in lengths)


def sweep_flops(pair: Pair, examples: Sequence[Example], windows: Sequence[Window]) -> float:
    """Operations of a sweep: the schedule's layer applications on each text without its last token, and the head for each
    response token of each state behind the last layer."""
    plan, model = schedule(pair.n_layers, windows, pair.same), pair.tuned.model
    heads = len(plan.ends) * sum(example.n_tokens for example in examples) * head_flops(model)
    return applied_flops(model, [example.length - 1 for example in examples], plan.applications) + heads


def check_resident(setup: Setup) -> None:
    """Sweep, capture, generation and CKA with the models in memory.

    - sweep and capture: operations (see `sweep_flops`; a capture is one application of each layer to each prompt) ÷ the
      rate of a bf16 matmul.
    - plain forwards: the model's own batched forward over the same batches, with head and loss, alternating with the
      sweep; the ratio is of seconds per layer application.
    - generation: bytes of the weights that one token needs, the head and both versions of each layer that has two, ÷ the
      rate of device memory. Seconds per token are the difference between a longer text and a shorter one.
    - CKA: 2LN²D operations for the kernels of L layers and 2L²N² for their products ÷ the rate of a matmul as CKA uses it.
    """
    pair = Pair(*map(Adapter, models.large_models(setup)))
    examples, tokens = models.large_examples(setup), models.batch_tokens(setup)
    windows = windows_of_widths(pair.n_layers, [pair.n_layers // 3])
    _sweep(setup, pair, examples, windows, tokens)

    prompts = [example.n_prompt for example in examples]
    seconds = setup.median(lambda: capture_states(pair.base, examples, batch_tokens=tokens), _ROUNDS)
    limit = applied_flops(pair.base.model, prompts, pair.n_layers) / setup.value(limits.MATMUL)
    setup.add(RESIDENT[3], seconds / limit, note=f"{seconds:.4g} s")
    _generation(setup, pair, windows[:-1])
    _cka(setup)


def _sweep(setup: Setup, pair: Pair, examples: Sequence[Example], windows: Sequence[Window], tokens: int) -> None:
    lengths = [example.length - 1 for example in examples]
    batches = make_batches(lengths, tokens)

    @torch.no_grad()
    def forwards() -> None:
        for indices in batches:
            chosen = [examples[i] for i in indices]
            ids = torch.from_numpy(pad([example.tokens[:-1] for example in chosen])).to(setup.device)
            states = pair.tuned.model.model(input_ids=ids, use_cache=False).last_hidden_state
            rows, cols, targets = (torch.from_numpy(a).to(setup.device) for a in labelled_positions(chosen))
            for part, target in zip(states[rows, cols].split(512), targets.split(512), strict=True):
                cross_entropy(pair.tuned.model.lm_head(part).float(), target)

    swept, plain = setup.in_turn(
        _ROUNDS, 30, lambda: sweep_losses(pair, examples, windows, batch_tokens=tokens), forwards
    )
    seconds = statistics.median(swept)
    setup.kept[_SECONDS] = seconds
    limit = sweep_flops(pair, examples, windows) / setup.value(limits.MATMUL)
    setup.add(RESIDENT[0], seconds / limit, note=f"{seconds:.4g} s")
    more = schedule(pair.n_layers, windows, pair.same).applications / pair.n_layers
    ratios = [ours / (more * theirs) for ours, theirs in zip(swept, plain, strict=True)]
    setup.add(
        RESIDENT[1],
        statistics.median(ratios),
        note=f"{min(ratios):.3g} to {max(ratios):.3g} in {len(ratios)} rounds",
    )
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    setup.add(RESIDENT[2], sum(lengths) / padded)


def _generation(setup: Setup, pair: Pair, windows: Sequence[Window]) -> None:
    prompt = models.random_examples([16 if setup.tiny else 256], models.large_vocabulary(setup))
    few, many = (2, 4) if setup.tiny else (8, 40)

    def write(new_tokens: int) -> float:
        def work() -> None:
            generate_text(pair, models.Digits(), prompt, windows, new_tokens=new_tokens, batch_tokens=2**20)

        return setup.median(work, 3, 10)

    seconds = (write(many) - write(few)) / (many - few)
    versions = sum(len({window.version(layer) for window in windows}) for layer in range(pair.n_layers))
    layer = sum(weight.nbytes for weight in pair.tuned.blocks[0].parameters())
    read = versions * layer + pair.tuned.model.lm_head.weight.nbytes
    setup.add(
        RESIDENT[4],
        seconds / (read / setup.value(limits.COPY)),
        note=f"{seconds:.4g} s per token of {len(windows)} texts at once",
    )


def _cka(setup: Setup) -> None:
    layers, examples, width = (4, 70, 64) if setup.tiny else (16, 2000, 2048)
    states = torch.randn(layers, examples, width, device=setup.device)
    given = states if setup.cuda else states.numpy()
    seconds = setup.median(lambda: cka_matrix(given), 3)
    flops = 2 * layers * examples**2 * width + 2 * layers**2 * examples**2
    setup.add(RESIDENT[5], seconds / (flops / setup.value(limits.CKA_MATMUL)), note=f"{seconds:.4g} s")


def check_streamed(setup: Setup) -> None:
    """A sweep and a capture whose layers come from disk, the files in the page cache.

    The limit is the slowest of three: the operations at the rate of a bf16 matmul, and the layers' bytes at the rate of a
    file in the page cache and at that of a copy to the device. Streaming also digests each byte with SHA-256, which is in
    the time and not in the limit.
    """
    checkpoints = models.large_checkpoints(setup)
    pair = models.streamed_pair(checkpoints, "bfloat16", setup.device)
    examples, tokens = models.large_examples(setup), models.batch_tokens(setup)
    windows = windows_of_widths(pair.n_layers, [pair.n_layers // 3])
    rate, reads = setup.value(limits.MATMUL), min(setup.value(limits.DISK), setup.value(limits.PINNED))
    model = models.large_models(setup)[1]

    seconds = setup.median(lambda: sweep_losses(pair, examples, windows, batch_tokens=tokens), 3, 20)
    plan = schedule(pair.n_layers, windows, pair.same)
    flops = applied_flops(model, [example.length - 1 for example in examples], plan.applications)
    flops += len(plan.ends) * sum(example.n_tokens for example in examples) * head_flops(model)
    weights = sum(source.decoder_bytes for source in pair.sources)
    setup.add(STREAMED[0], seconds / max(flops / rate, weights / reads), note=f"{seconds:.4g} s")
    if _SECONDS in setup.kept:
        setup.add(STREAMED[1], seconds / setup.kept[_SECONDS])
    else:
        setup.missing(STREAMED[1], "the resident sweep was not timed")

    source = pair.sources[0]
    seconds = setup.median(
        lambda: capture_states(source.adapter, examples, batch_tokens=tokens, layers=source.layers), 3, 20
    )
    flops = applied_flops(model, [example.n_prompt for example in examples], pair.n_layers)
    setup.add(STREAMED[2], seconds / max(flops / rate, source.decoder_bytes / reads), note=f"{seconds:.4g} s")
    for each in pair.sources:
        each.close()
