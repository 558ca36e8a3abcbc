"""Fingerprints: one writing for equal values, none for what has no writing; and which settings are part of a key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.config import parse_config
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan
from raysweep.fingerprint import canonical, fingerprint, fingerprints
from raysweep.lab import resolve
from raysweep.studies.windows import Window

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_golden():
    value = {"b": [1.5, None, True, "δ"], "a": (1, -2)}
    written = '{"a":[1,-2],"b":[1.5,null,true,"\\u03b4"]}'
    assert fingerprint(value) == hashlib.sha256(written.encode()).hexdigest()[:32]
    assert fingerprint(value) == "f0a5c30e13b955334a8157b83810a944"


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_equal_fingerprints_are_equal_json(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) is same


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), VALUES, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_keys_is_nothing(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert fingerprint(dict(items)) == fingerprint(OrderedDict(items)) == fingerprint(value)


def test_what_is_told_apart_and_what_is_not():
    apart = [1, 1.0, True, "1", [1], {"1": 1}, None, "", [], {}, 0, False, [[]], [1, 2], [2, 1]]
    assert len({fingerprint(value) for value in apart}) == len(apart)
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint(MappingProxyType({"a": 1})) == fingerprint({"a": 1})
    assert canonical({"a": (1, (2,))}) == {"a": [1, [2]]}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (lambda: 0, "cannot fingerprint a function"),
        (object(), "cannot fingerprint a object"),
        ({1, 2}, "cannot fingerprint a set"),
        (b"bytes", "cannot fingerprint a bytes"),
        (Path("a"), "cannot fingerprint a PosixPath"),
        (np.int64(1), "cannot fingerprint a int64"),
        (np.zeros(2), "cannot fingerprint a ndarray"),
        ([{"deep": {"er": {1}}}], "cannot fingerprint a set"),
        ({1: "a"}, r"cannot fingerprint a key of type int \(1\); use text"),
        ({None: "a"}, r"cannot fingerprint a key of type NoneType \(None\); use text"),
    ],
)
def test_what_has_no_writing_is_refused(value, told):
    with pytest.raises(TypeError, match=told):
        fingerprint(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="only finite numbers have one writing"):
        fingerprint(value)


# --- what a substitution's part is known by -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Eight records in a file of their own, and the values of a config that sweeps the laboratory's pair on them."""
    path = tmp_path_factory.mktemp("records") / "sums.jsonl"
    lines = Path(resolve("lab://sums/test")).read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:8]), encoding="utf-8")
    return path


def keys(records, *overrides):
    """{(window, chunk index): key} of the substitutions that a config plans."""
    values = {
        "name": "keys",
        "models": [{"name": "m", "base": "lab://tiny", "tuned": {"d": "lab://tiny/sums"}}],
        "datasets": [{"name": "d", "path": str(records), "format": "gsm8k"}],
        "studies": {"substitution": {"widths": [12]}},
        "execution": {"chunk": 4, "device": "cpu"},
        "storage": "nowhere",
    }
    config = parse_config(values, overrides=overrides)
    tasks = plan(config, inspect(config)).of_kind("substitute")
    return {(task.window, index): key for task in tasks for index, key in enumerate(task.parts)}


@pytest.fixture(scope="module")
def plain(records):
    return keys(records)


def test_every_part_has_a_key_of_its_own(plain):
    assert len(plain) == (24 - 12 + 1 + 2) * 2
    assert len(set(plain.values())) == len(plain)


@pytest.mark.parametrize(
    "overrides",
    [
        ["execution.batch_tokens=77"],
        ["execution.fuse=false"],
        ["storage=elsewhere", "name=other"],
        ["models.0.name=other"],
        ["models.0.dtype=float32"],  # what `auto` is on a CPU
        ["studies.similarity={}", "studies.correlation={resamples: 5}"],
        ["studies.substitution.generate={}"],
        ["datasets.0.limit=8", "datasets.0.max_tokens=100000"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_does_not_change_a_loss_does_not_change_its_key(records, plain, overrides):
    assert keys(records, *overrides) == plain


def test_where_checkpoints_and_records_lie_does_not_change_a_key(records, plain, tmp_path):
    for name in ("tiny", "tiny/sums"):
        shutil.copytree(resolve(f"lab://{name}"), tmp_path / name.replace("/", "-"))
    shutil.copy(records, tmp_path / "other.jsonl")
    moved = (f"models.0.base={tmp_path}/tiny", f"models.0.tuned.d={tmp_path}/tiny-sums")
    assert keys(tmp_path / "other.jsonl", *moved) == plain


def test_a_name_for_the_data_set_does_not_change_a_key(records, plain):
    assert keys(records, "datasets.0.name=e", "models.0.tuned={e: lab://tiny/sums}") == plain


@pytest.mark.parametrize(
    "overrides",
    [
        ["models.0.dtype=bfloat16"],
        ["models.0.template=llama2"],
        ["models.0.base=lab://tiny/facts"],
        ["models.0.tuned.d=lab://tiny/facts"],
        ["execution.chunk=3"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_changes_a_loss_changes_its_key(records, plain, overrides):
    assert not set(keys(records, *overrides).values()) & set(plain.values())


def test_a_window_keeps_its_keys_beside_other_windows(records, plain):
    both = keys(records, "studies.substitution.widths=[12, 3]")
    assert {place: both[place] for place in plain} == plain
    assert both[Window(0, 3), 0] != both[Window(1, 4), 0]


def test_a_changed_record_changes_its_own_chunk_only(records, plain, tmp_path):
    lines = records.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[5])
    lines[5] = json.dumps({**record, "answer": record["answer"] + "0"})
    changed = tmp_path / "sums.jsonl"
    changed.write_text("\n".join(lines), encoding="utf-8")
    found = keys(changed)
    assert {place for place in plain if found[place] != plain[place]} == {place for place in plain if place[1] == 1}


def test_the_release_of_a_library_is_part_of_a_key_and_its_patch_is_not(records):
    config = parse_config(
        {
            "name": "keys",
            "models": [{"name": "m", "base": "lab://tiny", "tuned": {"d": "lab://tiny/sums"}}],
            "datasets": [{"name": "d", "path": str(records), "format": "gsm8k"}],
            "studies": {"substitution": {"widths": [24]}, "similarity": {}},
            "execution": {"device": "cpu"},
            "storage": "nowhere",
        }
    )
    facts = inspect(config)

    def with_torch(version):
        return plan(config, dataclasses.replace(facts, libraries={**facts.libraries, "torch": version})).tasks

    assert with_torch("2.13.0+cpu") == with_torch("2.13.1")
    older, newer = with_torch("2.13.0"), with_torch("2.14.0")
    for one, other in zip(older, newer, strict=True):
        assert one.name == other.name
        assert not set(one.keys) & set(other.keys)


@given(
    value=st.dictionaries(
        st.text(max_size=4), st.integers() | st.text(max_size=6) | st.lists(st.integers(), max_size=3)
    ),
    texts=st.lists(st.text(max_size=8), max_size=4),
)
def test_many_at_once_are_the_same_as_one_by_one(value, texts):
    assert fingerprints(value, "chunk", texts) == [fingerprint({**value, "chunk": text}) for text in texts]


def test_what_stands_for_the_texts_may_not_be_a_value():
    with pytest.raises(ValueError, match="stands for 'chunk' here"):
        fingerprints({"a": "(what is put in here)"}, "chunk", ["x"])
