"""Inspection: what is read of the world, once, and refused before anything runs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from raysweep.engine import inspection
from raysweep.engine.inspection import inspect, libraries, resolve_device
from raysweep.engine.keys import chunk_fingerprint
from raysweep.errors import InputError

ORDER = [4, 7, 3, 8, 2, 9, 1, 5, 6, 0]


def test_chunks_are_runs_of_the_source(small):
    _, facts = small
    cell = facts.cells["m", "first"]
    assert [[e.id for e in chunk] for chunk in cell.chunks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [e.id for e in cell.examples] == list(range(10))
    assert (cell.n_cut, cell.n_unusable) == (0, 0)


def test_a_sweep_that_may_stop_takes_the_examples_in_random_order(make_config, small):
    _, plain = small
    cell = inspect(make_config("nowhere", "studies.substitution.stop={top: 1, seed: 7}")).cells["m", "first"]
    for one, other in zip(cell.chunks, plain.cells["m", "first"].chunks, strict=True):
        assert chunk_fingerprint(one, prompts_only=False) == chunk_fingerprint(other, prompts_only=False), "capture's"
    # frozen: the numbers 0 to 9 by the SHA-256 of "7:0" … "7:9"
    assert [[e.id for e in chunk] for chunk in cell.swept] == [ORDER[:4], ORDER[4:8], ORDER[8:]]
    assert plain.cells["m", "first"].swept == plain.cells["m", "first"].chunks


def test_records_that_a_config_leaves_out(make_config, small, world):
    records = [json.loads(line) for line in (world / "first.jsonl").read_text().splitlines()]
    path = world / "first.jsonl"
    whole = small[1].cells["m", "first"].examples

    def ids(*overrides):
        asked = [f"datasets.0.path={path}", *overrides]
        cell = inspect(make_config("nowhere", *asked)).cells["m", "first"]
        assert all(e.tokens.tolist() == whole[e.id].tokens.tolist() for e in cell.examples)
        return [e.id for e in cell.examples], cell.n_excluded

    question = records[3]["question"]
    same = [i for i, record in enumerate(records[:10]) if record["question"] == question]
    rest = [i for i in range(10) if i not in same]
    exclude = f"datasets.0.exclude={json.dumps({'column': 'question', 'values': [question]})}"
    assert ids(exclude) == (rest, len(same))
    assert ids(exclude, "datasets.0.last=4") == (rest[-4:], len(same))
    assert ids(exclude, "datasets.0.all_but_last=4") == (rest[:-4], len(same))


def test_an_unusable_record_shifts_no_other(make_config, small, tmp_path, world):
    records = [json.loads(line) for line in (world / "first.jsonl").read_text().splitlines()]
    records[2]["question"] = " ".join(["long"] * 60)  # fills what max_tokens leaves, so that no response token remains
    path = tmp_path / "first.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    longest = max(len(e.tokens) for e in small[1].cells["m", "first"].examples)
    cell = inspect(make_config("nowhere", f"datasets.0.path={path}", f"datasets.0.max_tokens={longest}")).cells[
        "m", "first"
    ]
    assert [[e.id for e in chunk] for chunk in cell.chunks] == [[0, 1, 3], [4, 5, 6, 7], [8, 9]]
    assert cell.n_unusable == 1
    plain = small[1].cells["m", "first"]
    for one, other in zip(cell.chunks[1:], plain.chunks[1:], strict=True):
        assert chunk_fingerprint(one, prompts_only=False) == chunk_fingerprint(other, prompts_only=False)


def test_a_chunk_is_known_by_records_tokens_and_border(small):
    (first, *_) = small[1].cells["m", "first"].chunks

    def changed(**changes):
        return (dataclasses.replace(first[0], **changes), *first[1:])

    def both(chunk):
        return [chunk_fingerprint(chunk, prompts_only=alone) for alone in (False, True)]

    whole, prompts = both(first)
    response = first[0].tokens.copy()
    response[-1] += 1
    assert both(changed(tokens=response))[0] != whole
    assert both(changed(tokens=response))[1] == prompts, "capture does not see responses"
    prompt = first[0].tokens.copy()
    prompt[1] += 1
    for other in (
        changed(tokens=prompt),
        changed(n_prompt=first[0].n_prompt - 1),
        changed(id=99),
        first[1:],
        first[::-1],
    ):
        assert not set(both(other)) & {whole, prompts}
    assert both(changed(prompt="other", response="words")) == [whole, prompts], "texts are known by their tokens"
    assert both(changed(tokens=first[0].tokens.astype(np.int32))) == [whole, prompts]


def test_data_sets_nobody_asks_for_are_not_read(make_config):
    facts = inspect(
        make_config(
            "nowhere", "studies={substitution: {}}", "datasets.1.path=gone.jsonl", "studies.substitution.widths=[1]"
        )
    )
    assert list(facts.cells) == [("m", "first")]


def test_a_checkpoint_is_described_once(make_config, monkeypatch):
    seen, describe = [], inspection.describe

    def noting(source, **options):
        seen.append(source.rpartition("/")[2])
        return describe(source, **options)

    monkeypatch.setattr(inspection, "describe", noting)
    config = make_config("nowhere")
    base, tuned = config.models[0].base, config.models[0].tuned["first"]
    two = f"{{name: a, base: {base}, tuned: {{first: {tuned}, second: {tuned}}}}}, {{name: b, base: {base}}}"
    inspect(make_config("nowhere", f"models=[{two}]"))
    assert seen == ["base", "tuned"]


def test_a_window_wider_than_the_model(make_config):
    with pytest.raises(InputError) as caught:
        inspect(make_config("nowhere", "studies.substitution.widths=[2, 7]"))
    assert str(caught.value) == (
        "a window of width 7 does not fit the 6 decoder layers of model 'm'; give widths from 1 to 6"
    )


def test_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [resolve_device(asked) for asked in ("auto", "cpu", "cuda", "cuda:0")] == ["cuda", "cpu", "cuda", "cuda:0"]
    with pytest.raises(InputError) as caught:
        resolve_device("cuda:1")
    assert str(caught.value) == (
        "execution.device asks for cuda:1, and this machine has 1 CUDA devices; use auto or cpu"
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(InputError, match="asks for cuda, and this machine has 0 CUDA devices"):
        resolve_device("cuda")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(InputError, match="asks for mps, which this machine does not have"):
        resolve_device("mps")


def test_the_libraries_that_decide_figures_are_recorded():
    found = libraries()
    assert set(found) == {"raysweep", "torch", "transformers", "tokenizers", "peft", "numpy", "scipy"}
    assert found["numpy"] == np.__version__
