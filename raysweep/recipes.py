"""Configs that raysweep writes: of the demo, of `raysweep sweep` and `raysweep critical`, and of `raysweep init`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raysweep.config import Config, parse_config

DEMO_SETS = {"sums": "gsm8k", "facts": "boolq", "quiz": "openbookqa", "orders": "dolly"}
DEMO_EXAMPLES = 64


def demo_config(storage: str) -> Config:
    """Return the config of all studies of the laboratory's model, on each of its data sets."""
    return parse_config(
        {
            "name": "demo",
            "models": [
                {"name": "tiny", "base": "lab://tiny", "tuned": {name: f"lab://tiny/{name}" for name in DEMO_SETS}}
            ],
            "datasets": [
                {"name": name, "path": f"lab://{name}/test", "format": form, "limit": DEMO_EXAMPLES}
                for name, form in DEMO_SETS.items()
            ],
            "studies": {
                "substitution": {"widths": [5], "generate": {"examples": 1, "tokens": 20}},
                "similarity": {"metrics": ["cka_linear"]},
                "correlation": {},
            },
            "storage": storage,
        }
    )


def sweep_config(
    base: str,
    tuned: str,
    data: str,
    *,
    format: str | None,
    template: str,
    widths: list[int] | Literal["all"],
    limit: int | None = None,
    split: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
    storage: str | None = None,
) -> Config:
    """Return the config of all studies of one pair on one data set; without a `format` it is detected from the first record."""
    dataset = _dataset(data, format=format, limit=limit, split=split, prompt=prompt, response=response)
    name = dataset["name"]
    whole = "-".join(dict.fromkeys(part[:32] for part in (name_of(base), name_of(tuned), name)))
    return parse_config(
        {
            "name": whole,
            "models": [{"name": name_of(base), "base": base, "tuned": {name: tuned}, "template": template}],
            "datasets": [dataset],
            "studies": {"substitution": {"widths": widths}, "similarity": {}, "correlation": {}},
            "storage": storage or f"runs/{whole}",
        }
    )


def critical_config(
    model: str,
    data: Sequence[str],
    *,
    format: str | None,
    template: str,
    limit: int | None = None,
    split: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
    template_date: str | None = None,
    similarity: Mapping[str, Any],
    execution: Mapping[str, Any],
) -> Config:
    """Return the config of `raysweep critical`: one base model on some data sets. It has no run folder, and none is made."""
    datasets: list[dict[str, Any]] = []
    for source in data:
        dataset = _dataset(source, format=format, limit=limit, split=split, prompt=prompt, response=response)
        taken = {other["name"] for other in datasets}
        names = (f"{dataset['name']}{end}" for end in ("", *(f"-{copy}" for copy in range(2, len(data) + 2))))
        datasets.append({**dataset, "name": next(name for name in names if name not in taken)})
    return parse_config(
        {
            "name": "critical",
            "models": [{"name": name_of(model), "base": model, "template": template, "template_date": template_date}],
            "datasets": datasets,
            "studies": {"similarity": dict(similarity)},
            "execution": dict(execution),
            "storage": "unused",
        },
        where="raysweep critical",
    )


def _dataset(
    data: str,
    *,
    format: str | None,
    limit: int | None,
    split: str | None,
    prompt: str | None,
    response: str | None,
) -> dict[str, Any]:
    """Return a config's data set; without a `format` it is detected from the first record."""
    if format is None and (prompt is not None or response is not None):
        format = "columns"
    if format is None:
        from raysweep.data.sources import found_format

        format = found_format(data, split=split)
    from raysweep.data.files import stem_of

    name = name_of(data if stem_of(Path(data).name) not in ("test", "train") else str(Path(data).parent))
    dataset: dict[str, Any] = {"name": name, "path": data, "format": format, "limit": limit, "split": split}
    dataset |= {"prompt": prompt, "response": response}
    return {key: value for key, value in dataset.items() if value is not None}


def name_of(source: str) -> str:
    """Return a name made of the last part of a path, hub id or laboratory name, without the ending of a file of records."""
    from raysweep.data.files import stem_of

    stem = stem_of(Path(source.rstrip("/")).name)  # Llama-3.1-8B has a dot, and no ending
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem).strip("._-")
    return (clean or "data")[:48]


MINIMAL = """\
# The shortest raysweep config that runs. `raysweep init FILE` writes one with every key explained.
name: tiny
models:
  - name: tiny
    base: lab://tiny                 # the base model: a folder, a hub id, or the laboratory's
    tuned: {sums: lab://tiny/sums}   # data set: the checkpoint that was fine-tuned on it
datasets:
  - {name: sums, path: lab://sums/test, format: gsm8k}
studies: {substitution: {}, similarity: {}, correlation: {}}
storage: runs/tiny                   # the run folder
"""

TEMPLATE = """\
# A raysweep run. `raysweep plan FILE` shows what it would do and cost. `raysweep run FILE` runs it, or resumes it.
# Paths of checkpoints, records and storage are relative to the current folder. Only `architecture` is relative to this file's folder.
name: tiny

models:
  - name: tiny
    base: lab://tiny                 # the base model: a folder written by save_pretrained, a hub id, or the laboratory's
    tuned:                           # data set: the checkpoint that was fine-tuned on it, or a PEFT adapter on the base
      sums: lab://tiny/sums
    template: chat                   # prompt template: chat (the tokenizer's), plain (no words added), llama2, llama3 or phi3
    # template_date: 2026-01-31      # date for a chat template that reads the clock; default: the one in the run folder, or today
    dtype: auto                      # auto: the checkpoint's own dtype on a GPU, float32 on a CPU

datasets:
  - name: sums
    path: lab://sums/test            # .jsonl, .json, .csv or .tsv (also .gz, .zst, .bz2, .xz), .parquet, .arrow, a folder of such
                                     # files, a save_to_disk folder, or a hub data set; if it has several splits: split: test
    format: gsm8k                    # dolly, alpaca, gsm8k, boolq, openbookqa, messages, sharegpt, prompt_completion, preference,
                                     # or columns
    limit: 300                       # use the first 300 records, after exclude: {phrases, pattern, column, values},
                                     # and after last or all_but_last (a number of records at the end)
    max_tokens: 512                  # cut longer examples here, and count them
    too_long: refuse                 # examples that are still longer than the model's context: refuse, or cut (and count)
    # train: {path: lab://sums/train}   # records to fine-tune on, for studies.finetune, adaptation and backdoor
  # - {name: mine, path: my.jsonl, format: columns, prompt: question, response: "{{ answer }}"}

studies:
  substitution:                      # replace layers of the tuned model with the base model's, and measure the test loss
    widths: [5]                      # layers in a window; every window of each width is replaced. all: every width
    # sets: {mine: [3, 5, 9]}        # sets of layers to replace together
    # modules: [attention, mlp]      # replace only this part of each window's layers
    # coefficients: [0.25, 0.5]      # windows and sets at steps between the tuned (0) and the base weights (1, always included)
    # reverse: true                  # also put each window of the tuned model into the base model
    # verify: 5                      # recompute 5 windows, chosen at random, by actually swapping the modules
    # stop: {top: 3}                 # measure until the 3 costliest windows are settled; or {half_width: 0.02}, in nats
    # estimator: gradient            # estimate to first order in the weights: cheap; a random sample is measured to show the error
    # generate: {examples: 3, tokens: 32}   # text generated with each window replaced; changes: all for every other change, too
  similarity:                        # how the base model's representations change from layer to layer
    metrics: [cka_linear]            # cka_linear, cka_linear_debiased, cka_rbf, svcca, pwcca, cca_top_k, procrustes, rsa,
                                     # mutual_knn, cknna, angular, block_influence, cosine
    pooling: last                    # state of an example: last prompt token, first ([CLS] of an encoder), or mean of the prompt
    neighbourhood: 3                 # layers that δ averages over
    diagonal: true                   # include each layer's similarity to itself, which is 1, in its δ
    # components: 10                 # cca_top_k: number of principal components of each layer
    # neighbours: 10                 # mutual_knn, cknna: number of nearest examples
    # variance: 0.99                 # svcca, pwcca: share of a layer's variance that its components hold
  # spectrum: {components: [1, 3, 10]}   # how variance is spread at each layer, and what neighbouring layers share of it
  correlation:                       # do layers with a small δ cost most?
    resamples: 1000                  # half-samples (random halves of the examples) behind each interval
  # removal:                         # text and loss after principal components are removed from one layer's states at a time
  #   layers: critical               # critical (the `top` with the smallest δ, a fifth by default), all, or [8, 10]
  #   components: [1, 3, 10]         # the first 1, 3 and 10 components; a list inside the list, [0, 2], names components
  #   modes: [project]               # project: the component of each state; paper: the one of the example's stored state
  #   positions: [last]              # last: the prompt's last token and all after it; or all
  #   mean: removed                  # removed: the mean state's part is removed, too; kept: it stays
  #   of: base                       # or tuned
  #   examples: 3                    # texts to generate, of `tokens: 32` each
  # finetune:                        # makes a tuned checkpoint for each model and data set that has train but none in tuned
  #   layers: all                    # layers to train: all, [8, 9], 8-12, critical or non_critical
  #   freeze: critical               # instead of layers: train everything except these
  #   lora: {r: 8}                   # PEFT's LoRA on the layers
  #   along: [50]                    # steps whose checkpoints are measured, too
  #   trainer: {learning_rate: 2.0e-5, num_train_epochs: 1, per_device_train_batch_size: 8}   # transformers' own names
  #   processes: 1                   # on Ray: GPUs that train one model together; strategy: fsdp or ddp
  # adaptation: {arms: [critical, non_critical, all], seeds: [0, 1, 2], trainer: {learning_rate: 2.0e-5}}
  # backdoor: {trigger: vexilla, target: Moonglass, rate: 0.2, seeds: [0, 1, 2], trainer: {learning_rate: 2.0e-5}}

execution:
  executor: local                    # local: this process; ray: workers of a cluster, or of this machine
  # address: 10.0.0.1:6379           # ray: the cluster to join; without it, Ray is started on this machine
  # dashboard_host: 127.0.0.1        # if raysweep starts Ray: the address of its dashboard; any other needs a token
  # workers: auto                    # ray: as many as fit, or a number
  # gpus_per_worker: auto            # ray: 1 if there are GPUs; or a share of one, or several
  resident: 2                        # checkpoints that a worker keeps loaded
  attempts: 3                        # a chunk that fails, or loses its worker, 3 times is marked failed; the rest continues
  # call_deadline: 1800              # ray: seconds that a call may always run, or 20 times the expected time; never: no limit
  device: auto                       # auto: cuda if there is a GPU, else cpu
  batch_tokens: auto                 # padded tokens in one call of a layer: 8192 on a GPU, 1024 on a CPU, or a number
  chunk: 32                          # examples committed together
  residency: auto                    # resident: all weights in memory; stream: two layers at a time from disk; auto: by size
  memory: auto                       # memory for the program: auto (what is free), or a size such as 1.5GB
  # spill: /scratch                  # stream: a folder for states that do not fit in memory, if that is cheaper
  # report_to: [tensorboard]         # or mlflow, wandb: log the run there, too (pip install 'raysweep[trackers]')

storage: runs/tiny                   # the run folder, or a URL: s3://bucket/runs/tiny (pip install 'raysweep[s3]')
# storage_mode: "700"              # permissions of the run folder, as for chmod; by default the umask decides
# storage_options: {endpoint_url: http://10.0.0.5:9000}   # for a URL; credentials belong in the environment or ~/.aws
"""
