"""Where files lie: a folder of this machine's file system, or a place in an object store, both with pathlib's words.

A folder is a `pathlib.Path`. A URL is a `UPath` (universal-pathlib) on an fsspec file system that keeps no listings, so that
processes see each other's files. In an object store a file appears whole or not at all, is never appended to or renamed, and
each question takes a journey: what is asked of many files is asked by one listing here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raysweep.config_storage import STORES, checked_options, checked_storage, scheme_of
from raysweep.errors import InputError, StoreError

if TYPE_CHECKING:
    from upath import UPath

    Location = Path | UPath

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK_BYTES = 32 * 2**20  # of a large object that are asked for at a time
_PATIENCE = {"retries": {"max_attempts": 8, "mode": "standard"}, "connect_timeout": 5, "read_timeout": 60}
_HASTE = {"retries": {"max_attempts": 3, "mode": "standard"}, "connect_timeout": 3, "read_timeout": 5}
_PARTS = 4  # of one large object in flight: with s3fs's parts of 50 MiB what an upload may hold
_AT_ONCE = 8  # files on their way to or from a store
_EXTRA = {"s3fs": "'raysweep[s3]'"}


def location(storage: str | Location, options: Mapping[str, Any] | None = None, *, hasty: bool = False) -> Location:
    """The place that a config's `storage` and `storage_options` name; nothing is asked of it yet.

    `hasty` gives up on a store that does not answer within seconds. Raises InputError for a URL that is no place for a run,
    has a secret in it, or needs a package that is not installed.
    """
    if not isinstance(storage, (str, Path)):
        return storage
    text = str(storage)
    scheme = None if isinstance(storage, Path) else scheme_of(text)
    try:
        checked_storage(text if scheme else text or ".")
        checked_options(options or {})
    except ValueError as error:
        raise InputError(f"storage: {error}") from None
    if scheme is None:
        return Path(storage).expanduser()
    if scheme == "file":
        return Path("/" + text.partition("://")[2].lstrip("/"))
    from upath import UPath

    package = STORES[scheme]
    try:
        place: UPath = UPath(text.rstrip("/"), **_settings(package, options or {}, hasty))
        place.fs  # noqa: B018 - this is where the package is loaded
    except ImportError as error:
        raise InputError(
            f"storage '{text}' needs the package {package}, which is not installed ({error}); pip install {_EXTRA.get(package, package)}"
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"storage '{text}' cannot be used with these storage_options ({error})") from error
    return place


def put(local: Path, place: UPath) -> None:
    """Send a file whole; bounded memory, whatever its size."""
    place.fs.put_file(str(local), place.path)


def put_bytes(place: UPath, data: bytes) -> None:
    """Send a small object whole."""
    place.fs.pipe_file(place.path, data)


def create(place: UPath, data: bytes) -> bool:
    """Make a small object that is not there yet; False where it is. Of two that try at once, one succeeds."""
    try:
        place.fs.pipe_file(place.path, data, mode="create")
    except FileExistsError:
        return False
    return True


def read_bytes(place: Location) -> bytes:
    """The content of a small file. Raises FileNotFoundError where there is none."""
    return place.read_bytes() if isinstance(place, Path) else bytes(place.fs.cat_file(place.path))


def read_range(place: UPath, start: int, stop: int) -> bytearray:
    """Bytes [start, stop) of an object, a block at a time; fewer where it ends before."""
    read = bytearray()
    while start < stop:
        asked = min(BLOCK_BYTES, stop - start)
        try:
            block = place.fs.cat_file(place.path, start=start, end=start + asked)
        except OSError:
            if place.fs.size(place.path) > start:
                raise
            break  # S3 refuses a range that begins at an object's end
        read += block
        start += len(block)
        if len(block) < asked:
            break
    return read


def for_each(place: Location, do: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `do` gives for each item, in their order: one after the other in a folder, several at a time in an object store."""
    items = list(items)
    if isinstance(place, Path) or len(items) < 2:
        return [do(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(do, items))


def sizes_below(folder: Location) -> Callable[[str], int | None]:
    """How many bytes a file below has, by its POSIX path relative to `folder`; None for no file.

    A folder's files are asked one by one, when they are asked for; an object store's are listed now.
    """
    if not isinstance(folder, Path):
        return {path: int(info["size"]) for path, info in listing(folder).items()}.get

    def size(path: str) -> int | None:
        try:
            return (folder / path).stat().st_size
        except FileNotFoundError:
            return None

    return size


def listing(folder: UPath) -> dict[str, dict[str, Any]]:
    """Every object below, by its POSIX path relative to `folder`, with what fsspec tells of it (`size` and more)."""
    try:
        found = folder.fs.find(folder.path, detail=True)
    except FileNotFoundError:
        return {}
    above = folder.path.rstrip("/") + "/"
    return {path.removeprefix(above): info for path, info in found.items() if path.startswith(above) and path != above}


def read_many(folder: UPath, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """The contents of small objects below `folder`, several at a time; one that is gone meanwhile is left out."""
    some = {name: size for name, size in sizes.items() if size}  # of nothing there is no range
    paths = [f"{folder.path.rstrip('/')}/{name}" for name in some]
    contents: Iterable[Any] = folder.fs.cat_ranges(paths, [0] * len(paths), list(some.values())) if paths else []
    read = dict.fromkeys(sizes.keys() - some.keys(), b"")
    for name, content in zip(some, contents, strict=True):
        if isinstance(content, FileNotFoundError):
            continue
        if isinstance(content, BaseException):
            raise content
        read[name] = bytes(content)
    return read


def remove_below(folder: Location) -> None:
    """Remove a folder and everything in it. Raises StoreError where something stays."""
    if isinstance(folder, Path):
        if folder.exists():
            shutil.rmtree(folder)
        return
    if listing(folder):
        folder.fs.rm(folder.path, recursive=True)
    if left := listing(folder):
        raise StoreError(f"{folder / next(iter(left))}: cannot be removed; check that you may delete there")


def _settings(package: str, options: Mapping[str, Any], hasty: bool) -> dict[str, Any]:
    """The file system's options, those that are asked for before raysweep's own."""
    settings: dict[str, Any] = {"use_listings_cache": False} if package != "fsspec" else {}
    if package == "s3fs":
        asked = options.get("config_kwargs") or {}
        settings |= {
            "max_concurrency": _PARTS,
            **options,
            "config_kwargs": {**_PATIENCE, **asked, **(_HASTE if hasty else {})},
        }
        return settings
    return {**settings, **options}
