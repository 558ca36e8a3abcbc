"""Where weights are: chosen by size and said, refused where it cannot be, and no difference to any table."""

from __future__ import annotations

import errno
import re
from dataclasses import replace

import numpy as np
import pytest

from raysweep.config import parse_config
from raysweep.engine import events
from raysweep.engine.calls import CaptureCall, SubstituteCall
from raysweep.engine.driver import drive
from raysweep.engine.inspection import inspect
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.errors import InputError
from raysweep.models.sizes import layer_sizes
from raysweep.planned import plan_run
from raysweep.store.activations import open_activations
from raysweep.store.chunks import ChunkStore
from raysweep.studies.passes import Pass
from raysweep.studies.shelf import Shelf
from raysweep.studies.streamed import StreamedPair

STREAM = "execution.residency=stream"


def test_a_streamed_run_has_the_tables_of_a_resident_one(make_config, tmp_path, finished, tables_of, same_tables):
    done = drive(make_config(tmp_path / "run", STREAM))
    assert not done.failed
    same_tables(tables_of(finished), tables_of(done))
    log = list(events.read_events(done.folder.events))
    calls = [e["call"] for e in log if e["event"] == events.CHUNK_COMMITTED and e["commit"].startswith("substitute")]
    assert len(calls) == 3, "chunks are committed one by one"
    assert {name.rpartition("/")[2].split(" ", 2)[2] for name in calls} == {"chunks 0-2"}, "of one pass"


def test_a_kill_between_two_chunks_of_a_call_keeps_the_first(
    make_config, tmp_path, monkeypatch, finished, tables_of, same_tables
):
    config = make_config(tmp_path / "run", STREAM)
    whole = ChunkStore.commit_all

    def commit_all(self, chunks, **kwargs):
        swept = [place for place, chunk in enumerate(chunks) if chunk.name.startswith("substitute")]
        if not swept:
            return whole(self, chunks, **kwargs)
        whole(self, chunks[: swept[0] + 1], **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ChunkStore, "commit_all", commit_all)
        with pytest.raises(KeyboardInterrupt):
            drive(config)
    done = drive(config)
    same_tables(tables_of(finished), tables_of(done))
    log = list(events.read_events(done.folder.events))
    told = [e for e in log if e["event"] == events.CHUNK_COMMITTED]
    assert len(told) == len({e["commit"] for e in told})
    calls = [e["call"] for e in told if e["commit"].startswith("substitute")]
    assert [name.rpartition("chunk")[2] for name in calls] == ["s 0-2", "s 1-2", "s 1-2"]


def test_captures_ride_on_the_sweep_of_the_same_chunks(make_config, tmp_path, finished, tables_of, same_tables):
    config = make_config(tmp_path / "run", STREAM)
    facts = inspect(config)
    done = drive(config)
    log = list(events.read_events(done.folder.events))
    calls = [e["call"] for e in log if e["event"] == events.CALL_DONE]
    assert [c for c in calls if c.startswith(("capture", "substitute"))] == [
        "substitute m/first 0-5 chunks 0-2",
        "capture m/second chunks 0-1",
    ]
    (swept,) = (e for e in log if e["event"] == events.CALL_DONE and e["call"].startswith("substitute"))
    layers = sum(6 * layer_sizes(c, "float32")[0] for c in (facts.models["m"].base, *facts.models["m"].tuned.values()))
    rest = sum(layer_sizes(c, "float32")[1] for c in (facts.models["m"].base, *facts.models["m"].tuned.values()))
    assert swept["measured"]["bytes_read"] == layers + rest, "each layer of both once, the captures' included"
    for name in ("first", "second"):
        ours, theirs = (open_activations(run.folder.activations("m", name)) for run in (done, finished))
        np.testing.assert_array_equal(ours.example_ids, theirs.example_ids)
        np.testing.assert_allclose(ours.states(), theirs.states(), rtol=0, atol=1e-5)
    same_tables(tables_of(finished), tables_of(done))


def test_a_kill_before_the_captures_of_a_pass_are_committed_captures_again_and_sweeps_no_more(
    make_config, tmp_path, monkeypatch, finished, tables_of, same_tables
):
    config = make_config(tmp_path / "run", STREAM)
    whole = ChunkStore.commit_all

    def commit_all(self, chunks, **kwargs):
        swept = [chunk for chunk in chunks if not chunk.name.startswith("capture")]
        made = whole(self, swept, **kwargs)
        if len(swept) < len(chunks):
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patch:
        patch.setattr(ChunkStore, "commit_all", commit_all)
        with pytest.raises(KeyboardInterrupt):
            drive(config)
    done = drive(config)
    same_tables(tables_of(finished), tables_of(done))
    second = list(events.read_events(done.folder.events))
    at = max(i for i, e in enumerate(second) if e["event"] == events.RUN_STARTED)
    calls = {e["call"] for e in second[at:] if e["event"] == events.CALL_STARTED}
    assert {"capture m/first chunks 0-2", "capture m/second chunks 0-1"} <= calls
    assert not any(call.startswith("substitute") for call in calls)


def test_captures_stay_apart_where_calls_are_not_fused(make_config):
    config = make_config("nowhere", STREAM, "execution.fuse=false")
    facts = inspect(config)
    calls = list(model_calls(config, facts, plan(config, facts), set()))
    assert not any(call.captures for call in calls if isinstance(call, SubstituteCall))
    assert [call.name for call in calls if isinstance(call, CaptureCall)] == [
        "capture m/first chunks 0-2",
        "capture m/second chunks 0-1",
    ]


def test_chunks_share_a_pass_as_far_as_their_states_fit(make_config, monkeypatch):
    config = make_config("nowhere", STREAM)
    facts = inspect(config)
    graph = plan(config, facts)
    monkeypatch.setattr("raysweep.studies.passes.group_passes", lambda needs, room: [[0, 1], [2]])
    calls = [c for c in model_calls(config, facts, graph, set()) if isinstance(c, SubstituteCall)]
    assert [call.sizes for call in calls] == [(4, 4), (2,)]
    assert all(len(call.keys) == len(call.sizes) * len(call.windows) for call in calls)


def test_auto_streams_what_does_not_fit_and_says_why(make_config, monkeypatch):
    told = plan_run(make_config("nowhere")).residency["m"]
    assert told.startswith("resident, its weights (0.01 GB) fit in ")
    monkeypatch.setattr("raysweep.models.memory.private_bytes", lambda: 0)
    facts = inspect(make_config("nowhere"))
    sizes = [layer_sizes(c, "float32") for c in (facts.models["m"].base, facts.models["m"].tuned["first"])]
    least = sum(2 * layer + rest for layer, rest in sizes)
    found = inspect(make_config("nowhere", f"execution.memory={least + 1000}")).models["m"].residency
    assert (found.mode, found.why) == ("stream", "its weights (0.01 GB) do not fit in 0.01 GB")
    monkeypatch.setattr(
        "raysweep.engine.room.LOGIT_BYTES", 0
    )  # what a batch needs at least is far more than these weights
    monkeypatch.setattr("raysweep.engine.inspection.choose_residency", lambda *args: replace(found, memory=None))
    assert "weights      of m: stream, its weights (0.01 GB) do not" in plan_run(make_config("nowhere")).to_text()


def test_a_budget_for_layers_and_no_batch_is_refused_with_the_least(make_config, monkeypatch, tmp_path):
    monkeypatch.setattr("raysweep.models.memory.private_bytes", lambda: 10**8)
    small = make_config(tmp_path / "run", STREAM, "execution.memory=110MB")
    words = (
        r"^model 'm': a memory budget of 0\.11 GB \(execution\.memory\) holds two layers of each checkpoint, but not "
        r"also the states of one batch under 7 windows \(0\.2\d GB\); the minimum is (0\.3\d) GB\. Set "
        r"execution\.memory to that or more, or lower execution\.batch_tokens$"
    )
    for refuse in (plan_run, drive):
        with pytest.raises(InputError, match=words) as caught:
            refuse(small)
    assert not (tmp_path / "run").exists()
    least = re.search(words, str(caught.value))[1]
    enough = make_config("nowhere", STREAM, f"execution.memory={least}GB")
    assert plan_run(enough).options["m"].taken == "stream"
    back = r"not also the states of one batch in a forward and backward pass \(0\.2\d GB\); the minimum is 0\.3\d GB"
    gradient = ("studies.substitution.estimator=gradient", "execution.batch_tokens=200")  # one state fills a call
    with pytest.raises(InputError, match=back):
        plan_run(make_config("nowhere", STREAM, "execution.memory=110MB", *gradient))
    # without the states of 7 windows, of which 10 are in memory at once, less would do
    few = make_config(
        "nowhere", STREAM, "execution.memory=110MB", "studies.substitution=null", "studies.correlation=null"
    )
    assert plan_run(few).options["m"].taken == "stream"


def test_a_budget_too_small_for_two_layers_is_refused_with_the_least(make_config, tmp_path):
    words = (
        r"^model 'm': a memory budget of 0\.10 GB \(execution\.memory\) cannot hold two layers of each checkpoint "
        r"\(0\.01 GB\), its embeddings and head \(0\.01 GB\) and the program \(\d\.\d\d GB\); the minimum is "
    )
    with pytest.raises(InputError, match=words):
        drive(make_config(tmp_path / "run", STREAM, "execution.memory=100MB"))
    assert not (tmp_path / "run").exists()


def test_text_cannot_be_written_from_streamed_layers(make_config):
    asked = "studies.substitution.generate={examples: 1, tokens: 2}"
    with pytest.raises(
        InputError, match=r"^model 'm' cannot be streamed: studies.substitution.generate generates token by"
    ):
        inspect(make_config("nowhere", STREAM, asked))
    found = inspect(make_config("nowhere", "execution.memory=1MB", asked)).models["m"].residency
    assert found.mode == "resident"
    assert "do not fit in 0.01 GB, but model 'm' cannot be streamed: studies.substitution.generate" in found.why


@pytest.mark.parametrize(
    ("text", "size"), [("1.5GB", 1_500_000_000), ("2GiB", 2**31), ("800 MB", 800_000_000), (4096, 4096)]
)
def test_sizes_of_memory(make_config, text, size):
    config = make_config("nowhere", f"execution.memory={text}")
    assert config.execution.memory_bytes == size
    assert parse_config(config.model_dump()) == config


@pytest.mark.parametrize("text", ["0", "-1GB", "much", "1.5 gigs", "true", "[]"])
def test_what_is_no_size_is_refused(make_config, text):
    with pytest.raises(InputError, match=r"key 'execution\.memory': give auto, or a size such as 1\.5GB or 800MB, not"):
        make_config("nowhere", f"execution.memory={text}")


def spill_all(self, batches, *_):
    return [Pass(tuple(range(len(batches))), frozenset(range(len(batches))), 10**6)]


def test_a_disk_that_fills_while_states_wait_there_fails_the_sweep_and_a_later_run_goes_on(
    make_config, tmp_path, monkeypatch, finished, tables_of, same_tables
):
    config = make_config(tmp_path / "run", STREAM, f"execution.spill={tmp_path / 'spill'}")
    monkeypatch.setattr(StreamedPair, "passes", spill_all)
    put = Shelf.put

    def full(self, place, branches):
        if any(tmp_path.glob("spill/*/*.states")):
            with self._told():
                raise OSError(errno.ENOSPC, "No space left on device")
        put(self, place, branches)

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "put", full)
        ended = drive(config)
    told = f"states cannot be kept on disk in '{tmp_path / 'spill'}' (execution.spill): No space left on device (1.00 MB needed, "
    assert "substitute m/first none" in ended.failed
    assert ended.failed["similarity m/first"].startswith(told)
    assert "similarity m/second" not in ended.failed, "what needs no states there goes on"
    assert list((tmp_path / "spill").iterdir()) == []
    done = drive(config)
    assert not done.failed
    same_tables(tables_of(finished), tables_of(done))
    (swept,) = (
        e
        for e in events.read_events(done.folder.events)
        if e["event"] == events.CALL_DONE and e["call"].startswith("substitute")
    )
    assert swept["measured"]["states_on_disk"] > 0


def test_the_plan_says_what_waits_on_disk_and_why(make_config, tmp_path, monkeypatch):
    spill = f"execution.spill={tmp_path / 'spill'}"
    assert "wait" not in plan_run(make_config("nowhere", spill)).residency["m"], "nothing is streamed"
    told = plan_run(make_config("nowhere", STREAM, spill)).residency["m"]
    assert told == "stream, as asked; no states of first are kept on disk, because all of them fit in memory"
    for words, disk in (
        (
            f"0.00 GB of states of first are kept in '{tmp_path / 'spill'}', which takes 1 pass over the weights "
            "instead of 3 passes: fewer bytes in total",
            [Pass((0, 1, 2), frozenset({2}), 1)],
        ),
        ("no states of first are kept on disk, because 3 passes over the weights move fewer bytes", None),
    ):

        def choose(needs, room, asked=None, largest=None, disk=disk):
            return (asked and disk) or [Pass((index,)) for index in range(len(needs))]

        monkeypatch.setattr("raysweep.engine.together.choose_passes", choose)
        assert plan_run(make_config("nowhere", STREAM, spill)).residency["m"] == f"stream, as asked; {words}"


def test_a_spill_folder_that_cannot_be_one_is_refused(make_config, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"^execution\.spill '.*/file/x' is inside '.*/file', which is a file; give"):
        drive(make_config(tmp_path / "run", STREAM, f"execution.spill={tmp_path / 'file' / 'x'}"))
    assert not (tmp_path / "run").exists()
    for text in ("''", "s3://bucket"):
        with pytest.raises(InputError, match=r"key 'execution\.spill': give a folder, not "):
            make_config("nowhere", f"execution.spill={text}")
