"""What is looked at on every node of a cluster before any work: the same releases as the driver's, and one storage.

Each node is asked by one small task that is pinned to it. It is sent whole and needs nothing but fsspec there, so that a
node with another raysweep, or none, is told as such.
"""

from __future__ import annotations

import os
import platform
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import ray
from fsspec.implementations.local import LocalFileSystem
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.errors import InputError
from raysweep.redaction import redacted

if TYPE_CHECKING:
    from raysweep.store.places import Location

PACKAGES = ("raysweep", "ray", "torch", "transformers")
_ANSWER_SECONDS = 60.0  # a node's first process starts in a second, and from a slow shared disk in many
_SEEN_SECONDS = 5.0  # a shared folder may show another node's file a little late


@dataclass(frozen=True)
class NodeReport:
    """What a node answered: its releases (None: not installed), and what it could not do with the storage ("" for nothing)."""

    node: str
    host: str
    versions: Mapping[str, str | None]
    storage: str = ""


def check_nodes(storage: Location) -> dict[str, Any]:
    """Ask every living node of the joined cluster; what was found, as plain values.

    `storage` is an absolute folder, or a place in an object store. What is made there to find out is removed again. Raises InputError
    naming the nodes whose releases differ from this process's, or that do not see and write this process's storage.
    """
    with Probe(storage) as probe:
        reports = _ask(probe)
        compare_versions(own_versions(), reports)
        probe.check(reports)
    return {"nodes": len(reports), "versions": own_versions()}


def own_versions() -> dict[str, str]:
    """The releases of this process: of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def compare_versions(own: Mapping[str, str], reports: Sequence[NodeReport]) -> None:
    """Raise InputError naming every release that a node has otherwise than this process.

    Builds of one release (`2.13.0+cpu`, `2.13.0+cu130`) are the same: nodes with and without GPUs have different ones.
    """
    different = [
        f"{name} is {report.versions.get(name) or 'not installed'} on {report.host} (node {report.node[:8]}) and {ours} here"
        for report in reports
        for name, ours in own.items()
        if _release(report.versions.get(name)) != _release(ours)
    ]
    if different:
        raise InputError(
            "the nodes of the cluster have different package versions than this process: "
            + "; ".join(different[:10])
            + (f"; and {len(different) - 10} more" if len(different) > 10 else "")
            + "; install the same versions on every node (pip install -c constraints.txt)"
        )


def _release(found: str | None) -> str | None:
    return None if found is None else found.partition("+")[0]


class Probe:
    """A file in the storage that the driver writes and the nodes read, and one of each node the other way round.

    A context: what was made is removed at its end. Raises InputError where this process cannot write there.
    """

    def __init__(self, storage: Location) -> None:
        self.storage = str(storage)
        self.options: dict[str, Any] = {} if isinstance(storage, Path) else dict(storage.storage_options)
        self._shown = redacted(self.storage)
        # as the store names its temporary files: what a kill leaves here goes with the next run
        self.name = f".tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        self._made: list[str] = []  # folders that were not there, outermost first

    def __enter__(self) -> Probe:
        try:
            self._fs, self._root = fsspec.url_to_fs(self.storage, **self.options)
            if isinstance(self._fs, LocalFileSystem):
                self._make_folders()
            self._fs.pipe_file(self._file("driver"), self.name.encode())
        except Exception as error:  # every file system has its own
            self._clear()
            raise InputError(
                f"storage '{self._shown}' cannot be written to by this process ({_words(error)}); give another"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._clear()

    def check(self, reports: Sequence[NodeReport]) -> None:
        """Raise InputError naming the nodes that could not read or write, or whose file is not to be seen from here."""
        told = [f"{report.host} (node {report.node[:8]}) {report.storage}" for report in reports if report.storage]
        until = time.monotonic() + _SEEN_SECONDS
        for report in reports:
            if not report.storage and not self._is_seen(report.node, until):
                told.append(
                    f"the driver does not see what {report.host} (node {report.node[:8]}) writes there; "
                    "it is that node's own folder"
                )
        if told:
            raise InputError(
                f"storage '{self._shown}' is not shared by the whole cluster: {'; '.join(told[:10])}"
                + (f"; and {len(told) - 10} more" if len(told) > 10 else "")
                + "; give a folder that every node mounts and can write to, or a URL that every node reaches"
            )

    def _is_seen(self, node: str, until: float) -> bool:
        while True:
            with suppress(Exception):
                self._fs.invalidate_cache()
                if self._fs.cat_file(self._file(node)) == self.name.encode():
                    return True
            if time.monotonic() > until:
                return False
            time.sleep(0.2)

    def _file(self, whose: str) -> str:
        return f"{self._root.rstrip('/')}/{self.name}.{whose}"

    def _make_folders(self) -> None:
        folder, missing = self._root.rstrip("/"), []
        while not self._fs.exists(folder):
            missing.append(folder)
            folder = folder.rpartition("/")[0]
        for folder in reversed(missing):
            self._fs.mkdir(folder)
            self._made.append(folder)

    def _clear(self) -> None:
        with suppress(Exception):
            self._fs.invalidate_cache()
            for path in self._fs.ls(self._root, detail=False):
                if path.rpartition("/")[2].startswith(f"{self.name}."):
                    self._fs.rm_file(path)
        with suppress(OSError):  # no longer empty
            for folder in reversed(self._made):
                self._fs.rmdir(folder)


def _ask(probe: Probe) -> list[NodeReport]:
    """The answers of all living nodes. Raises InputError where one gives none."""
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    task = ray.remote(make_task())
    asked = {
        node: task.options(
            name="check node",
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(
            probe.storage,
            probe.options,
            f"{probe.name}.driver",
            f"{probe.name}.{node}",
            probe.name,
            list(PACKAGES),
            _SEEN_SECONDS,
        )
        for node in nodes
    }
    until = time.monotonic() + _ANSWER_SECONDS
    reports = []
    for node, ref in asked.items():
        try:
            versions, told = ray.get(ref, timeout=max(0.0, until - time.monotonic()))
        except GetTimeoutError as error:
            raise InputError(
                f"{nodes[node]} (node {node[:8]}) does not answer: no process started there within {_ANSWER_SECONDS:.0f} s, or "
                f"the storage '{probe._shown}' hangs there; repair the node, or remove it from the cluster"
            ) from error
        except RayError as error:
            raise InputError(
                f"{nodes[node]} (node {node[:8]}) cannot run anything ({_words(error)[-300:]}); repair the node, or "
                "remove it from the cluster"
            ) from error
        reports.append(NodeReport(node, nodes[node], versions, told))
    return reports


def make_task() -> Callable[..., tuple[dict[str, str | None], str]]:
    """The task of a node, a function of its own each time: cloudpickle then sends it whole, not by raysweep's name for it."""

    def look(
        storage: str,
        options: dict[str, Any],
        theirs: str,
        mine: str,
        content: str,
        packages: list[str],
        seconds: float,
    ) -> tuple[dict[str, str | None], str]:
        import platform
        import time
        from importlib.metadata import PackageNotFoundError, version

        versions: dict[str, str | None] = {"python": platform.python_version()}
        for name in packages:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = None
        try:
            import fsspec

            fs, root = fsspec.url_to_fs(storage, **options)
            until = time.monotonic() + seconds
            while True:  # a shared folder may show a new file a little late
                try:
                    seen = fs.cat_file(f"{root.rstrip('/')}/{theirs}") == content.encode()
                    break
                except FileNotFoundError:
                    if time.monotonic() > until:
                        return versions, "does not see what the driver writes there; it is not a folder that both share"
                    time.sleep(0.2)
                    fs.invalidate_cache()
            if not seen:
                return versions, "reads something other than the driver wrote there"
            fs.pipe_file(f"{root.rstrip('/')}/{mine}", content.encode())
        except Exception as error:
            return (
                versions,
                f"cannot read and write there ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            )
        return versions, ""

    return look


def _words(error: BaseException) -> str:
    return redacted(" ".join(f"{type(error).__name__}: {error}".split()))
