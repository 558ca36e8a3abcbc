"""The judge against a real server on loopback, which counts what it is asked and answers as a test tells it to."""

from __future__ import annotations

import contextlib
import gzip
import math
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import GOOD, Act, Server, completion, serve_chat

from raysweep.errors import InputError, RunError
from raysweep.studies.completions import Endpoint, NoReplyError, RubbishError, complete
from raysweep.studies.endpoint import RUBRIC, EndpointJudge, judge_by_endpoint, read_score

KEY = "a-key-that-nobody-may-see"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_chat() as told:
        yield told


def judge_at(server: Server, **more: Any) -> EndpointJudge:
    endpoint = Endpoint(
        server.url, "judge", timeout=more.pop("timeout", 5.0), api_key_env=more.pop("api_key_env", None)
    )
    return EndpointJudge(endpoint, **{"per_minute": None, "concurrency": 1, "backoff": 0.001, **more})


ASKED = [("Name a fruit.", "A cherry."), ("Two?", "2"), ("Two?", "2")]


def test_answers_are_scored_in_their_order_and_a_rerun_asks_nothing(server: Server, tmp_path: Path) -> None:
    server.acts = [(200, {}, completion("Score: 1")), (200, {}, completion("**Score:** 5"))]
    judge = judge_at(server)
    verdicts = judge_by_endpoint(judge, ASKED, tmp_path)
    assert [(v.success, v.score, v.reason) for v in verdicts] == [
        (False, 1.0, None),
        (True, 5.0, None),
        (True, 5.0, None),
    ]
    assert len(server.came) == 2, "equal ones are asked for once"
    path, headers, body, _ = server.came[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    (message,) = body.pop("messages")
    assert body == {"model": "judge", "temperature": 0}
    assert message["role"] == "user"
    assert message["content"] == RUBRIC.replace("{{ prompt }}", ASKED[0][0]).replace("{{ answer }}", ASKED[0][1])
    assert judge_by_endpoint(judge, ASKED, tmp_path) == verdicts
    assert judge_by_endpoint(replace(judge, success_from=1), ASKED, tmp_path)[0].success is True
    assert len(server.came) == 2
    assert all(path.suffix == ".json" for path in tmp_path.iterdir())


def test_a_score_is_asked_for_again_where_anything_it_depends_on_changed(server: Server, tmp_path: Path) -> None:
    judge, one = judge_at(server), ASKED[:1]
    judge_by_endpoint(judge, one, tmp_path)
    others = [
        replace(judge, rubric="{{ prompt }} {{ answer }}"),
        replace(judge, endpoint=replace(judge.endpoint, model="other")),
        replace(judge, endpoint=replace(judge.endpoint, request={"temperature": 1})),
        replace(judge, endpoint=replace(judge.endpoint, url=server.url + "/")),
    ]
    for count, other in enumerate(others, 2):
        judge_by_endpoint(other, one, tmp_path)
        assert len(server.came) == count
    judge_by_endpoint(judge, [("Name a fruit.", "A lime.")], tmp_path)
    assert len(server.came) == 6


@pytest.mark.parametrize("content", [b"", b"{", b'{"score": 9}', b'{"score": "4"}', b"[4]"])
def test_a_damaged_file_of_the_cache_is_asked_for_again(server: Server, tmp_path: Path, content: bytes) -> None:
    judge = judge_at(server)
    (tmp_path / judge.cache_name(*ASKED[0])).write_bytes(content)
    assert judge_by_endpoint(judge, ASKED[:1], tmp_path)[0].score == 4
    assert len(server.came) == 1


@pytest.mark.parametrize(
    "act", [(500, {}, b"busy"), (503, {}, b""), (429, {}, b""), (408, {}, b""), "hang up", "cut", "sleep"], ids=str
)
def test_what_may_work_later_is_tried_again(server: Server, tmp_path: Path, act: Act) -> None:
    server.acts = [act, act]
    (verdict,) = judge_by_endpoint(judge_at(server, attempts=3, timeout=0.2), ASKED[:1], tmp_path)
    assert verdict.score == 4
    assert len(server.came) == 3


@pytest.mark.parametrize(("status", "after"), [(429, "1"), (503, "date")])
def test_the_server_is_left_alone_for_as_long_as_it_asks(
    server: Server, tmp_path: Path, status: int, after: str
) -> None:
    if after == "date":  # whole seconds: between one and two from now
        after = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
    server.acts = [(status, {"Retry-After": after}, b"")]
    judge_by_endpoint(judge_at(server, concurrency=2), ASKED, tmp_path)
    held = server.came[-1][3] - server.came[0][3]
    assert 0.9 < held < 4
    between = [at for *_, at in server.came if 0.3 < at - server.came[0][3] < 0.9]
    assert not between, "nor is it asked for others meanwhile"


def test_a_server_that_asks_for_more_than_an_hour_is_not_waited_for(server: Server, tmp_path: Path) -> None:
    server.acts = [(429, {"Retry-After": "4000"}, b"tomorrow")]
    with pytest.raises(RunError, match=r"asks to wait for 4000 s \(status 429, which says tomorrow\)"):
        judge_by_endpoint(judge_at(server), ASKED, tmp_path)


def test_rubbish_is_asked_for_again_and_then_has_no_score_and_a_reason(server: Server, tmp_path: Path) -> None:
    rubbish = [completion("no idea"), b"<html>", completion(None), b'{"choices": []}']
    server.acts = [(200, {}, body) for body in rubbish]
    verdicts = judge_by_endpoint(judge_at(server, attempts=4), ASKED[:2], tmp_path)
    assert verdicts[0].success is None
    assert math.isnan(verdicts[0].score)
    assert verdicts[0].reason == (
        "the reply is not a chat completion with a text at choices[0].message.content (asked 4 times)"
    )
    assert verdicts[1].score == 4, "the others are judged"
    assert len(server.came) == 5
    assert len(list(tmp_path.iterdir())) == 1, "rubbish is not kept"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            (401, {}, b"who are you"),
            "refuses with status 401, and says who are you; correct url, model or request; set the key",
        ),
        ((404, {}, b""), "refuses with status 404, and says nothing; correct url, model or request"),
        (
            (302, {"Location": "http://127.0.0.1/else"}, b""),
            "status 302, a redirect to http://127.0.0.1/else; give that URL",
        ),
        (
            (500, {}, b"out of\nmemory"),
            "gave no answer in 2 attempts; the last: status 500, which says out of memory. Start",
        ),
        ("hang up", "gave no answer in 2 attempts; the last: ConnectionError: "),
        ("sleep", "gave no answer in 2 attempts; the last: ReadTimeout: "),
    ],
    ids=str,
)
def test_what_a_person_must_mend_is_refused_with_the_url(
    server: Server, tmp_path: Path, act: Act, message: str
) -> None:
    server.default = act
    with pytest.raises(RunError) as caught:
        judge_by_endpoint(judge_at(server, attempts=2, timeout=0.2), ASKED, tmp_path)
    assert str(caught.value).startswith(f"{server.url}/chat/completions ")
    assert message in str(caught.value)
    again = isinstance(act, str) or act[0] == 500
    assert len(server.came) == (2 if again else 1), "and nothing else is asked"


def test_no_server_at_all_is_refused_and_what_was_scored_is_kept(server: Server, tmp_path: Path) -> None:
    judge = judge_at(server, attempts=2)
    judge_by_endpoint(judge, ASKED[:1], tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(RunError, match=f"{nowhere}/chat/completions gave no answer in 2 attempts"):
            judge_by_endpoint(replace(judge, endpoint=Endpoint(nowhere, "judge")), ASKED, tmp_path)
    server.acts = [(400, {}, b"")]
    with pytest.raises(RunError):
        judge_by_endpoint(judge, ASKED, tmp_path)
    judge_by_endpoint(judge, ASKED, tmp_path)
    assert len(server.came) == 3, "one for the first, one refused, one for the second"


def test_requests_keep_their_pace_and_go_side_by_side(server: Server, tmp_path: Path) -> None:
    asked = [("Count.", str(number)) for number in range(12)]
    server.default = "slow"  # 50 ms each
    judge_by_endpoint(judge_at(server, concurrency=4), asked, tmp_path / "fast")
    assert server.most_at_once == 4
    server.came.clear()
    judge_by_endpoint(judge_at(server, concurrency=4, per_minute=1500), asked, tmp_path / "paced")
    times = [at for *_, at in server.came]
    assert times[-1] - times[0] > 11 * 0.04 - 0.02


def test_the_key_is_sent_and_said_nowhere(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", KEY)
    judge = judge_at(server, api_key_env="MINE")
    judge_by_endpoint(judge, ASKED[:1], tmp_path)
    assert server.came[0][1]["Authorization"] == f"Bearer {KEY}"
    server.default = (403, {}, f"no {KEY} here".encode())
    with pytest.raises(RunError) as caught:
        judge_by_endpoint(judge, ASKED, tmp_path)
    assert "says no *** here" in str(caught.value)
    assert KEY not in repr(judge)
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.iterdir())
    for value, said in (("", "is not set; set it"), (f"{KEY}\n", "contains blanks or characters that no key has")):
        monkeypatch.setenv("MINE", value)
        with pytest.raises(InputError, match=f"environment variable MINE.* {said}") as refused:
            judge_by_endpoint(judge, ASKED, tmp_path)
        assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 3", 3),
        ("Because it declines.\n\n**Score:** 1", 1),
        ('{"reason": "…", "score": 5}', 5),
        ("#thescore: 4", 4),
        ("score = 2/5", 2),
        ("The SCORE: 2. As I said, score: 2", 2),
        (" 4.\n", 4),
    ],
)
def test_where_a_score_is_found(reply: str, score: int) -> None:
    assert read_score(reply) == score


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "has no score: ''"),
        ("I would say 4", "has no score"),
        ("Scores vary: some 3", "has no score"),
        ("Score: 2\nScore: 4", "has several scores, 2, 4"),
        ("Score: 0", "score is 0, which is not a whole number from 1 to 5"),
        ("Score: 4.5", "score is 4.5, which"),
        ("Score: 55", "score is 55, which"),
        ("Score: -3", "score is -3, which"),
        ("7", "has no score"),
    ],
)
def test_what_is_no_score(reply: str, reason: str) -> None:
    with pytest.raises(RubbishError) as caught:
        read_score(reply)
    assert reason in str(caught.value)


def test_a_rubric_that_cannot_be_filled_in_is_refused() -> None:
    for rubric in ("{{ question }}", "{{ prompt"):
        with pytest.raises(InputError, match="template"):
            EndpointJudge(Endpoint("http://localhost/v1", "m"), rubric)
    with pytest.raises(InputError, match="not an http or https URL"):
        Endpoint("file:///etc/passwd", "m")


def dripping(head: bytes) -> tuple[str, socket.socket]:
    """The URL of a server that sends `head`, then one byte in a tenth of a second; and its socket."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(head)
                    while True:
                        time.sleep(0.1)
                        connection.sendall(b"a")

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}/v1", listening


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HT"],
    ids=["body", "header", "status"],
)
def test_a_reply_has_a_deadline_in_total(head: bytes) -> None:
    url, listening = dripping(head)
    begun = time.monotonic()
    with listening, pytest.raises(NoReplyError, match=r"takes longer than the timeout of 0\.5 s"):
        complete(Endpoint(url, "judge", timeout=0.5), "rate this", None)
    assert time.monotonic() - begun < 3


def test_a_packed_reply_is_unpacked_as_far_as_its_limit(server: Server) -> None:
    packed = {"Content-Encoding": "gzip"}
    server.acts = [(200, packed, gzip.compress(GOOD)), (200, packed, gzip.compress(b"a" * 2**26, 1))]
    endpoint = Endpoint(server.url, "judge", timeout=20)
    assert "Score: 4" in complete(endpoint, "rate this", None)
    with pytest.raises(RubbishError, match=r"longer than 1048576 bytes"):
        complete(endpoint, "rate this", None)
    server.acts = [(200, {"Content-Encoding": "br"}, b"")]
    with pytest.raises(RubbishError, match=r"content encoding 'br', which was not requested"):
        complete(endpoint, "rate this", None)


@pytest.mark.parametrize("before", range(60, 110, 7))
def test_a_key_where_a_message_is_shortened_is_hidden_whole(server: Server, before: int) -> None:
    key = "sk-" + "k" * 40
    server.acts = [(400, {}, b"x" * before + b" " + key.encode() + b" " + b"y" * 300)]
    with pytest.raises(RunError) as caught:
        complete(Endpoint(server.url, "judge", timeout=5), "rate this", None)
    assert "kkk" not in str(caught.value)
