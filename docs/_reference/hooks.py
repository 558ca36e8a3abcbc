"""What mkdocs calls while it builds the site: `<!-- reference: NAME -->` in a page becomes the text that NAME's module writes.

The modules import raysweep and nothing of mkdocs, so that tests can run them without it.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from posixpath import dirname, normpath
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import cli_reference
import config_reference
import metric_reference
import table_reference

LOG = logging.getLogger("mkdocs.hooks")  # mkdocs counts its warnings, and --strict makes errors of them
MARKER = re.compile(r"^<!-- reference: (\w+) -->$", re.MULTILINE)
WRITERS = {
    "configuration": config_reference.markdown,
    "cli": cli_reference.markdown,
    "tables": table_reference.markdown,
    "metrics": metric_reference.markdown,
}


def on_config(config: Any) -> Any:
    """Replace each entry of the navigation such as `design/*.md` by the files that it matches, in the order of their names."""
    config["nav"] = expand(config["nav"], Path(config["docs_dir"]))
    return config


def expand(nav: list[Any], docs: Path) -> list[Any]:
    """The navigation with its patterns replaced by the pages that they match; a section without pages is dropped."""
    entries: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            inside = {
                title: expand(below, docs) if isinstance(below, list) else below for title, below in entry.items()
            }
            entries += [{title: below} for title, below in inside.items() if below]
        elif "*" in entry:
            entries += [path.relative_to(docs).as_posix() for path in sorted(docs.glob(entry))]
        else:
            entries.append(entry)
    return entries


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page. Raises KeyError for a name without a writer."""
    return MARKER.sub(lambda found: WRITERS[found[1]](), markdown)


def on_page_content(html: str, *, page: Any, files: Any, **_: Any) -> str:
    """Point the links of a notebook to pages of the site, which mkdocs does for Markdown only, and warn of broken ones."""
    return page_links(html, page.file, files) if page.file.src_uri.endswith(".ipynb") else html


def page_links(html: str, source: Any, files: Any) -> str:
    """The page with its relative links to .md and .ipynb files replaced by those to the pages made of them."""

    def replaced(found: re.Match[str]) -> str:
        target = files.get_file_from_path(normpath(f"{dirname(source.src_uri)}/{found[1]}"))
        if target is None:
            LOG.warning("notebook '%s' links to '%s', which is not there", source.src_uri, found[1])
            return found[0]
        return f'href="{target.url_relative_to(source)}{found[2] or ""}"'

    return re.sub(r'href="((?!\w+:)[^"#]+\.(?:md|ipynb))(#[^"]*)?"', replaced, html)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Warn of what a page would load from elsewhere: the site opens from disk, without a network."""
    for address in external_assets(output):
        LOG.warning("page '%s' loads %s from the network", page.file.src_uri, address)
    return output


def external_assets(html: str) -> list[str]:
    """The addresses of scripts, styles, fonts, pictures and frames that a page loads from another place."""
    loaded = re.findall(
        r"<(?:script|img|iframe|source|video|audio)\b[^>]*?\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)", html
    )
    linked = [
        tag
        for tag in re.findall(r"<link\b[^>]*>", html)
        if not re.search(r"rel=[\"']?(canonical|prev|next|alternate)", tag)
    ]
    return loaded + [found[1] for tag in linked if (found := re.search(r"href=[\"']?((?:https?:)?//[^\"'\s>]+)", tag))]
