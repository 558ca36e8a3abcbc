"""Chat completions over HTTP: one request to an OpenAI-compatible endpoint, and how fast requests may follow each other.

What did not work is told apart: what may work when tried again (`NoReplyError`), what a person must mend (RunError), and a reply
without a text (`RubbishError`). Trying again is the caller's. The key comes from the environment, goes into one header, and is
taken out of every message; redirects are not followed, so that it goes to no other host.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from raysweep.errors import InputError, RunError, shortened, shown
from raysweep.redaction import HIDDEN, redacted
from raysweep.studies.deadline import Deadline

MOST_BYTES = 2**20  # of a reply
LONGEST_WAIT = 3600.0  # seconds a server may ask for
AGAIN = frozenset({408, 409, 425, 429})  # and every 5xx


class NoReplyError(Exception):
    """No answer this time; `wait` is how many seconds the server asks to be left alone, None where it says nothing."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class RubbishError(Exception):
    """An answer that is not what was asked for."""


@dataclass(frozen=True)
class Endpoint:
    """Where completions come from: `{url}/chat/completions`, for `model`, with `request` for its other fields.

    `api_key_env` names the environment variable that holds the key; None for an endpoint that needs none. `timeout` is in
    seconds, for connecting, sending, and the whole reply together.
    """

    url: str
    model: str
    api_key_env: str | None = None
    timeout: float = 60.0
    request: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(
                f"the endpoint '{redacted(self.url)}' is not an http or https URL; write it as http://host:port/v1"
            )

    @property
    def address(self) -> str:
        """The URL that requests go to."""
        return f"{self.url.rstrip('/')}/chat/completions"

    def key(self) -> str | None:
        """The key, read from the environment; InputError, without its value, where it is not there or can be no header."""
        if self.api_key_env is None:
            return None
        value = os.environ.get(self.api_key_env, "")
        if not value:
            raise InputError(
                f"the environment variable {self.api_key_env}, which api_key_env names for the endpoint's key, is not "
                "set; set it"
            )
        if not value.isascii() or not value.isprintable() or " " in value:
            raise InputError(
                f"the environment variable {self.api_key_env} contains blanks or characters that no key has; set it to "
                "the key alone"
            )
        return value


class Pace:
    """Lets requests go at most so many a minute, evenly, from all threads of a process; None for no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self._apart = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._held_until = 0.0
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    def wait(self) -> None:
        """Return when the next request may go. Raises StoppedError once the pace is stopped."""
        with self._lock:
            at = self._next = max(time.monotonic(), self._next)
            self._next += self._apart
        while (left := max(at, self._held_until) - time.monotonic()) > 0 or self.stopped.is_set():
            self.pause(left)

    def pause(self, seconds: float) -> None:
        """Return after so long. Raises StoppedError once the pace is stopped."""
        if self.stopped.wait(seconds):
            raise StoppedError

    def hold(self, seconds: float) -> None:
        """Let no request go for so long from now."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def stop(self) -> None:
        """Let nothing go any more."""
        self.stopped.set()


class StoppedError(Exception):
    """Another request failed for good, and no more are sent."""


class _Key(AuthBase):
    """The key as a header; being an `auth`, it also keeps a netrc file's entry from taking the header's place."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def complete(endpoint: Endpoint, content: str, key: str | None) -> str:
    """The endpoint's reply to one user's message. `key` is `endpoint.key()`.

    Raises NoReplyError where nothing came, or the server was busy or failing; RubbishError for a reply with no text where it
    should be; RunError for a refusal that trying again will not mend, naming URL and status.
    """
    body = {**endpoint.request, "model": endpoint.model, "messages": [{"role": "user", "content": content}]}
    deadline = Deadline(endpoint.timeout)
    try:
        with deadline, deadline.session() as session:
            response = session.post(
                endpoint.address,
                json=body,
                headers={"Accept-Encoding": "identity"},
                auth=_Key(key),
                timeout=endpoint.timeout,
                allow_redirects=False,
                stream=True,
            )
            status, headers = response.status_code, response.headers
            text = _read(response, deadline)
    except (requests.RequestException, OSError, ValueError, HTTPError, HTTPException) as error:
        if deadline.passed:
            raise NoReplyError(_late(endpoint)) from None
        raise NoReplyError(f"{type(error).__name__}: {_said(str(error), key)}") from None
    except zlib.error as error:
        raise RubbishError(f"the reply cannot be unpacked ({error})") from None
    except AttributeError:  # of a socket that the deadline closed while urllib3 was at it
        if not deadline.passed:
            raise
        raise NoReplyError(_late(endpoint)) from None
    if deadline.passed:
        raise NoReplyError(_late(endpoint))
    if status == 200:
        return _content(text)
    said = _said(text, key) or "nothing"
    if status in AGAIN or status >= 500:
        raise NoReplyError(f"status {status}, which says {said}", _asked_wait(headers.get("Retry-After")))
    if 300 <= status < 400:
        where = _said(headers.get("Location", "nowhere"), key)
        raise RunError(
            f"{endpoint.address} answers with status {status}, a redirect to {where}; give that URL if it is correct"
        )
    hint = "; set the key's variable and name it in api_key_env" if status in (401, 403) else ""
    raise RunError(
        f"{endpoint.address} refuses with status {status}, and says {said}; correct url, model or request{hint}"
    )


def _late(endpoint: Endpoint) -> str:
    return f"ReadTimeout: the reply takes longer than the timeout of {endpoint.timeout:g} s"


def _read(response: requests.Response, deadline: Deadline) -> str:
    """The body as text. Raises RubbishError where it is too long, unpacked too, or packed in another way than gzip or deflate."""
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in ("", "identity", "gzip", "deflate"):
        raise RubbishError(f"the reply has the content encoding {shown(packing)}, which was not requested")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if packing in ("gzip", "deflate") else None
    body = b""
    while len(body) <= MOST_BYTES and not deadline.passed:
        part = response.raw.read(2**14, decode_content=False)
        if not part:
            return body.decode("utf-8", "replace")
        body += unpack.decompress(part, MOST_BYTES + 1) if unpack else part
    if deadline.passed:
        return ""  # reported by whoever set it
    raise RubbishError(f"the reply is longer than {MOST_BYTES} bytes")


def _content(text: str) -> str:
    try:
        content = json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        content = None
    if not isinstance(content, str):
        raise RubbishError("the reply is not a chat completion with a text at choices[0].message.content")
    return content


def _asked_wait(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, given as a number or as a date; None where it says nothing readable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


def _said(text: str, key: str | None) -> str:
    """A text for a message: secrets are hidden first, because a half of one would not be recognised, then it is shortened."""
    hidden = redacted(text.replace(key, HIDDEN) if key else text)
    return shortened(" ".join(hidden.split()), 200)
