"""Input that is small and stands for a great deal: each ends as a result or a refusal within 30 seconds and 2 GB.

Each kind draws cases from its own sequence (`RAYSWEEP_FUZZ_SEED`) in a process of its own, whose processor time and memory are measured.
The ordinary suite runs a few of each kind; `make fuzz` and the soak tests more, and print the worst of each.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SECONDS, GIGABYTES = 30.0, 2.0
SEED = int(os.environ.get("RAYSWEEP_FUZZ_SEED", "0"))
FUZZING = "RAYSWEEP_FUZZ_SECONDS" in os.environ


def texts(rng: random.Random, n: int) -> str:
    """A text of about n characters of a few kinds that patterns and parsers stumble over."""
    piece = rng.choice(
        ["a", ":", "://", ":/x", "token=", "'", "\\", "[", "{", "@", "é", "a b ", "sk-", '"', "\n", "{{", "%s"]
    )
    return (piece * (n // len(piece) + 1))[:n]


def header(entries: dict | str) -> bytes:
    raw = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(raw)) + raw


def headers(rng: random.Random) -> None:
    from raysweep.models.tensors import read_header, read_tensors

    n = rng.choice([10, 100_000, 300_000])
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    raw = rng.choice(
        [
            lambda: header({f"t{i}": entry for i in range(n)}),
            lambda: header("{" + ",".join([f'"{rng.choice("ab")}{i % (n - 1)}":1' for i in range(n)]) + "}"),
            lambda: header({"t": {**entry, "shape": [9] * n}}),
            lambda: header({"t": {**entry, "shape": [2**62] * rng.choice([3, 60, n])}}),
            lambda: header({"t": {**entry, "dtype": texts(rng, n)}}),
            lambda: header({texts(rng, n): {**entry, "dtype": "X"}}),
            lambda: header({"__metadata__": {f"k{i}": "v" for i in range(n)}, "t": entry}),
            lambda: header("[" * n),
            lambda: header('{"a":' * n),
            lambda: header("[" + "{}," * n + "{}]"),
            lambda: header(" " * rng.choice([n, 40_000_000])),
            lambda: header('{"a":[' + "[]," * (6 * n) + "1]}"),
            lambda: struct.pack("<Q", 2**63) + b"{}",
        ]
    )()
    path = Path("x.safetensors")
    path.write_bytes(raw)
    read_tensors(path, read_header(path))


def checkpoints(rng: random.Random) -> None:
    from raysweep import lab
    from raysweep.engine.tokenizers import template_of
    from raysweep.models.checkpoint import describe, limits
    from raysweep.models.loading import load_tokenizer
    from raysweep.models.trial import tried_model

    folder = Path("checkpoint")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(lab.resolve("lab://tiny"), folder)
    n = rng.choice([10**4, 10**6, 10**9, 10**15])
    config = json.loads((folder / "config.json").read_text())
    change = rng.randrange(7)
    if change < 3:
        number = rng.choice([name for name, value in config.items() if type(value) is int])
        config[number] = n
    elif change == 3:
        moe = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 10**6}
        config |= {**moe, "num_hidden_layers": rng.choice([24, 1000, 4096])}
    elif change == 4:
        config["id2label"] = {str(i): "x" for i in range(rng.choice([1000, 300_000]))}
    elif change == 5:
        name = rng.choice(["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
        (folder / name).write_text(
            rng.choice(['{"a":' + '[{"b":1}' + ',{"b":1}' * 500_000 + "]}", texts(rng, 10**7), "[" * 10**6])
        )
    else:
        config["vision_config"] = {"num_hidden_layers": n, "model_type": "siglip_vision_model"}
        config["layer_types"] = ["full_attention"] * rng.choice([10, 400_000])
    (folder / "config.json").write_text(json.dumps(config))
    found = describe(str(folder))
    limits(found)
    tried_model(found)
    load_tokenizer(found)
    template_of(found)


def records(rng: random.Random) -> None:
    import pyarrow
    from pyarrow import parquet

    from raysweep.data.examples import load_examples
    from raysweep.models.checkpoint import describe
    from raysweep.models.loading import load_tokenizer

    n = rng.choice([1000, 10**6, 3 * 10**6])
    good = json.dumps({"question": "two?", "answer": "two"})
    long = rng.choice([10**5, 10**7, 3 * 10**7])

    def write(name: str, text: str) -> str:
        Path(name).write_text(text)
        return name

    def bomb(name: str, piece: bytes, times: int) -> str:
        with gzip.open(name, "wb", compresslevel=1) as file:
            for _ in range(times):
                file.write(piece)
        return name

    def table(name: str, column: object, **options: object) -> str:
        parquet.write_table(pyarrow.table({"question": column, "answer": column}), name, **options)
        return name

    source = rng.choice(
        [
            lambda: write("a.jsonl", f"{good}\n" * n),
            lambda: write("b.jsonl", json.dumps({"question": texts(rng, long), "answer": "a"})),
            lambda: write("c.jsonl", '{"a":' * n),
            lambda: write("d.jsonl", '{"question": ' + "[" * 900 + "]" * 900 + "}"),
            lambda: write("e.json", "[" + ",".join(["{}"] * n) + "]"),
            lambda: write("f.json", "[" + f"{good}," * n + good + "]"),
            lambda: write("g.json", '[{"a": "' + "a" * long),
            lambda: write("h.csv", ",".join(f"c{i}" for i in range(n)) + "\n" + "," * (n - 1)),
            lambda: write("i.csv", "question,answer\n" + '"\n",' * n),
            lambda: write("j.csv", 'question,answer\n"' + "a\n" * n),
            lambda: bomb("k.jsonl.gz", b"a" * 2**20, 300),
            lambda: bomb("l.jsonl.gz", b"\n" * 2**20, 300),
            lambda: bomb("m.json.gz", b" " * 2**20, 300),
            lambda: table("n.parquet", pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * n, pyarrow.int32()), ["a" * 10**7])),
            lambda: table("o.parquet", pyarrow.array(["a"] * n)),
            lambda: table("p.parquet", pyarrow.array(["a" * 5 * 10**7])),
            lambda: table("q.parquet", pyarrow.ListArray.from_arrays([0, 10 * n], pyarrow.array([0] * (10 * n), pyarrow.int8()))),
            lambda: write("r.jsonl", json.dumps({"messages": [{"role": "user", "content": "a"}] * 200_000})),
            lambda: write("s.jsonl", json.dumps({"messages": [{"role": "user", "content": "a", **{f"k{i}": 1 for i in range(50_000)}}]})),
            lambda: write("t.jsonl", json.dumps({f"k{i}": "v" for i in range(100_000)} | json.loads(good))),
        ]
    )()  # fmt: skip
    form = "messages" if source[0] in "rs" else "gsm8k"
    load_examples(source, form, load_tokenizer(describe("lab://tiny")), max_tokens=64, limit=rng.choice([None, 20]))


ATTACKS = [
    "{{ 'a' * 10**10 }}", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 'a'|center(10**10) }}",
    "{{ '%10000000000d' % 1 }}", "{{ '{:{}}'.format(1, 10**10) }}", "{% set a = 'a' * 10**4 %}{{ a|replace('a', a)|replace('a', a) }}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% set s = 'a' * 10**8 %}{% for i in range(99999) %}{{ s }}{% endfor %}", "{{ lipsum(n=10**9) }}", "{{ [1]|batch(10**10, 2)|list }}",
    "{% set s = 'a' * 10**8 %}{% macro m(s) %}{{ m(s[1:]) }}{% endmacro %}{{ m(s) }}", "{{ 1.5|round(10**9, 'floor') }}",
    "{{ messages|tojson(indent=10**10) }}", "{{ ('a' * 10**6).join(range(99999)|map('string')) }}", "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ " + "(" * 90_000 + "1" + ")" * 90_000 + " }}", "{{ 1 }}" * 28_000, "{{ ('<!--' * 10**6)|striptags }}",
    "{% for i in range(99999) %}{{ strftime_now('%Y' ~ i) }}{% endfor %}",
]  # fmt: skip


def templates(rng: random.Random) -> None:
    from raysweep.data.examples import load_examples
    from raysweep.models.checkpoint import describe
    from raysweep.models.loading import load_tokenizer

    Path("x.jsonl").write_text('{"question": "two?", "answer": "two"}\n' * 50)
    tokenizer = load_tokenizer(describe("lab://tiny"))
    attack = rng.choice(ATTACKS)
    if rng.randrange(2):
        tokenizer.chat_template = "{{ messages[0].content }}" + attack
        load_examples("x.jsonl", "gsm8k", tokenizer)
    else:
        load_examples("x.jsonl", "columns", tokenizer, prompt="{{ question }}" + attack, response="{{ answer }}")


def configs(rng: random.Random) -> None:
    from raysweep.config import load_config

    n = rng.choice([10, 30_000, 400_000])
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    text = rng.choice(
        [laughs, "[" * n, "{a: " * n, f"a: {'1:' * n}1", f"a: 0x{'f' * n}", "a: [" + "1, " * n + "]", f"name: {texts(rng, n)}",
         "".join(f"k{i}: 1\n" for i in range(n)), "a: &a {b: 1}\nc:\n  <<: [" + ", ".join(["*a"] * n) + "]", "a: " + "x " * 5 * n,
         "studies: {removal: {layers: [" + "1, " * n + "]}}", "- " * n, f"limit: 0b{'1' * n}"]
    )  # fmt: skip
    Path("x.yaml").write_text(text)
    load_config("x.yaml", [rng.choice(["a=1", f"name={texts(rng, n)}", "execution.chunk=" + "[" * n])])


def patterns(rng: random.Random) -> None:
    from raysweep.models.checkpoint import Checkpoint
    from raysweep.models.peft_patterns import check_patterns
    from raysweep.redaction import redacted
    from raysweep.studies.judging import Pattern

    regex = rng.choice(
        [r"(a+)+$", r"(a|aa)+b", r"(.*)*x", r"a*a*a*a*a*b", "a?" * 30 + "a" * 30, r"(?:a{1,50}){1,50}b", r"(\w+\s?)*!"]
    )
    redacted(texts(rng, rng.choice([10, 10**6])), {})
    if rng.randrange(2):
        Pattern(regex).is_success("a" * rng.choice([30, 10**5]))
    else:
        setting = rng.choice([{"target_modules": regex}, {"rank_pattern": {regex: 8}}, {"exclude_modules": [regex]}])
        check_patterns(Checkpoint("x", Path(), setting, {}, 0, True, ""), lambda: ["model.layers.1." + "a" * 40])


KINDS: dict[str, Callable[[random.Random], None]] = {
    each.__name__: each for each in (headers, checkpoints, records, templates, configs, patterns)
}


def cpu_seconds() -> float:
    """Of this process and those it started: what an idle machine takes, at most, however busy this one is."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def peak_bytes() -> int:
    """The most memory that this process held at once.

    `ru_maxrss` would not do: Linux hands the peak of the process that started this one on to it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cases(kinds: str, first: int, last: int) -> None:
    """Run some cases of kinds, separated by commas, in this process, and print a line of JSON for each: seconds, peak bytes so far, how it ended."""
    import transformers.models.llama.modeling_llama  # noqa: F401 - takes seconds, whatever the case

    from raysweep.errors import RaysweepError

    for kind, case in ((kind, case) for kind in kinds.split(",") for case in range(first, last)):
        begun = cpu_seconds()
        try:
            KINDS[kind](random.Random(f"{SEED} {kind} {case}"))
            ended = "result"
        except RaysweepError as error:
            ended = "refusal" if 0 < len(str(error)) < 10_000 else f"a message of {len(str(error))} characters"
        print(json.dumps([case, round(cpu_seconds() - begun, 2), peak_bytes(), ended]), flush=True)


def run_cases(kind: str, first: int, last: int, folder: Path) -> list[list]:
    code = (
        f"import sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    )
    code += f"import test_resource_bombs as bombs; bombs.cases({kind!r}, {first}, {last})"
    limit = 2 * SECONDS * (last - first) + 60  # ends what waits for nothing
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=limit, check=False
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    again = f"RAYSWEEP_FUZZ_SEED={SEED}, kind {kind}, case {first + len(found)}"
    assert done.returncode == 0, f"{again}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    return found


def check(kind: str, found: list[list]) -> None:
    slowest, largest = max(found, key=lambda case: case[1]), max(found, key=lambda case: case[2])
    print(
        f"{kind}: {len(found)} cases, at most {slowest[1]:.1f} s (case {slowest[0]}), {largest[2] / 1e9:.2f} GB (case {largest[0]})"
    )
    assert slowest[1] < SECONDS, slowest
    assert largest[2] < GIGABYTES * 1e9, largest
    assert all(case[3] in ("result", "refusal") for case in found), found


def test_the_memory_of_the_process_that_starts_a_case_does_not_count():
    held = b"x" * 500_000_000
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_resource_bombs as b; print(b.peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < len(held) / 2


def test_one_bomb_of_each_kind(tmp_path, monkeypatch):
    for limit in ("TEMPLATE", "PATTERN"):
        monkeypatch.setenv(f"RAYSWEEP_MAX_{limit}_SECONDS", "0.5")
    check("every kind", run_cases(",".join(KINDS), 3, 4, tmp_path))


if FUZZING:

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_few_bombs(kind, tmp_path):
        for first in range(0, 40, 10):
            check(kind, run_cases(kind, first, first + 10, tmp_path))


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_bombs(kind, tmp_path):
    for first in range(100, 160, 10):
        check(kind, run_cases(kind, first, first + 10, tmp_path))
