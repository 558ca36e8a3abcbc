"""A Ray cluster's dashboard: whether it answers and accepts this process's token, its nodes, and a client of its jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping

import ray
import requests
from ray.job_submission import JobSubmissionClient

from raysweep.engine.dispatch import Node
from raysweep.engine.ray_address import ADDRESSES
from raysweep.engine.ray_token import what_token
from raysweep.errors import InputError
from raysweep.redaction import redacted

_ANSWER_SECONDS = 5.0


def check_dashboard_answers(url: str) -> Mapping[str, str]:
    """Return the headers of requests. Raises InputError unless a Ray dashboard answers at `url` and accepts this process's token."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    headers = dict(get_auth_headers_if_auth_enabled({}))
    try:
        answer = requests.get(f"{url}/api/version", headers=headers, timeout=_ANSWER_SECONDS, allow_redirects=False)
    except requests.exceptions.RequestException as error:
        raise InputError(
            f"nothing answers at {redacted(url)} ({type(error).__name__}); is the cluster up, and is this its dashboard "
            "(port 8265 by default, and on the head's loopback unless it was started otherwise)?"
        ) from error
    if answer.status_code in (401, 403):
        raise InputError(
            f"the cluster at {redacted(url)} asks for a token, and {what_token()}; give its token in RAY_AUTH_TOKEN, or in the "
            "file that RAY_AUTH_TOKEN_PATH names (~/.ray/auth_token by default)"
        )
    try:
        theirs = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"what answers at {redacted(url)} is not a Ray dashboard; give http://HOST:8265 of the cluster's head"
        ) from None
    if theirs != ray.__version__:
        raise InputError(
            f"the cluster at {redacted(url)} has Ray {theirs}, and this process has Ray {ray.__version__}; use the same on both"
        )
    return headers


def nodes_of(url: str, headers: Mapping[str, str]) -> list[Node]:
    """Return the living nodes of the cluster with their resources. Raises InputError if the dashboard does not list them."""
    try:
        answer = requests.get(
            f"{url}/api/v0/nodes",
            headers=dict(headers),
            params={"detail": "1", "limit": "10000"},
            timeout=_ANSWER_SECONDS,
        )
        answer.raise_for_status()
        found = answer.json()["data"]["result"]["result"]
        alive = [node["resources_total"] for node in found if node["state"] == "ALIVE"]
    except (requests.exceptions.RequestException, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the dashboard at {redacted(url)} does not list its nodes ({type(error).__name__})"
        ) from error
    return [Node(has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in alive]


def client_of(url: str) -> JobSubmissionClient:
    """Return a client of this dashboard. Ray's own class would go to RAY_ADDRESS instead if that is set."""
    others = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    try:
        return JobSubmissionClient(url)
    finally:
        os.environ.update(others)
