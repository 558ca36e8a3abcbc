"""Random configs, records and checkpoints through the real path: nothing may come out but results and our own errors.

`RAYSWEEP_FUZZ_SECONDS` is the time for all of it (20 by default, `make fuzz` takes 60), `RAYSWEEP_FUZZ_SEED` chooses the
sequence. A failure prints what was put in and the two variables that make the one case again.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import time
import traceback
import warnings
from pathlib import Path

import pytest
import yaml

from raysweep import lab
from raysweep.api import run
from raysweep.config import load_config, parse_config
from raysweep.data.examples import Room, load_examples
from raysweep.data.formats import FORMATS
from raysweep.engine.cost import cost
from raysweep.engine.events import read_events
from raysweep.engine.inspection import resolve_device
from raysweep.engine.preparation import prepare
from raysweep.errors import RaysweepError
from raysweep.models.checkpoint import describe, limits
from raysweep.models.loading import load_tokenizer
from raysweep.models.pair import check_pair

SECONDS = float(os.environ.get("RAYSWEEP_FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("RAYSWEEP_FUZZ_SEED", "0"))
CASE = os.environ.get("RAYSWEEP_FUZZ_CASE")
SHARES = {"configs": 0.2, "files": 0.15, "runs": 0.35, "records": 0.2, "checkpoints": 0.1}

TEXTS = [
    "", " ", "a", "x" * 5000, "null", "~", "~nobody-here", "true", "é", "日本", "👩‍👩‍👧", "\u202eabc", "\0", "\ud800", "\uffff",
    "<script>alert('1')</script>", "{{ 7 * 7 }}", "{% for %}", "{{ x.y.z }}", "{{ 'a' * 3 }}", "{{ question + 1 }}", "a/b/c", "..",
    "../x", "lab://", "lab://tiny", "lab://sums/test", "lab://tiny/sums", "lab://facts/test", "s3://b/k", "/proc/none/x", "/dev/null",
    "cuda:7", "cpu", "auto", "columns", "messages", "boolq", "llama2", "cka_rbf", "mean", "cut", "$(x)", "%s %d", "\\", "\n", "-1",
]  # fmt: skip
NUMBERS = [
    0,
    1,
    2,
    3,
    -1,
    5,
    23,
    24,
    25,
    100,
    10**6,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
]

RECORD = {
    "question": "two plus three?", "answer": "five", "instruction": "say", "context": "it", "response": "yes", "input": "", "output": "no",
    "passage": "so", "question_stem": "which?", "choices": {"label": ["A", "B"], "text": ["one", "two"]}, "answerKey": "B", "fact1": "f",
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
}  # fmt: skip
CONFIG = {
    "name": "fuzz",
    "models": [
        {
            "name": "tiny",
            "base": "lab://tiny",
            "tuned": {"sums": "lab://tiny/sums"},
            "template": "chat",
            "dtype": "float32",
        }
    ],
    "datasets": [
        {
            "name": "sums",
            "path": "records.jsonl",
            "format": "gsm8k",
            "limit": 2,
            "max_tokens": 60,
            "too_long": "cut",
            "split": None,
            "prompt": None,
            "response": None,
        }
    ],
    "studies": {
        "substitution": {"widths": [5], "generate": None, "stop": {"top": 3, "confidence": 0.95, "seed": 0}},
        "similarity": {"metrics": ["cka_linear"], "pooling": "last", "neighbourhood": 3},
        "correlation": {"resamples": 10, "seed": 0, "drop_ends": 0},
    },
    "execution": {"executor": "local", "device": "cpu", "batch_tokens": "auto", "chunk": 2, "fuse": True},
    "storage": "run",
}
TRAINER = {"max_steps": 1, "per_device_train_batch_size": 1, "learning_rate": 1e-4}
TRAININGS = {
    "finetune": {"layers": "critical", "freeze": None, "seed": 0, "along": [], "top": 2, "lora": None, "trainer": TRAINER},
    "adaptation": {"arms": ["critical", "non_critical"], "seeds": [0], "top": 2, "trainer": TRAINER},
    "backdoor": {
        "trigger": "vexilla", "target": "no", "position": "before", "rate": 0.9, "arms": ["none", "freeze_critical"], "seeds": [0],
        "examples": 1, "tokens": 2, "top": 2, "keywords": {"any_of": ["no"]}, "pattern": {"regex": "n.*"}, "trainer": TRAINER,
    },
}  # fmt: skip


def config(rng: random.Random, often: int):
    """The config, one time in `often` with a study that trains."""
    values = copy.deepcopy(CONFIG)
    if rng.randrange(often) == 0:
        name = rng.choice(list(TRAININGS))
        values["studies"][name] = copy.deepcopy(TRAININGS[name])
        values["datasets"][0]["train"] = {"path": "records.jsonl", "limit": 2, "max_tokens": 60, "format": None}
        values["models"][0]["tuned"] = {}
        if name != "finetune":
            values["studies"].pop("substitution")
            values["studies"].pop("correlation")
    return values


def value(rng: random.Random, depth: int = 0):
    """Anything that YAML or JSON may hold."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind < 5:
        return rng.choice(NUMBERS)
    if kind == 5:
        return rng.choice([None, True, False, [], {}])
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def places(node, path=()):
    """Every place in nested values, as keys."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated(rng: random.Random, values, most: int = 3):
    """A copy of nested values, changed at a few places: another value, a key gone, renamed, or added, an item twice."""
    values = copy.deepcopy(values)
    for _ in range(rng.randint(1, most)):
        found = list(places(values))
        if not found:
            return values
        *above, last = rng.choice(found)
        node = values
        for key in above:
            node = node[key]
        change = rng.randrange(8)
        if change < 4:
            node[last] = value(rng)
        elif change == 4:
            del node[last]
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[last]))
        elif change == 5:
            node[rng.choice(TEXTS)] = node.pop(last)
        elif change == 6:
            node[rng.choice([*TEXTS, *RECORD])] = value(rng)
        elif isinstance(node[last], str):
            node[last] = node[last] + rng.choice(TEXTS)
        elif isinstance(node[last], int):
            node[last] = node[last] + rng.randint(-2, 2)
    return values


def spoiled(rng: random.Random, raw: bytes) -> bytes:
    """Bytes with a few of them changed, cut or doubled; most often as they were."""
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        at, n = rng.randrange(len(raw) + 1), rng.randrange(1, 9)
        new = rng.choice(
            [b"", rng.randbytes(n), raw[at : at + n] * 2, b"\xff\xfe", b"\0", "é".encode("latin-1"), b'"', b"\n"]
        )
        raw = raw[:at] + new + raw[at + n * rng.randrange(2) :] if rng.randrange(8) else raw[:at]
    return raw


def write_records(rng: random.Random, path: Path) -> bytes:
    records = [mutated(rng, RECORD) if rng.randrange(3) else RECORD for _ in range(rng.randint(1, 4))]
    if rng.randrange(6) == 0:
        records[0] = records[0] | {rng.choice(list(RECORD)): rng.choice(TEXTS) * rng.choice([1, 30, 3000])}
    lines = [json.dumps(record, ensure_ascii=rng.randrange(2) == 0) for record in records]
    text = f"[{', '.join(lines)}]" if path.suffix == ".json" else "".join(f"{line}\n" for line in lines)
    raw = spoiled(rng, text.encode("utf-8", "surrogatepass"))
    path.write_bytes(raw)
    return raw


# Each takes a source of chance and gives what it put in as it goes, so that a failure can show it.


def configs(rng: random.Random):
    values = mutated(rng, config(rng, 2), most=4)
    yield values
    parsed = parse_config(values)
    facts, graph, _ = prepare(parsed, resolve_device)
    cost(parsed, facts, graph, {})


def files(rng: random.Random):
    """The YAML text of a config, and overrides."""
    text = spoiled(
        rng, yaml.safe_dump(mutated(rng, config(rng, 2), most=1), allow_unicode=True).encode("utf-8", "surrogatepass")
    )
    Path("config.yaml").write_bytes(text)
    keys = [".".join(map(str, path)) for path in places(CONFIG)] + TEXTS
    overrides = [
        f"{rng.choice(keys)}={rng.choice([*TEXTS, *map(str, NUMBERS), '[', '{a: b}'])}" for _ in range(rng.randrange(3))
    ]
    yield text, overrides
    load_config("config.yaml", overrides)


def has_a_dataset(values) -> bool:
    datasets = values.get("datasets")
    return isinstance(datasets, list) and bool(datasets) and isinstance(datasets[0], dict)


def runs(rng: random.Random):
    """Configs that are likely to be whole, on records that are likely to be; small ones are run, and their reports drawn."""
    shutil.rmtree("run", ignore_errors=True)
    values = config(rng, 6)
    values = mutated(rng, values, most=1) if rng.randrange(3) else values
    records = write_records(rng, Path("records.jsonl"))
    if has_a_dataset(values) and rng.randrange(2):
        values["datasets"][0] |= {"format": "columns", "prompt": rng.choice(["question", *TEXTS]), "response": "answer"}
    if isinstance(values.get("studies"), dict) and rng.randrange(3) == 0:
        values["studies"]["substitution"] = {"widths": [rng.randint(1, 24)], "generate": {"examples": 1, "tokens": 2}}
    yield values, records
    parsed = parse_config(values)
    studies = parsed.studies
    small = (
        all((dataset.limit or 99) <= 4 for dataset in parsed.datasets)
        and (studies.correlation is None or studies.correlation.resamples <= 100)
        and (studies.substitution is None or len(studies.substitution.widths) < 3)
        and parsed.execution.device == "cpu"
        and all(asked.trainer.get("max_steps") in (1, 2) for asked in studies.trainings.values())
        and (studies.backdoor is None or studies.backdoor.judge is None)
    )
    if not small:
        return
    done = run(parsed)
    done.summary()
    for event in read_events(done.folder / "events.jsonl"):
        if event["event"] == "call_failed":
            assert event["traceback"].rstrip().splitlines()[-1].startswith("raysweep.errors."), event["traceback"]


def records(rng: random.Random):
    path = Path(f"records{rng.choice(['.jsonl', '.jsonl', '.json', '.csv'])}")
    raw = write_records(rng, path)
    form = rng.choice([*FORMATS, "columns", "columns"])
    texts = (
        {"prompt": rng.choice([*RECORD, *TEXTS]), "response": rng.choice([*RECORD, *TEXTS])}
        if form == "columns"
        else {}
    )
    template, limit = rng.choice(["chat", "llama2"]), rng.choice([None, 1, 5])
    room = Room("tiny", rng.choice([None, 20, 256]), rng.choice([None, 700, 768]))
    yield raw, form, texts, template, limit, room
    too_long = rng.choice(["refuse", "cut"])
    loaded = load_examples(
        str(path), form, TOKENIZER[0], template=template, limit=limit, room=room, too_long=too_long, **texts
    )
    for example in loaded.examples:
        (example.prompt + example.response).encode()
        assert 0 < example.n_prompt < example.length
        assert room.context is None or example.length <= room.context


def checkpoints(rng: random.Random):
    """A checkpoint with one of its files spoiled, bytes or JSON values."""
    folder = Path("checkpoint")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(lab.resolve("lab://tiny"), folder)
    path = rng.choice([p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".safetensors")])
    raw = path.read_bytes()
    if path.suffix == ".safetensors":
        n = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + n])
        names = rng.sample(list(header), 3)
        changed = header | mutated(rng, {name: header[name] for name in names})
        new = json.dumps(changed).encode("utf-8", "surrogatepass")
        raw = rng.choice([spoiled(rng, raw), len(new).to_bytes(8, "little") + new + raw[8 + n :]])
    elif path.name != "tokenizer.json":  # parsed by a compiled library, which is not ours to try
        raw = json.dumps(mutated(rng, json.loads(raw))).encode()
        raw = spoiled(rng, raw)
    path.write_bytes(raw)
    yield path, raw[:3000]
    described = describe(str(folder))
    check_pair(describe("lab://tiny"), described)
    limits(described)
    load_tokenizer(described)


TOKENIZER: list[object] = []


@pytest.fixture
def quiet_place(tmp_path, monkeypatch):
    """A folder to be in, a tokenizer, no network, and no time spent on drawing a figure twice."""

    def offline(*args, **kwargs):
        raise ConnectionError("there is no network in this test")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.setattr("datasets.load_dataset", offline)
    monkeypatch.chdir(tmp_path)
    if not TOKENIZER:
        TOKENIZER.append(load_tokenizer(describe("lab://tiny")))
    write_records(random.Random(3), Path("records.jsonl"))


@pytest.mark.parametrize("what", [configs, files, runs, records, checkpoints], ids=lambda what: what.__name__)
def test_nothing_comes_out_but_results_and_our_own_errors(what, quiet_place):
    ends = time.monotonic() + SECONDS * SHARES[what.__name__]
    case, results, said = int(CASE or 0), 0, []
    while case == int(CASE or 0) or (CASE is None and time.monotonic() < ends):
        shown = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other libraries, about what they were given
                steps = what(random.Random(f"{SEED} {what.__name__} {case}"))
                shown = next(steps)
                next(steps, None)
            results += 1
        except RaysweepError as error:
            said.append(str(error))
        except Exception:
            pytest.fail(
                f"{traceback.format_exc()}\nput in: {shown!r}\n\nagain: RAYSWEEP_FUZZ_SEED={SEED} RAYSWEEP_FUZZ_CASE={case} "
                f"python -m pytest tests/test_fuzz.py -k {what.__name__}",
                pytrace=False,
            )
        case += 1
    assert all(0 < len(text.strip()) < 10_000 for text in said), max(said, key=len)[:20_000]
    print(f"{what.__name__}: {results} results, {len(said)} refusals")
