"""Data, models and disks at their worst, through the command line: what is refused before anything runs (exit code 2, with
its wording, nothing written), what is counted and shown, and how a run ends that cannot go on (exit code 1).

The wording of single readers is tested beside them; here the whole way is, as a user takes it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from raysweep import cli
from raysweep.engine.events import read_events

LAYERS, CONTEXT, VOCABULARY = 4, 128, 320
WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
UP = "model.layers.2.mlp.up_proj.weight"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def raysweep(monkeypatch, capsys):
    """raysweep("run", …) calls the entry point in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["raysweep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Result(ended.value.code or 0, said.out, said.err)

    return call


@pytest.fixture(scope="module")
def kept(tmp_path_factory, tiny_pair, tokenizer):
    """Checkpoints `base` and `tuned`, and ten records. Not to be changed."""
    folder = tmp_path_factory.mktemp("kept")
    for name, model in zip(("base", "tuned"), tiny_pair("llama", LAYERS, max_position_embeddings=CONTEXT), strict=True):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    records = [{"question": f"Count {' '.join(WORDS[: 1 + i % 5])}?", "answer": WORDS[i % 7]} for i in range(10)]
    (folder / "counts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def world(kept, tmp_path):
    """A copy of `kept` that a test may spoil, with a config on it whose run lies in `run`."""
    shutil.copytree(kept, tmp_path / "world")
    world = tmp_path / "world"
    values = {
        "name": "mine",
        "models": [{"name": "m", "base": str(world / "base"), "tuned": {"d": str(world / "tuned")}}],
        "datasets": [{"name": "d", "path": str(world / "counts.jsonl"), "format": "gsm8k"}],
        "studies": {"substitution": {"widths": [1]}, "similarity": {}, "correlation": {"resamples": 20}},
        "execution": {"chunk": 4, "device": "cpu"},
        "storage": str(tmp_path / "run"),
    }
    (world / "config.yaml").write_text(yaml.safe_dump(values))
    return world


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put(world: Path, *records: Any) -> None:
    """Put records, or raw bytes, behind the ones that are there."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in records]
    with (world / "counts.jsonl").open("ab") as file:
        file.writelines(line + b"\n" for line in lines)


def spoil_shards(world: Path) -> None:
    tensors = load_file(world / "base" / "model.safetensors")
    (world / "base" / "model.safetensors").unlink()
    save_file(tensors, world / "base" / "model-00001-of-00002.safetensors")
    shards = dict.fromkeys(tensors, "model-00001-of-00002.safetensors") | {UP: "model-00002-of-00002.safetensors"}
    (world / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def spoil_with_pickle(world: Path) -> None:
    (world / "tuned" / "model.safetensors").unlink()
    torch.save({UP: torch.zeros(2), "args": Path("x")}, world / "tuned" / "pytorch_model.bin")


def spoil_adapter(world: Path) -> None:
    shutil.rmtree(world / "tuned")
    (world / "tuned").mkdir()
    (world / "tuned" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({f"base_model.model.{UP}": torch.tensor([1.0, torch.nan])}, world / "tuned" / "adapter_model.safetensors")


def new_token(world: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    tokenizer.add_tokens([f"<pad-{i}>" for i in range(VOCABULARY - len(tokenizer))] + ["<new>"])
    tokenizer.save_pretrained(world / "base")
    put(world, {"question": "<new> one", "answer": "two"})


def template(text: str | None) -> Callable[[Path], None]:
    def write(world: Path) -> None:
        for name in ("base", "tuned"):
            (world / name / "chat_template.jinja").unlink(missing_ok=True)
            settings = json.loads((world / name / "tokenizer_config.json").read_text())
            settings.pop("chat_template", None)
            (world / name / "tokenizer_config.json").write_text(json.dumps(settings))
            if text is not None:
                (world / name / "chat_template.jinja").write_text(text)

    return write


LONG = {"question": "x" * 200, "answer": "y"}
WORSE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a torn shard": (
        lambda w: (w / "base/model.safetensors").write_bytes((w / "base/model.safetensors").read_bytes()[:-9]),
        "{w}/base/model.safetensors has * bytes where its header tells *; copy the checkpoint again",
    ),
    "an empty weights file": (
        lambda w: (w / "tuned/model.safetensors").write_bytes(b""),
        "{w}/tuned/model.safetensors is no whole safetensors file (0 bytes); copy or write the checkpoint again",
    ),
    "a missing shard": (
        spoil_shards,
        f"{{w}}/base/model.safetensors.index.json names the shard model-00002-of-00002.safetensors for 1 tensors ({UP} among "
        "them), and there is no such file; copy the checkpoint again, all of it",
    ),
    "NaN in a layer": (
        lambda w: edit_tensors(w / "tuned/model.safetensors", lambda t: t[UP][3].fill_(torch.nan)),
        f"{{w}}/tuned/model.safetensors: tensor {UP} of layer 2 has a weight that is not finite (NaN at [3, 0]); every loss "
        "through it would be NaN: write the checkpoint again from weights that are whole",
    ),
    "infinity outside the layers": (
        lambda w: edit_tensors(w / "base/model.safetensors", lambda t: t["model.norm.weight"][5:6].fill_(-torch.inf)),
        "{w}/base/model.safetensors: tensor model.norm.weight has a weight that is not finite (minus infinity at [5]); *",
    ),
    "a pickle": (
        spoil_with_pickle,
        "checkpoint '{w}/tuned' has .bin weights that are not plain tensors, and raysweep runs no pickled code; save it as "
        "safetensors",
    ),
    "NaN in an adapter": (
        spoil_adapter,
        f"{{w}}/tuned/adapter_model.safetensors: tensor base_model.model.{UP} of layer 2 has a weight that is not finite (NaN at "
        "[1]); *",
    ),
    "a config of a checkpoint that is no object": (
        lambda w: (w / "base/config.json").write_text("3"),
        "{w}/base/config.json is no JSON object; write the checkpoint again",
    ),
    "a billion layers": (
        lambda w: edit_json(w / "base/config.json", num_hidden_layers=10**9),
        "{w}/base/config.json tells of 1000000000 decoder layers (num_hidden_layers), where a number from 1 to 10000 belongs; "
        "write the checkpoint again",
    ),
    "a tokenizer that is torn": (
        lambda w: (w / "base/tokenizer.json").write_text('{"version": '),
        "checkpoint '{w}/base' has no usable tokenizer: *",
    ),
    "ids beyond the embedding": (
        new_token,
        "1 of 11 examples of {w}/counts.jsonl have tokens that 'm' has no embedding for: its vocabulary has 320 (ids 0 to 319), "
        "its tokenizer 321, and the largest id is 320, '<new>' ({w}/counts.jsonl, line 11): use the tokenizer that the "
        "checkpoint was trained with, or leave those records out",
    ),
    "no chat template": (
        template(None),
        "tokenizer '{w}/base' has no chat template, and wording 'chat' is that template: give the tokenizer one, or choose "
        "another wording (llama2)",
    ),
    "a chat template that refuses": (
        template("{{ raise_exception('no users here') }}"),
        "{w}/counts.jsonl, line 1: the tokenizer's chat template refuses the turns user, assistant (no users here): mend them, "
        "or choose another wording",
    ),
    "a chat template with a type error": (
        template("{{ messages[0]['content'] + 1 }}"),
        "{w}/counts.jsonl, line 1: the tokenizer's chat template refuses the turns user, assistant (TypeError: can only "
        "concatenate str (not \"int\") to str): mend them, or choose another wording",
    ),
    "a chat template that says nothing": (
        template("{# nothing #}"),
        "{w}/counts.jsonl, line 1: the tokenizer's chat template makes no text of the turns user: give the tokenizer one that "
        "does, or choose another wording",
    ),
    "a chat template that does not parse": (
        template("{% for m in %}"),
        "{w}/counts.jsonl, line 1: the tokenizer's chat template refuses the turns user, assistant (*): mend them, or choose "
        "another wording",
    ),
    "examples longer than the context": (
        lambda w: put(w, LONG, LONG | {"question": "x" * 300}),
        "2 of 12 examples of {w}/counts.jsonl are longer than the context of 'm', 128 tokens; the longest ({w}/counts.jsonl, "
        "line 12) has *: set too_long: cut for this data set, which cuts them there and counts them, or a max_tokens of 128 or "
        "less",
    ),
    "a shorter context of the tuned one": (
        lambda w: edit_json(w / "tuned/config.json", max_position_embeddings=20),
        "* of 10 examples of {w}/counts.jsonl are longer than the context of 'm', 20 tokens; *",
    ),
    "a torn line": (
        lambda w: put(w, b'{"question": "x", "ans'),
        "{w}/counts.jsonl, line 11 is no whole JSON object (Unterminated string starting at, column 19): mend the line; JSONL "
        "has one object a line",
    ),
    "an empty file": (
        lambda w: (w / "counts.jsonl").write_bytes(b""),
        "{w}/counts.jsonl is empty: it holds no record",
    ),
    "UTF-16": (
        lambda w: (w / "counts.jsonl").write_text('{"question": "x", "answer": "y"}\n', encoding="utf-16"),
        "{w}/counts.jsonl is UTF-16 (its first bytes are that one's mark), where UTF-8 is needed: convert the file",
    ),
    "Latin-1": (
        lambda w: put(w, '{"question": "Café", "answer": "y"}'.encode("latin-1")),
        "{w}/counts.jsonl, line 11 is not UTF-8 (byte 0xe9): convert the file",
    ),
    "a null byte": (
        lambda w: put(w, b'{"question": "a\0b", "answer": "y"}'),
        "{w}/counts.jsonl, line 11 holds a null byte, which no text has (is it UTF-16, or binary?): convert the file",
    ),
    "half a surrogate pair": (
        lambda w: put(w, {"question": "x", "answer": "\udc00"}),
        "{w}/counts.jsonl, line 11: has half of a surrogate pair (\\udc00) in its response, which is no character: mend the text",
    ),
    "nested too deeply": (
        lambda w: put(w, b'{"question": ' + b"[" * 50_000),
        "{w}/counts.jsonl, line 11 is nested too deeply: mend the line, or leave it out",
    ),
    "a number of 5000 digits": (
        lambda w: put(w, b'{"question": "x", "answer": "y", "n": ' + b"1" * 5000 + b"}"),
        "{w}/counts.jsonl, line 11 holds a number too long to read (Exceeds the limit (4300 digits) *): mend the line, or leave "
        "it out",
    ),
    "a field of another type": (
        lambda w: put(w, {"question": "x", "answer": 7}),
        "{w}/counts.jsonl, line 11: has a field 'answer' of type int, where format 'gsm8k' needs str",
    ),
}  # fmt: skip


def content(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def told(refused: Result, expected: str) -> bool:
    """Whether the one error line is the expected one, * standing for anything."""
    pieces = f"error: {expected}\n".split("*")
    text, at = refused.err, 0
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0 or (at == 0 and found):
            return False
        at = found + len(piece)
    return at == len(text)


@pytest.mark.parametrize("name", WORSE)
def test_refused_before_anything_is_written(name, world, raysweep, tmp_path):
    spoil, expected = WORSE[name]
    spoil(world)
    before = content(tmp_path)
    refused = raysweep("run", world / "config.yaml")
    assert (refused.code, refused.out) == (2, "")
    assert told(refused, expected.replace("{w}", str(world))), refused.err
    assert content(tmp_path) == before


def test_one_example_is_too_few_to_compare(world, raysweep):
    refused = raysweep("run", world / "config.yaml", "--set", "datasets.0.limit=1")
    assert refused == Result(
        2,
        "",
        "error: data set 'd' has one usable example for 'm', and similarity compares examples: give 2 or more, or leave "
        "studies.similarity out\n",
    )


def test_text_generated_beyond_the_context_is_refused(world, raysweep):
    refused = raysweep("run", world / "config.yaml", "--set", "studies.substitution.generate.tokens=120")
    assert refused.code == 2
    assert told(
        refused,
        "studies.substitution.generate asks for 120 tokens after each prompt, that of record 2 of 'd' (counted from 0) has *, and "
        "the context of 'm' is 128: set tokens to * or less, or examples to fewer",
    ), refused.err
    most = refused.err.partition("set tokens to ")[2].split()[0]
    assert raysweep("plan", world / "config.yaml", "--set", f"studies.substitution.generate.tokens={most}").code == 0


# --- got through, counted and shown -------------------------------------------------------------------------------


class Page(HTMLParser):
    """A page as a browser sees it; `open` are the elements that were never closed."""

    VOID = ("meta", "link", "img", "br", "hr", "input", "col")

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and "svg" not in self.open:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.texts.append(data)


def page_of(tmp_path) -> Page:
    return Page(tmp_path / "run" / "report" / "index.html")


def test_examples_cut_to_the_context_are_counted_and_shown(world, raysweep, tmp_path):
    put(world, {"question": "x", "answer": "y " * 100})
    told = raysweep("run", world / "config.yaml", "--set", "datasets.0.too_long=cut")
    assert told.code == 0, told.err
    losses = pd.read_parquet(tmp_path / "run" / "results" / "substitution.parquet")
    assert losses["loss"].notna().all()
    assert losses["n_tokens"].max() < CONTEXT
    assert "1 examples cut to max_tokens or the model's context" in page_of(tmp_path).text


NASTY = [
    "<script>alert(1)</script>",
    "\"quotes\" 'and' `ticks` & &amp; </pre></td><!-- ]]>",
    "emoji 👩‍👩‍👧‍👦 🇺🇳 \u0301",
    "rtl \u202eevil\u202c \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "null \u0000 bell \u0007 del \u007f nel \u0085 nonchar \uffff",
    "{{ 7 * 7 }} {% raise %} ${x} %s",
    "line\u2028separator\u2029",
    "\n\t\r\n",
]


def test_records_of_every_kind_get_through_and_break_no_page(world, raysweep, tmp_path, monkeypatch):
    (world / "counts.jsonl").unlink()
    put(world, *({"question": f"q {text}", "answer": f"a {text}"} for text in NASTY))
    put(world, {"question": "big", "answer": "z" * 100_000, "aside": "\ud800" + "w" * 100_000})
    more = ["studies.substitution.generate={examples: 9, tokens: 4}", "datasets.0.too_long=cut"]
    ran = raysweep("run", world / "config.yaml", *(part for each in more for part in ("--set", each)))
    assert ran.code == 0, ran.err
    page = page_of(tmp_path)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "base", "form"}
    assert not [attrs for _, attrs in page.tags if any(key.startswith("on") for key in attrs)]
    for _, attrs in page.tags:
        assert all((attrs.get(key) or "#").startswith(("#", "data:")) for key in ("src", "href", "xlink:href"))
    assert "<script>alert(1)</script>" in page.text, "as text"
    assert "{{ 7 * 7 }}" in page.text
    assert not [c for c in page.source if (ord(c) < 32 and c not in "\n\t\r") or 0x7F <= ord(c) < 0xA0]
    texts = pd.read_parquet(tmp_path / "run" / "results" / "generation.parquet")
    references = set(texts["reference"])
    assert {f"a {text}<end>" for text in NASTY if text.strip()} <= references, "the table has them as they are"


def test_a_file_name_that_is_no_utf8(world, raysweep, tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    shutil.copy(world / "config.yaml", tmp_path / f"{odd}.yaml")
    ran = raysweep("run", tmp_path / f"{odd}.yaml")
    assert ran.code == 0, ran.err
    refused = raysweep("run", tmp_path / f"{odd}.yaml", "--set", f"storage={tmp_path / odd}")
    assert refused.code == 2
    assert "caf\\udce9: the value is not YAML: unacceptable character" in refused.err


@pytest.fixture
def overflowing(world, tiny_pair, tokenizer):
    """A pair whose every weight is finite, and whose layer norms overflow on the token '7': its examples have no loss."""
    (token,) = tokenizer("7", add_special_tokens=False)["input_ids"]
    models = tiny_pair("gpt2", LAYERS, tie_word_embeddings=False, n_positions=CONTEXT)
    for name, model in zip(("base", "tuned"), models, strict=True):
        shutil.rmtree(world / name)
        with torch.no_grad():
            model.transformer.wte.weight[token] = 3e38
        model.save_pretrained(world / name)
        tokenizer.save_pretrained(world / name)
    put(world, {"question": "7?", "answer": "7 two"}, {"question": "7 7?", "answer": "one"})
    return world


def test_nan_losses_are_counted_left_out_and_shown(overflowing, raysweep, tmp_path):
    more = ("--set", "studies={substitution: {widths: [1]}}")
    ran = raysweep("run", overflowing / "config.yaml", *more)
    assert ran.code == 0, ran.err
    losses = pd.read_parquet(tmp_path / "run" / "results" / "substitution.parquet")
    assert set(losses[losses["loss"].isna()]["example_id"]) == {10, 11}
    counted = f"{2 * (LAYERS + 2)} of {12 * (LAYERS + 2)} losses are NaN and left out"
    mean = losses[losses["width"] == 1].groupby("layers")["loss"].mean()
    line = f"m on d: layers {mean.idxmax()} put back cost most, loss {mean.max():.4f} ({counted})"
    assert ran.out.splitlines()[0] == line
    page = page_of(tmp_path).text
    assert f"d on m: {counted} of every mean" in page
    assert any(f"{mean.max():.{decimals}f}" in page for decimals in (2, 3, 4)), "the page's mean is the same one"
    assert raysweep("report", tmp_path / "run").code == 0


def test_examples_whose_states_are_not_finite_are_left_out_too(overflowing, raysweep, tmp_path):
    ran = raysweep("run", overflowing / "config.yaml")
    assert ran.code == 0, ran.err
    assert f"({2 * (LAYERS + 2)} of {12 * (LAYERS + 2)} losses are NaN and left out)" in ran.out
    page = page_of(tmp_path).text
    assert "2 of 12 examples have states that are not finite; 2 are left out of every similarity" in page
    found = pd.read_parquet(tmp_path / "run" / "results" / "dynamics.parquet")
    shutil.move(tmp_path / "run", tmp_path / "first")
    lines = (overflowing / "counts.jsonl").read_text().splitlines(keepends=True)
    (overflowing / "counts.jsonl").write_text("".join(lines[:-2]))
    assert raysweep("run", overflowing / "config.yaml").code == 0
    without = pd.read_parquet(tmp_path / "run" / "results" / "dynamics.parquet")
    np.testing.assert_allclose(found["delta"], without["delta"], atol=1e-6)
    both = [pd.read_parquet(tmp_path / run / "results" / "correlation.parquet") for run in ("first", "run")]
    assert both[0]["spearman"].item() == pytest.approx(both[1]["spearman"].item(), abs=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_correlation_leaves_out_the_same_losses(value, world, raysweep, tmp_path, monkeypatch):
    from raysweep.engine import work

    def sweep(*args, **kwargs):
        losses = measured(*args, **kwargs)
        losses[1, 0] = value  # the first example of each chunk, under the first window
        return losses

    measured = work.sweep_losses
    monkeypatch.setattr(work, "sweep_losses", sweep)
    ran = raysweep("run", world / "config.yaml")
    assert ran.code == 0, ran.err
    losses = pd.read_parquet(tmp_path / "run" / "results" / "substitution.parquet")
    n = f"3 of {len(losses)} losses are"
    said = "NaN and left out" if np.isnan(value) else "infinite"
    assert ran.out.splitlines()[0].endswith(f"over 4 windows of width 1 ({n} {said})")
    shown = (
        "NaN and left out of every mean"
        if np.isnan(value)
        else "infinite; they count as the largest, without intervals"
    )
    assert f"d on m: {n} {shown}" in page_of(tmp_path).text
    delta = pd.read_parquet(tmp_path / "run" / "results" / "dynamics.parquet")["delta"]
    mean = losses[losses["width"] == 1].groupby("centre")["loss"].mean()
    (row,) = pd.read_parquet(tmp_path / "run" / "results" / "correlation.parquet").to_dict("records")
    assert row["spearman"] == pytest.approx(delta.rank().corr(mean.reset_index(drop=True).rank()), abs=1e-12)


def test_no_loss_at_all_is_told(world, raysweep, monkeypatch):
    from raysweep.engine import work

    measured = work.sweep_losses
    monkeypatch.setattr(work, "sweep_losses", lambda *a, **k: measured(*a, **k) * np.nan)
    ran = raysweep("run", world / "config.yaml", "--set", "studies={substitution: {widths: [1]}}")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0] == "m on d: no window has a loss (60 of 60 losses are NaN and left out)"


# --- disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """mounted("-t", "tmpfs", …) mounts something on a new folder; skips where that is not permitted."""
    done = []

    def mount(*options):
        where = tmp_path / f"mount-{len(done)}"
        where.mkdir()
        if (
            shutil.which("mount") is None
            or subprocess.run(["mount", *options, str(where)], capture_output=True).returncode
        ):
            pytest.skip("mounting is not permitted here")
        done.append(where)
        return where

    yield mount
    for where in done:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def test_a_read_only_disk_is_refused(world, raysweep, mounted):
    where = mounted("-t", "tmpfs", "-o", "size=1m,ro", "tmpfs")
    for storage in (where, where / "a" / "b"):
        for command in ("run", "plan"):
            refused = raysweep(command, world / "config.yaml", "--set", f"storage={storage}")
            assert refused == Result(
                2,
                "",
                f"error: storage '{storage}' cannot be written to ('{where}': its file system is read-only); give another "
                "folder\n",
            )


def test_a_disk_without_room_is_refused(world, raysweep, mounted):
    where = mounted("-t", "tmpfs", "-o", "size=256k", "tmpfs")
    refused = raysweep("run", world / "config.yaml", "--set", f"storage={where / 'run'}")
    assert refused.code == 2
    assert told(
        refused,
        f"storage '{where}/run' has 0.3 MB free, and the run needs about 1.1 MB; make room, or give another folder",
    ), refused.err
    assert list(where.iterdir()) == []


def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_is_committed(world, raysweep, mounted, monkeypatch):
    where = mounted("-t", "tmpfs", "-o", "size=1200k", "tmpfs")
    (where / "filler").write_bytes(b"x" * 1_080_000)
    monkeypatch.setattr("raysweep.engine.disk._ASIDE", 0)
    more = ["--set", f"storage={where / 'run'}", "--set", "execution.chunk=1"]
    ended = raysweep("run", world / "config.yaml", *more)
    assert (ended.code, ended.out) == (1, "")
    assert "Traceback" not in ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"error: the run folder '{where}/run' cannot be written to: No space left on device")
    assert last.endswith("; what is committed is kept: make room there and run again")
    committed = [e for e in read_events(where / "run" / "events.jsonl") if e["event"] == "chunk_committed"]
    assert committed
    (where / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(where)], check=True)
    resumed = raysweep("run", world / "config.yaml", *more)
    assert resumed.code == 0, resumed.err
    keys = [
        k for e in read_events(where / "run" / "events.jsonl") if e["event"] == "chunk_committed" for k in e["keys"]
    ]
    assert len(keys) == len(set(keys)), "nothing is computed twice"


@pytest.mark.parametrize("place", ["raysweep.engine.work.write_part", "raysweep.engine.folder.publish_json", "raysweep.report.tables.publish", "raysweep.store.artifacts.os.replace"])  # fmt: skip
def test_a_full_disk_wherever_it_is_met(place, world, raysweep, monkeypatch):
    """The error is injected, so that this is tested where nothing can be mounted."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        ended = raysweep("run", world / "config.yaml")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1] == (
        f"error: the run folder '{world.parent}/run' cannot be written to: No space left on device (writing some/file); what is "
        "committed is kept: make room there and run again"
    )
    assert "Traceback" not in ended.err
    assert raysweep("run", world / "config.yaml").code == 0


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("{w}/counts.jsonl", "storage '{w}/counts.jsonl' is a file; give a folder"),
        ("{w}/counts.jsonl/run", "storage '{w}/counts.jsonl/run' lies under '{w}/counts.jsonl', which is a file; give another folder"),
        ("{w}/base", "storage '{w}/base' is neither empty nor a run folder (it has '*'); give another folder"),
        ("{w}/" + "n" * 300, "storage '{w}/" + "n" * 300 + "' cannot be used (File name too long); give another folder"),
        ("/proc/raysweep/run", "storage '/proc/raysweep/run' cannot be made (*); give another folder"),
    ],
)  # fmt: skip
def test_an_output_folder_that_cannot_be_one(storage, expected, world, raysweep, tmp_path):
    before = content(tmp_path)
    refused = raysweep("run", world / "config.yaml", "--set", f"storage={storage.replace('{w}', str(world))}")
    assert (refused.code, refused.out) == (2, "")
    assert told(refused, expected.replace("{w}", str(world))), refused.err
    assert content(tmp_path) == before


def test_a_device_that_is_not_there(world, raysweep, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    refused = raysweep("run", world / "config.yaml", "--set", "execution.device=cuda:7")
    assert refused == Result(
        2,
        "",
        "error: execution.device asks for cuda:7, and this machine shows 2 CUDA devices; use auto or cpu\n",
    )
