"""Events become samples: compared with a plain count over the same events, and told one by one."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

import pytest
import ray_cluster  # noqa: F401 - it sets the tests' token, which Ray settles on as it is imported

from raysweep.engine import events
from raysweep.engine import metrics as m
from raysweep.engine.calls import CaptureCall, SubstituteCall
from raysweep.engine.disk import space
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.watch import Watch

TIME = "2026-01-02T03:04:05.000+00:00"


class Kept:
    """What a Prometheus would have: counters added up, gauges as last set, observations one after the other."""

    def __init__(self, run="small", space=lambda: (30, 100)):
        self.watch, self.values, self.observed = Watch(run, space), defaultdict(float), defaultdict(list)

    def __call__(self, *told):
        for event in told:
            for metric, value, labels in self.watch.take({"time": TIME, **event}):
                assert set(labels) == set(metric.labels)
                assert labels["run"] == "small"
                key = (metric, *(labels[each] for each in metric.labels if each != "run"))
                if metric.kind == "counter":
                    assert value > 0, "Ray's counters take no nought"
                    self.values[key] += value
                elif metric.kind == "gauge":
                    self.values[key] = value
                else:
                    self.observed[key].append(value)
        return self

    def of(self, metric):
        """The metric's values by its labels, the run apart; a lone label is no tuple."""
        found = {key[1:]: value for key, value in self.values.items() if key[0] is metric}
        return {labels[0] if len(labels) == 1 else labels: value for labels, value in found.items()}


def started(calls, kinds):
    return {"event": "run_started", "calls": calls, "kinds": kinds}


def begun(*calls):
    return [{"event": "call_started", "call": call} for call in calls]


def done(call, **measured):
    return {"event": "call_done", "call": call, "measured": measured}


def missed(event, call, failure, *tasks):
    return {"event": event, "call": call, "failure": failure, "tasks": tasks}


def summed(log, key):
    """Sums over ended calls of what was measured, by kind."""
    sums = defaultdict(float)
    for event in log:
        if event["event"] == events.CALL_DONE and event["measured"].get(key):
            sums[event["call"].split()[0]] += event["measured"][key]
    return sums


def test_a_whole_run_is_counted_exactly(finished, events_of):
    log = events_of(finished)
    kept = Kept()(*log)
    ended = [event for event in log if event["event"] == events.CALL_DONE]
    kinds = Counter(event["call"].split()[0] for event in ended)
    assert kept.of(m.CALLS) == {(kind, "done"): n for kind, n in kinds.items()}
    assert {key[1]: len(seen) for key, seen in kept.observed.items()} == kinds
    for metric, key in (
        (m.TOKENS, "tokens"),
        (m.APPLICATIONS, "layer_applications"),
        (m.TOKEN_APPLICATIONS, "token_applications"),
    ):
        assert kept.of(metric) == pytest.approx(summed(log, key))
        assert kept.of(metric)
    assert kept.of(m.BUSY) == pytest.approx({(kind, "worker"): n for kind, n in summed(log, "seconds").items()})
    assert kept.of(m.READ) == {(): sum(event["measured"]["bytes_read"] for event in ended)}
    assert kept.of(m.LOADS) == {(): 2}, "the pair, once"
    assert kept.of(m.EVICTIONS) == {(): 0}
    folder = finished.folder.root
    assert kept.of(m.WRITTEN) == {
        "results": sum(path.stat().st_size for path in (folder / "chunks").glob("*.parquet")),
        "activations": sum(path.stat().st_size for path in (folder / "activations").rglob("*.arrow")),
    }
    tasks = Counter(task.kind for task in finished.graph.tasks)
    assert kept.of(m.TASKS) == {
        (kind, state): n if state == "done" else 0 for kind, n in tasks.items() for state in ("done", "failed", "left")
    }
    assert kept.of(m.WAITING) == kept.of(m.IN_FLIGHT) == dict.fromkeys(kinds, 0)
    assert kept.of(m.PROGRESS) == {(): 1}
    assert kept.of(m.SECONDS_LEFT) == kept.of(m.RUNNING) == {(): 0}
    assert kept.of(m.WORKERS) == {(): 1}
    assert kept.of(m.FAILED_ATTEMPTS) == {"raised": 0, "lost": 0, "refused": 0}
    assert kept.of(m.PEAK)["worker"] >= kept.of(m.HELD)["worker"] > 10**6


def test_a_run_moves_every_metric_of_the_table(finished, events_of):
    watch = Watch("small", lambda: (30, 100))
    emitted = {sample.metric for event in events_of(finished) for sample in watch.take(event)}
    assert emitted == set(m.METRICS)
    assert len({metric.name for metric in m.METRICS}) == len(m.METRICS)


def test_failures_by_cause_and_their_tasks():
    kept = Kept()(
        started({"capture": 3, "substitute": 4}, {"capture": [0, 1], "substitute": [1, 6], "correlate": [0, 1]}),
        *begun("substitute m/d chunk 0", "substitute m/d chunk 1", "capture m/d chunk 0"),
        missed("call_retried", "substitute m/d chunk 0", "lost", "substitute m/d 0-4"),
        {"event": "call_returned", "call": "substitute m/d chunk 1"},
        *begun("substitute m/d chunk 0"),
        missed("call_failed", "substitute m/d chunk 0", "raised", "substitute m/d 0-4", "substitute m/d 1-5"),
        missed("call_failed", "capture m/d chunk 0", "refused", "capture m/d"),
    )
    assert kept.of(m.FAILED_ATTEMPTS) == {"raised": 1, "lost": 1, "refused": 1}
    assert kept.of(m.CALLS) == {("substitute", "retried"): 1, ("substitute", "failed"): 1, ("capture", "failed"): 1}
    states = {
        "capture": [0, 1, 0],
        "substitute": [1, 2, 3],
        "correlate": [0, 0, 1],
    }
    assert kept.of(m.TASKS) == {
        (kind, state): n
        for kind, counts in states.items()
        for state, n in zip(("done", "failed", "left"), counts, strict=True)
    }
    assert kept.of(m.WAITING) == {"capture": 2, "substitute": 3}
    assert kept.of(m.IN_FLIGHT) == {"capture": 0, "substitute": 0}
    assert kept.of(m.PROGRESS) == {(): pytest.approx(2 / 7)}
    kept({"event": "task_done", "task": "substitute m/d 1-5"})
    assert kept.of(m.TASKS)["substitute", "failed"] == 1, "it was not needed after all"
    kept({"event": "run_finished", "failed": ["capture m/d", "correlate m/d", "substitute m/d 0-4"]})
    assert kept.of(m.TASKS)["correlate", "failed"] == 1
    assert kept.of(m.RUNNING) == {(): 0}


def test_queue_workers_and_time_left():
    kept = Kept()(started({"substitute": 5}, {"substitute": [0, 2]}), {"event": "workers_ready", "workers": 2})
    assert kept.of(m.SECONDS_LEFT) == {}, "nothing has ended yet"
    kept(*begun("substitute m/d chunk 0", "substitute m/d chunk 1"))
    assert (kept.of(m.WAITING), kept.of(m.IN_FLIGHT)) == ({"substitute": 3}, {"substitute": 2})
    kept(done("substitute m/d chunk 0", worker="worker 1", seconds=6.0, loads=2, evictions=1, load_seconds=1.5))
    kept(done("substitute m/d chunk 1", worker="worker 0", seconds=2.0, loads=1, states_on_disk=77))
    assert kept.of(m.SECONDS_LEFT) == {(): pytest.approx(3 * 4.0 / 2)}
    assert kept.of(m.BUSY) == {("substitute", "worker 1"): 6.0, ("substitute", "worker 0"): 2.0}
    assert (kept.of(m.LOADS), kept.of(m.EVICTIONS), kept.of(m.LOADING)) == ({(): 3}, {(): 1}, {(): 1.5})
    assert kept.of(m.WRITTEN) == {"spill": 77}
    kept({"event": "workers_changed", "workers": 1}, {"event": "calls_dropped", "calls": {"substitute": 1}})
    assert kept.of(m.WORKERS) == {(): 1}
    assert kept.of(m.SECONDS_LEFT) == {(): pytest.approx(2 * 4.0)}
    assert kept.of(m.WAITING) == {"substitute": 2}


def test_what_an_earlier_start_committed_is_not_counted():
    told = {"event": "chunk_committed", "commit": "c", "keys": ["k"]}
    assert Kept()(told).values == {}


def test_the_time_of_the_last_progress_is_the_events():
    kept = Kept()(started({}, {}))
    assert kept.of(m.LAST_PROGRESS) == {(): 1767323045.0}
    kept({**done("capture m/d", seconds=1.0), "time": "2026-01-02T03:04:06.500+00:00"})
    assert kept.of(m.LAST_PROGRESS) == {(): 1767323046.5}
    kept({**begun("capture m/d")[0], "time": "2026-01-02T03:05:00.000+00:00"})
    assert kept.of(m.LAST_PROGRESS) == {(): 1767323046.5}


def test_the_disk_is_told_where_it_can_be(tmp_path):
    kept = Kept()(started({}, {}))
    assert (kept.of(m.DISK_FREE), kept.of(m.DISK)) == ({(): 30}, {(): 100})
    assert Kept(space=lambda: None)(started({}, {})).of(m.DISK) == {}
    free, whole = space(tmp_path)
    assert 0 < free < whole
    assert space(tmp_path / "nowhere") is None
    assert space("s3://bucket/run") is None


def test_tokens_of_a_call(small):
    calls = list(model_calls(*small, plan(*small), set()))
    capture = next(call for call in calls if isinstance(call, CaptureCall))
    sweep = next(call for call in calls if isinstance(call, SubstituteCall))
    assert capture.n_tokens == sum(len(e.tokens) - e.n_tokens for e in capture.examples)
    assert sweep.n_tokens == sum(len(e.tokens) for e in sweep.examples)


# --- to Ray -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ray_metrics():
    """The module, with Ray imported as the command line does it."""
    from raysweep.engine.ray_token import use_token

    use_token(starting=True)
    from raysweep.engine import ray_metrics

    return ray_metrics


@pytest.fixture
def recorded(ray_metrics, monkeypatch):
    """What would be recorded in Ray, as (name, value), and whether Ray is up."""
    seen, up = [], [True]

    def recorder(metric):
        return lambda value, labels: seen.append((metric.name, value))

    monkeypatch.setattr(ray_metrics, "_recorder", recorder)
    monkeypatch.setattr(ray_metrics.ray, "is_initialized", lambda: up[0])
    return seen, up


def test_what_comes_before_ray_is_up_is_sent_when_it_is(ray_metrics, recorded, tmp_path):
    seen, up = recorded
    up[0] = False
    listener = ray_metrics.RayMetrics("small", tmp_path)
    listener({"time": TIME, **started({"capture": 1}, {"capture": [0, 1]})})
    assert seen == []
    up[0] = True
    listener({"time": TIME, "event": "workers_ready", "workers": 3})
    assert [seen[0], seen[-1]] == [("raysweep_running", 1), ("raysweep_workers", 3)]
    listener.close()
    assert seen[-1] == ("raysweep_running", 0)


def test_gauges_are_set_anew_and_counters_are_not(ray_metrics, recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_metrics, "_SECONDS", 0.01)
    seen, _ = recorded
    listener = ray_metrics.RayMetrics("small", tmp_path)
    listener({"time": TIME, **started({"capture": 1}, {"capture": [0, 1]})})
    listener({"time": TIME, **done("capture m/d", seconds=2.0, tokens=9)})
    until = time.monotonic() + 20
    while seen.count(("raysweep_running", 1)) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    listener.close()
    assert seen.count(("raysweep_running", 1)) >= 4
    assert seen.count(("raysweep_tokens", 9)) == seen.count(("raysweep_call_seconds", 2.0)) == 1
    n = len(seen)
    time.sleep(0.1)
    assert len(seen) == n, "closed, it is quiet"
