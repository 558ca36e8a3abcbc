"""The files that contributors use: the changelog, the citation, pre-commit's hooks, make's targets and CONTRIBUTING.md."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HOOKS = {
    hook["id"]: {**hook, "repo": repo["repo"], "rev": repo.get("rev")}
    for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repo["hooks"]
}


# --- the changelog ------------------------------------------------------------------------------------------------


def test_the_version_of_the_package_is_the_newest_release_in_the_changelog():
    releases = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", CHANGELOG, re.MULTILINE)
    assert [version for version, _ in releases] == [PROJECT["version"], "0.1.0"]
    assert [date.fromisoformat(day) for _, day in releases] == sorted(
        (date.fromisoformat(day) for _, day in releases), reverse=True
    )


def test_entries_of_the_changelog_are_single_lines_under_added_changed_or_fixed():
    lines = [line for line in CHANGELOG.splitlines()[4:] if line]
    assert [
        line for line in lines if not re.match(r"- \S|## (\d|Unreleased$)|### (Added|Changed|Fixed)$|#### \w", line)
    ] == []


# --- the citation -------------------------------------------------------------------------------------------------


def test_the_citation_names_this_release_and_the_paper():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(found), "required by CFF 1.2.0"
    assert (found["cff-version"], found["version"], found["license"]) == (
        "1.2.0",
        PROJECT["version"],
        PROJECT["license"],
    )
    assert f"## {found['version']} ({found['date-released']})" in CHANGELOG
    assert found["authors"] == [{"name": "The raysweep developers"}]
    (paper,) = found["references"]
    assert {"type", "title", "authors", "year"} <= set(paper)
    assert {entry["value"] for entry in paper["identifiers"]} == {"arXiv:2506.00382"}


# --- pre-commit ---------------------------------------------------------------------------------------------------


def test_pre_commit_checks_code_spelling_and_files():
    assert set(HOOKS) >= {
        *("ruff-check", "ruff-format", "codespell", "plain-english"),
        *("check-added-large-files", "check-yaml", "check-toml", "end-of-file-fixer"),
    }


def test_every_repository_of_hooks_has_a_fixed_version():
    assert {hook["id"]: hook["rev"] for hook in HOOKS.values() if hook["repo"] != "local" and not hook["rev"]} == {}


def test_pre_commit_uses_the_ruff_that_is_pinned():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ruff=={HOOKS['ruff-check']['rev'].removeprefix('v')}" in pins


@pytest.mark.parametrize(
    "hook", [hook for hook in HOOKS.values() if hook["repo"] == "local"], ids=lambda hook: hook["id"]
)
def test_a_local_hook_can_run(hook):
    done = subprocess.run(
        [*shlex.split(hook["entry"]), "--collect-only"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_plain_english" in done.stdout


def test_files_end_with_one_newline_and_are_small():
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    kept = re.compile(yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["exclude"])
    wrong = []
    for path in (ROOT / name for name in names if not kept.match(name)):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        is_text = b"\0" not in content[:8000]
        if len(content) > 500 * 1024 or (
            content and is_text and (not content.endswith(b"\n") or content.endswith(b"\n\n"))
        ):
            wrong.append(path.name)
    assert wrong == []


# --- CONTRIBUTING.md ----------------------------------------------------------------------------------------------


def test_each_make_target_that_contributors_read_about_is_there():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = {word for words in re.findall(r"`make ([a-z ]+)`", CONTRIBUTING) for word in words.split()}
    assert named >= {"test", "quick", "lint", "types", "fuzz", "soak", "bench", "tutorials"}
    assert named - set(targets) == set()


def test_what_make_quick_runs_is_there():
    (tests,) = re.findall(r"^QUICK := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in tests.split() if not list(ROOT.glob(name))] == []


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", *(f"docs/design/{path.name}" for path in (ROOT / "docs/design").iterdir())]
)
def test_each_file_that_a_page_for_contributors_names_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|raysweep|\.ci|benchmarks|docs)/[\w./-]+\.(?:py|json|md))`", text)
    assert named, page
    assert [name for name in named if not (ROOT / name).exists() and "test_x" not in name] == []
