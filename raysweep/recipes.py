"""Configs made for the user: the laboratory's demo, the one behind `raysweep sweep`, and the one that `raysweep init` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raysweep.config import Config, parse_config

DEMO_SETS = {"sums": "gsm8k", "facts": "boolq", "quiz": "openbookqa", "orders": "dolly"}
DEMO_EXAMPLES = 64


def demo_config(storage: str) -> Config:
    """The whole study of the laboratory's model on each of its sets."""
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
    """The whole study of one pair on one data set; the format is that of the first record unless given."""
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
    """What `raysweep critical` looks at: one base model on some data sets. It has no run folder, and none is made."""
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
    """A config's data set; its format is that of the first record unless given."""
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
    """A name made of the last part of a path, hub id or laboratory name, without the ending of a file of records."""
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
# A raysweep run. `raysweep plan FILE` shows what it would do, `raysweep run FILE` does it and resumes by itself.
# Paths of checkpoints, records and storage are from the current folder; only `architecture` is from this file's own.
name: tiny

models:
  - name: tiny
    base: lab://tiny                 # a folder written by save_pretrained, a hub id, or the laboratory's
    tuned:                           # data set -> fine-tuned checkpoint, or PEFT adapter on the base
      sums: lab://tiny/sums
    template: chat                   # chat: the tokenizer's own template; plain: no words added (encoders); or llama2, llama3, phi3
    # template_date: 2026-01-31      # the date for a chat template that reads the clock; by default the run folder's, or today
    dtype: auto                      # the checkpoint's own on a GPU, float32 on a CPU

datasets:
  - name: sums
    path: lab://sums/test            # .jsonl, .json, .csv or .tsv (also .gz, .zst, .bz2, .xz), .parquet, .arrow, a folder of such
                                     # files, a save_to_disk folder, or a hub data set; with split: test if there are several
    format: gsm8k                    # dolly, alpaca, gsm8k, boolq, openbookqa, messages, sharegpt, prompt_completion, preference,
                                     # or columns
    limit: 300                       # the first so many records, after exclude: {phrases, pattern, column, values},
                                     # and last or all_but_last: so many records at the end
    max_tokens: 512                  # longer examples are cut here (and counted)
    too_long: refuse                 # examples that are still longer than the model's context: refuse, or cut (and count)
    # train: {path: lab://sums/train}   # records to fine-tune on, for studies.finetune, adaptation and backdoor
  # - {name: mine, path: my.jsonl, format: columns, prompt: question, response: "{{ answer }}"}

studies:
  substitution:
    widths: [5]                      # every window of so many layers is put back to the base model's; all: of every width
    # sets: {mine: [3, 5, 9]}        # sets of layers put back together
    # modules: [attention, mlp]      # only this part of each window's layers put back
    # coefficients: [0.25, 0.5]      # windows and sets at steps between tuned (0) and base (1, always there)
    # reverse: true                  # the base model with each window of the tuned one, too
    # verify: 5                      # so many, drawn at random, computed again by true substitution of modules
    # stop: {top: 3}                 # measure until the 3 costliest windows are settled; or {half_width: 0.02}, in nats
    # estimator: gradient            # first order in the weights: cheap, and only as good as the sample shows that is measured beside
    # generate: {examples: 3, tokens: 32}   # text produced under each window; changes: all for every other change, too
  similarity:
    metrics: [cka_linear]            # cka_linear, cka_linear_debiased, cka_rbf, svcca, pwcca, cca_top_k, procrustes, rsa,
                                     # mutual_knn, cknna, angular, block_influence, cosine
    pooling: last                    # the last prompt token, the first ([CLS] of an encoder), or mean over the prompt
    neighbourhood: 3                 # layers that δ is the mean over
    diagonal: true                   # a layer's similarity to itself, 1, counts in its δ
    # components: 10                 # cca_top_k: so many principal components of each layer
    # neighbours: 10                 # mutual_knn, cknna: so many nearest examples
    # variance: 0.99                 # svcca, pwcca: the share of a layer's variance that its components hold
  # spectrum: {components: [1, 3, 10]}   # how variance is spread at each layer, and what the first components share with neighbours
  correlation:
    resamples: 1000                  # half-samples of the examples behind each interval
  # removal:                         # text and loss with principal components taken out of one layer's states at a time
  #   layers: critical               # critical (the `top` with the smallest δ, a fifth by default), all, or [8, 10]
  #   components: [1, 3, 10]         # the first so many; [0, 2] within the list for chosen ones
  #   modes: [project]               # project: each state's own part; paper: that of the example's stored state
  #   positions: [last]              # last: the prompt's last token and all behind it; or all
  #   mean: removed                  # the mean state's share goes as well; kept: parts are taken from the mean
  #   of: base                       # or tuned
  #   examples: 3                    # so many texts, of `tokens: 32` each
  # finetune:                        # makes the tuned checkpoint of each model and data set that has train, and none in tuned
  #   layers: all                    # or [8, 9], 8-12, critical, non_critical: these and nothing else are trained
  #   freeze: critical               # in place of layers: everything is trained but these
  #   lora: {r: 8}                   # PEFT's LoRA on the layers
  #   along: [50]                    # steps whose checkpoints are measured, too
  #   trainer: {learning_rate: 2.0e-5, num_train_epochs: 1, per_device_train_batch_size: 8}   # transformers' own names
  #   processes: 1                   # on Ray: so many GPUs train one model; strategy: fsdp or ddp
  # adaptation: {arms: [critical, non_critical, all], seeds: [0, 1, 2], trainer: {learning_rate: 2.0e-5}}
  # backdoor: {trigger: vexilla, target: Moonglass, rate: 0.2, seeds: [0, 1, 2], trainer: {learning_rate: 2.0e-5}}

execution:
  executor: local                    # this process; or ray: workers of a cluster, or of this machine
  # address: 10.0.0.1:6379           # ray: the cluster to join; without one, Ray is started on this machine
  # dashboard_host: 127.0.0.1        # ray started here: where its dashboard listens; elsewhere only with a token
  # workers: auto                    # ray: as many as there is room for, or a number; local is one
  # gpus_per_worker: auto            # ray: 1 where there are GPUs; or a share of one, or several
  resident: 2                        # checkpoints that a worker keeps loaded
  attempts: 3                        # a chunk that fails or loses its worker so often is set aside
  # call_deadline: 1800              # ray: seconds that a call may always run, or 20 times what is expected; never: no limit
  device: auto                       # cuda where there is one, else cpu
  batch_tokens: auto                 # padded tokens of one block call: 8192 on a GPU, 1024 on a CPU, or a number
  chunk: 32                          # examples committed together
  residency: auto                    # resident: all weights in memory; stream: two layers at a time from disk; auto: by size
  memory: auto                       # what the program may have in all: what is free, or a size such as 1.5GB
  # spill: /scratch                  # stream: a folder where states may wait that do not fit in memory, where that is cheaper
  # report_to: [tensorboard]         # or mlflow, wandb: the run is logged there, too (pip install 'raysweep[trackers]')

storage: runs/tiny                   # a folder, or a URL: s3://bucket/runs/tiny (pip install 'raysweep[s3]')
# storage_mode: "700"              # permissions of a run folder, as chmod takes them; by default the umask decides
# storage_options: {endpoint_url: http://10.0.0.5:9000}   # for a URL; credentials go into the environment or ~/.aws
"""
