"""Earlier reports of a run folder: one made with other settings is kept when a new one takes its place.

A page names in its head what it was made from: a digest of everything that decides its results (the keys of the run's tasks), the
time, and the settings. If the digest of a new page differs, the old page and its figures are copied to report/earlier/<date and
digest>/ before the new page is drawn. The copy appears complete or not at all, and has only files that raysweep wrote. A copy goes
once its own settings are used again: then the page itself is that report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import escape

from raysweep.engine.graph import Task
from raysweep.fingerprint import fingerprint
from raysweep.report.words import moment
from raysweep.store.artifacts import publish_bytes
from raysweep.store.owned_files import keep_only, owned_files, remove_owned
from raysweep.store.places import for_each, listing, read_bytes
from raysweep.store.whole_folder import install_folder

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder
    from raysweep.store.places import Location

META = "raysweep-report"  # the name of the element in the head of a page
PAGE, FIGURES, EARLIER = "index.html", "figures", "earlier"
_NO_RESULTS = {"name", "storage", "storage_options", "storage_mode", "execution"}  # settings that decide no results
_SHOWN = 8  # differing settings that are named
_LENGTH = 60  # characters of a setting's value that are shown


@dataclass(frozen=True)
class MadeFrom:
    """What a page was made from; `results` is empty if that is not known."""

    results: str = ""
    made: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As a page's head has it."""
        return json.dumps({"results": self.results, "made": self.made, "settings": dict(self.settings)})

    @property
    def folder(self) -> str:
        """The name of the folder that keeps the page."""
        date = re.match(r"\d{4}-\d\d-\d\d", self.made)
        return "-".join([*([date[0]] if date else []), self.results[:8] or "unknown-settings"])


@dataclass(frozen=True)
class EarlierReport:
    """An earlier report as the page shows it: where it is, when it was made, and what differs."""

    href: str
    made: str
    differences: Sequence[str]
    known: bool = True  # whether the report says what it was made from


def results_digest(folder: RunFolder) -> str:
    """A digest of the keys of all tasks of the run's plan: equal for equal settings, checkpoints and records."""
    tasks = json.loads(read_bytes(folder.plan))["tasks"]
    return fingerprint(sorted({key for task in tasks for key in Task.from_json(task).keys}))


def settings_of(config_yaml: str) -> dict[str, str]:
    """The settings of a config that decide results, by their dotted names; items of a list go by their `name` if they have one."""
    try:
        config = yaml.safe_load(config_yaml)
    except yaml.YAMLError:
        return {}
    found: dict[str, str] = {}
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key not in _NO_RESULTS:
                _flatten(str(key), value, found)
    return found


def keep_earlier(out: Location, now: MadeFrom, config_yaml: str) -> None:
    """Copy the report in `out` to a folder of its own if it was made from something else than `now`.

    A page of an older release does not say what it was made from; it counts as the same if it shows the same config.
    """
    if PAGE not in owned_files(out) or not now.results:
        return
    with suppress(FileNotFoundError):
        page = read_bytes(out / PAGE)
        before = made_from(page)
        same = before.results == now.results if before.results else escape(config_yaml).encode() in page
        if not same:
            _copy(out, out / EARLIER / before.folder, page)


def earlier_reports(out: Location, now: MadeFrom) -> list[EarlierReport]:
    """The kept reports that were not made from `now`, the latest first."""
    kept = [(name, found) for name, found in _kept(out).items() if not now.results or found.results != now.results]
    kept.sort(key=lambda item: item[1].made, reverse=True)
    return [
        EarlierReport(
            f"{EARLIER}/{name}/{PAGE}",
            moment(found.made),
            differences(found.settings, now.settings) if found.results else [],
            known=bool(found.results),
        )
        for name, found in kept
    ]


def forget_current(out: Location, now: MadeFrom) -> None:
    """Remove copies of what the page in `out` shows itself; files of other people stay."""
    for name, found in _kept(out).items():
        if now.results and found.results == now.results:
            remove_owned(out / EARLIER / name / FIGURES)
            remove_owned(out / EARLIER / name)
            if isinstance(out, Path):
                with suppress(OSError):  # not empty
                    (out / EARLIER).rmdir()


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The settings that differ, as "datasets.sums.limit: 32 there, 64 here"."""
    names = [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]
    shown = [f"{name}: {before.get(name, 'not set')} there, {now.get(name, 'not set')} here" for name in names[:_SHOWN]]
    return [*shown, f"{len(names) - _SHOWN} more settings"] if len(names) > _SHOWN else shown


def made_from(page: bytes) -> MadeFrom:
    """What a page says that it was made from; nothing for a page that does not say so."""
    reader = _Head()
    with suppress(_Found):
        reader.feed(page.partition(b"<style>")[0].decode("utf-8", "replace"))
    try:
        told = json.loads(reader.content)
        settings = {str(name): str(value) for name, value in told["settings"].items()}
        if re.fullmatch("[0-9a-f]*", told["results"]):
            return MadeFrom(told["results"], str(told["made"]), settings)
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    return MadeFrom()


class _Found(Exception):  # noqa: N818 - ends the reading of a page
    pass


class _Head(HTMLParser):
    """Finds the element of a page's head that says what it was made from."""

    content = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "meta" and given.get("name") == META:
            self.content = given.get("content") or ""
            raise _Found


def _flatten(name: str, value: Any, found: dict[str, str]) -> None:
    named = isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value)
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            _flatten(f"{name}.{key}", inner, found)
    elif named and value:
        for item in value:
            _flatten(f"{name}.{item['name']}", {key: inner for key, inner in item.items() if key != "name"}, found)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        found[name] = text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…"


def _kept(out: Location) -> dict[str, MadeFrom]:
    """What each kept report was made from, by the name of its folder."""
    if isinstance(out, Path):
        names = [page.parent.name for page in sorted((out / EARLIER).glob(f"*/{PAGE}"))]
    else:
        found = (path.split("/") for path in sorted(listing(out / EARLIER)))
        names = [parts[0] for parts in found if len(parts) == 2 and parts[1] == PAGE]
    kept = {}
    for name in names:
        with suppress(FileNotFoundError):
            if PAGE in owned_files(out / EARLIER / name):
                kept[name] = made_from(read_bytes(out / EARLIER / name / PAGE))
    return kept


def _copy(out: Location, target: Location, page: bytes) -> None:
    """Copy the page, whose links to earlier reports are changed to their place next to the copy, and its figures."""
    page = page.replace(f'href="{EARLIER}/'.encode(), b'href="../')
    figures = sorted(owned_files(out / FIGURES))
    if isinstance(target, Path):
        install_folder(target, lambda whole, _: _fill(out, whole, page, figures))
    elif PAGE not in listing(target):
        _fill(out, target, page, figures)


def _fill(out: Location, target: Location, page: bytes, figures: Sequence[str]) -> None:
    """Write a copy, its page last: without a page a folder is no report."""
    if figures:
        keep_only(target / FIGURES, figures)
        for_each(target, partial(_copy_figure, out / FIGURES, target / FIGURES), figures)
    keep_only(target, [PAGE])
    publish_bytes(target / PAGE, page)


def _copy_figure(source: Location, target: Location, name: str) -> None:
    with suppress(FileNotFoundError):  # removed by hand
        publish_bytes(target / name, read_bytes(source / name))
