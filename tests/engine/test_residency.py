"""Where weights are: chosen by size and said, refused where it cannot be, and no difference to any table."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from raysweep.api import plan_run
from raysweep.config import parse_config
from raysweep.engine import events, residency
from raysweep.engine.calls import SubstituteCall
from raysweep.engine.driver import drive
from raysweep.engine.inspection import inspect
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.errors import InputError
from raysweep.store.artifacts import ChunkStore

STREAM = "execution.residency=stream"


def test_a_streamed_run_has_the_tables_of_a_resident_one(make_config, tmp_path, finished, tables_of, same_tables):
    done = drive(make_config(tmp_path / "run", STREAM))
    assert not done.failed
    same_tables(tables_of(finished), tables_of(done))
    log = events.read_events(done.folder.events)
    calls = [e["call"] for e in log if e["event"] == events.CHUNK_COMMITTED and e["commit"].startswith("substitute")]
    assert len(calls) == 3, "chunks are committed one by one"
    assert {name.rpartition("/")[2].split(" ", 2)[2] for name in calls} == {"chunks 0-2"}, "of one pass"


def test_a_kill_between_two_chunks_of_a_call_keeps_the_first(
    make_config, tmp_path, monkeypatch, finished, tables_of, same_tables
):
    config = make_config(tmp_path / "run", STREAM)
    whole, kept = ChunkStore.commit, []

    def commit(self, name, *args, **kwargs):
        if name.startswith("substitute"):
            if kept:
                raise KeyboardInterrupt
            kept.append(name)
        return whole(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkStore, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            drive(config)
    done = drive(config)
    same_tables(tables_of(finished), tables_of(done))
    log = events.read_events(done.folder.events)
    told = [e for e in log if e["event"] == events.CHUNK_COMMITTED]
    assert len(told) == len({e["commit"] for e in told})
    calls = [e["call"] for e in told if e["commit"].startswith("substitute")]
    assert [name.rpartition("chunk")[2] for name in calls] == ["s 0-2", "s 1-2", "s 1-2"]


def test_chunks_share_a_pass_as_far_as_their_states_fit(make_config, monkeypatch):
    config = make_config("nowhere", STREAM)
    facts = inspect(config)
    graph = plan(config, facts)
    monkeypatch.setattr("raysweep.engine.pending.group_passes", lambda needs, room: [[0, 1], [2]])
    calls = [c for c in model_calls(config, facts, graph, set()) if isinstance(c, SubstituteCall)]
    assert [call.sizes for call in calls] == [(4, 4), (2,)]
    assert all(len(call.keys) == len(call.sizes) * len(call.windows) for call in calls)


def test_auto_streams_what_does_not_fit_and_says_why(make_config, monkeypatch):
    told = plan_run(make_config("nowhere")).residency["m"]
    assert told.startswith("resident, its weights (0.01 GB) fit in ")
    monkeypatch.setattr("raysweep.models.memory.private_bytes", lambda: 0)
    facts = inspect(make_config("nowhere"))
    sizes = [residency.layer_sizes(c, "float32") for c in (facts.models["m"].base, facts.models["m"].tuned["first"])]
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
        r"^model 'm': a memory budget of 0\.11 GB \(execution\.memory\) holds two layers of each checkpoint, and not the states "
        r"of one batch under 7 windows \(0\.2\d GB\) with them; the least that would do is (0\.3\d) GB: set execution\.memory to "
        r"that or more, or fewer execution\.batch_tokens$"
    )
    for refuse in (plan_run, drive):
        with pytest.raises(InputError, match=words) as caught:
            refuse(small)
    assert not (tmp_path / "run").exists()
    least = re.search(words, str(caught.value))[1]
    enough = make_config("nowhere", STREAM, f"execution.memory={least}GB")
    assert plan_run(enough).options["m"].taken == "stream"
    # without the states of 7 windows, of which 10 are in memory at once, less would do
    few = make_config(
        "nowhere", STREAM, "execution.memory=110MB", "studies.substitution=null", "studies.correlation=null"
    )
    assert plan_run(few).options["m"].taken == "stream"


def test_a_budget_too_small_for_two_layers_is_refused_with_the_least(make_config, tmp_path):
    words = (
        r"^model 'm': a memory budget of 0\.10 GB \(execution\.memory\) does not hold two layers of each checkpoint "
        r"\(0\.01 GB\), its embeddings and head \(0\.01 GB\) and the program \(\d\.\d\d GB\); the least that would do is "
    )
    with pytest.raises(InputError, match=words):
        drive(make_config(tmp_path / "run", STREAM, "execution.memory=100MB"))
    assert not (tmp_path / "run").exists()


def test_text_cannot_be_written_from_streamed_layers(make_config):
    asked = "studies.substitution.generate={examples: 1, tokens: 2}"
    with pytest.raises(
        InputError, match=r"^model 'm' cannot be streamed: studies.substitution.generate writes token by"
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
