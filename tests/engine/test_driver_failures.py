"""The driver where calls fail: a failure stays alone, is tried again where that may help, and is told with its reason."""

from __future__ import annotations

from collections import Counter

from other_executors import Failing, On, commits

from raysweep import api
from raysweep.engine.dispatch import Slot
from raysweep.engine.driver import drive


def test_a_failed_call_fails_its_own_tasks_only(make_config, tmp_path, finished, events_of, tables_of, same_tables):
    config = make_config(tmp_path, "execution.fuse=false")
    done = drive(config, backend=On(lambda folder: Failing(folder, "substitute m/first 2-3 chunk 1")))
    assert done.failed == {
        "substitute m/first 2-3": "RuntimeError: out of memory\nand more",
        "correlate m/first": "not made, because 'substitute m/first 2-3' failed",
    }
    (failure,) = events_of(done, "call_failed")
    assert failure["call"] == "substitute m/first 2-3 chunk 1"
    assert failure["tasks"] == ["substitute m/first 2-3"]
    assert failure["traceback"] == "Traceback …"
    assert events_of(done)[-1]["failed"] == sorted(done.failed)
    tables, whole = tables_of(done), tables_of(finished)
    assert "correlation" not in tables, "it needs every window"
    rows, all_rows = tables["substitution"], whole["substitution"]
    lost = (all_rows["layers"] == "2-3") & all_rows["example_id"].between(4, 7)
    assert lost.sum() == 4
    same_tables({"substitution": rows}, {"substitution": all_rows[~lost].reset_index(drop=True)})
    same_tables({"dynamics": tables["dynamics"]}, {"dynamics": whole["dynamics"]}, exactly=True)

    standing = api.status(tmp_path)
    assert standing.failures == {"substitute m/first 2-3": "RuntimeError: out of memory\nand more"}
    assert standing.unfinished == ["substitute m/first 2-3", "correlate m/first"]
    assert standing.tasks == {"substitute": (6, 7), "similarity": (2, 2), "correlate": (0, 1)}

    mended = drive(config)
    assert (mended.n_calls, mended.failed) == (2, {}), "the failed part, and the correlation"
    same_tables(tables_of(mended), whole)
    assert api.status(tmp_path).failures == {}


def test_a_failed_piece_fails_the_tasks_of_its_windows_only(make_config, tmp_path, monkeypatch):
    class Pieces(Failing):
        slots = (Slot(),) * 3

        def collect(self):
            self.names = tuple(call.name for call in self._calls if "piece 1 of 2" in call.name)
            return super().collect()

    monkeypatch.setattr("raysweep.engine.dispatcher.choose_pieces", lambda *how: 0 if how[-1] else -1)
    config = make_config(tmp_path, "studies={substitution: {widths: [2]}}")
    backend = On(lambda folder: Pieces(folder, failure="refused"))
    done = drive(config, backend=backend)
    committed = done.folder.committed()
    unfinished = [task.name for task in done.graph.tasks if any(key not in committed for key in task.keys)]
    assert 0 < len(unfinished) < 7
    assert sorted(done.failed) == sorted(unfinished)
    standing = api.status(tmp_path)
    assert sorted(standing.failures) == sorted(standing.unfinished) == sorted(unfinished)


def test_what_twins_share_fails_for_both(make_config, tmp_path):
    config = make_config(tmp_path, "studies={substitution: {widths: [3]}}")
    twins = [{**config.models[0].model_dump(), "name": name} for name in ("m", "n")]
    config = config.model_copy(update={"models": [type(config.models[0])(**twin) for twin in twins]})
    done = drive(config, backend=On(lambda folder: Failing(folder, "substitute m/first", failure="refused")))
    assert set(done.failed) == {task.name for task in done.graph.tasks}


def test_a_call_that_fails_is_tried_again_and_then_set_aside(make_config, tmp_path, events_of):
    config = make_config(tmp_path, "execution.attempts=3")
    name = "capture m/first chunk 1"
    backend = On(lambda folder: Failing(folder, name, times=2))
    done = drive(config, backend=backend)
    assert done.failed == {}
    assert {event["failure"] for event in events_of(done, "call_retried")} == {"raised"}
    assert [(e["attempt"], e["attempts"], e["call"]) for e in events_of(done, "call_retried")] == [
        (1, 3, name),
        (2, 3, name),
    ]
    started = [event["call"] for event in events_of(done, "call_started")]
    assert started.count(name) == 3
    assert started[-1] != name or len(started) == 13, "the others went on meanwhile"

    done = drive(config, fresh=True, backend=On(lambda folder: Failing(folder, name, times=3)))
    assert set(done.failed) == {"similarity m/first", "correlate m/first"}
    assert [event["attempt"] for event in events_of(done, "call_retried", "call_failed")] == [1, 2, 3]


def test_refused_input_is_not_tried_again(make_config, tmp_path, events_of):
    backend = On(lambda folder: Failing(folder, "capture m/first chunk 1", failure="refused"))
    done = drive(make_config(tmp_path), backend=backend)
    assert set(done.failed) == {"similarity m/first", "correlate m/first"}
    assert [event["event"] for event in events_of(done, "call_retried", "call_failed")] == ["call_failed"]


def test_a_call_whose_worker_died_before_it_began_is_not_charged(make_config, tmp_path, events_of):
    config = make_config(tmp_path, "execution.attempts=1")
    done = drive(config, backend=On(lambda folder: Failing(folder, "", times=5, failure="unstarted")))
    assert done.failed == {}
    assert events_of(done, "call_retried", "call_failed") == []
    assert done.n_calls == 11
    returned = Counter(event["call"] for event in events_of(done, "call_returned"))
    assert set(returned.values()) == {5}
    assert returned.total() + 11 == len(events_of(done, "call_started"))


def test_the_log_has_how_many_workers_are_left(make_config, tmp_path, events_of):
    class Fewer(Failing):
        slots = (Slot(),) * 3

        def collect(self):
            self.slots = (Slot(), Slot(), Slot(models=False, results=False))
            return super().collect()

    done = drive(make_config(tmp_path), backend=On(lambda folder: Fewer(folder, "", times=1, failure="unstarted")))
    assert done.failed == {}
    assert [event["workers"] for event in events_of(done, "workers_changed")] == [2]


def test_the_log_has_the_tasks_by_kind_done_and_all(make_config, tmp_path, events_of):
    fewer = drive(make_config(tmp_path), backend=On(lambda folder: Failing(folder, "similarity m/first")))
    (first,) = events_of(fewer, "run_started")
    assert first["kinds"] == {"substitute": [0, 7], "similarity": [0, 2], "correlate": [0, 1]}
    drive(make_config(tmp_path))
    again = events_of(fewer, "run_started")[-1]
    assert again["kinds"] == {"substitute": [7, 7], "similarity": [1, 2], "correlate": [0, 1]}


def test_without_activations_there_is_no_similarity(make_config, tmp_path, tables_of):
    done = drive(make_config(tmp_path), backend=On(lambda folder: Failing(folder, "capture m/first chunk 2")))
    assert set(done.failed) == {"similarity m/first", "correlate m/first"}
    assert sorted(tables_of(done)) == ["critical", "dynamics", "health", "similarity", "substitution"]
    assert set(tables_of(done)["dynamics"]["dataset"]) == {"second"}


def test_when_everything_fails_the_run_still_ends(make_config, tmp_path, tables_of):
    done = drive(make_config(tmp_path), backend=On(lambda folder: Failing(folder, "")))
    assert set(done.failed) == {task.name for task in done.graph.tasks}
    assert tables_of(done) == {}
    assert api.open_run(tmp_path).report.is_file()


def test_a_call_that_raises_is_a_failure_with_its_traceback(make_config, tmp_path, events_of, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("raysweep.engine.table_work.similarity_tables", broken)
    done = drive(make_config(tmp_path, "studies={similarity: {}}"))
    assert done.failed == dict.fromkeys(
        ["similarity m/first", "similarity m/second"], "RuntimeError: the device is gone"
    )
    for event in events_of(done, "call_failed"):
        assert event["traceback"].startswith("Traceback")
        assert "in broken" in event["traceback"]
    assert commits(events_of(done)).total() == 5, "what was captured is kept"
