"""What a Python process runs first that has this folder on its path: one that is to be a worker of Ray lets server.py's process
fork it, and stays beside it until it ends. Any other goes on as if this were not there.

Most of what a test on Ray takes is its workers' imports. Started as ever is a worker that is to have a command, a Python or a
path of its own.
"""

import os
import sys


def _asked() -> tuple[list[str], dict[str, str]] | None:
    """The arguments and the environment of the worker that Ray's own script would become; None for what it has to do itself."""
    import json
    import re

    arguments = sys.orig_argv
    at = next(
        (at for at, word in enumerate(arguments) if word.endswith("/ray/_private/workers/default_worker.py")), None
    )
    if at is None:  # or Ray Client's server
        return None
    context = "--serialized-runtime-env-context="
    given = next((json.loads(word.removeprefix(context)) for word in arguments if word.startswith(context)), {})
    variables = given.get("env_vars") or {}
    if given.get("command_prefix") or given.get("override_worker_entrypoint") or "PYTHONPATH" in variables:
        return None
    if given.get("py_executable", sys.executable) != sys.executable:
        return None
    told = [word for word in arguments[at:] if not word.startswith((context, "--language="))]
    expanded = {name: re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(text)) for name, text in variables.items()}
    return told, {**os.environ, **expanded}


_ours = "RAYSWEEP_WARM" in os.environ and any("_worker.py" in word for word in sys.orig_argv[1:3])
if _ours and (asked := _asked()) is not None:
    from server import serve_as  # beside this file

    serve_as(*asked)
