"""Text for a terminal: what could steer it is printed escaped."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from raysweep.errors import RenamedWarning
from raysweep.progress import Progress
from raysweep.terminal import echo, printable, show_old_names

STEERING = "a\x1b[2Jb\x07c\rd\x9b31me\u202ef\x00"
ESCAPED = r"a\x1b[2Jb\x07c\rd\x9b31me\u202ef\x00"


def test_control_characters_are_escaped_and_text_is_not() -> None:
    assert printable(STEERING) == ESCAPED
    plain = "δ of 'modèle' 🦊\n\tindented"
    assert printable(plain) == plain


def test_an_old_name_is_a_line_and_other_warnings_are_pythons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual: list[object] = []
    monkeypatch.setattr(warnings, "showwarning", lambda *given: usual.append(given))
    show_old_names()
    warnings.showwarning("`a` is now called `b`", RenamedWarning, "file.py", 1)
    assert capsys.readouterr().err == "warning: `a` is now called `b`\n"
    warnings.showwarning("other", UserWarning, "file.py", 7)
    assert usual == [("other", UserWarning, "file.py", 7)]
    assert capsys.readouterr().err == ""


def test_what_is_printed_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    echo(STEERING)
    echo(STEERING, err=True)
    with Progress() as progress:
        progress({"event": "call_failed", "call": STEERING, "error": STEERING, "tasks": []})
    out, err = capsys.readouterr()
    assert out == f"{ESCAPED}\n"
    assert "\x1b" not in err
    assert err.count(ESCAPED) == 2, "and the first line of the error once more"


def test_a_file_name_with_escapes_does_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from raysweep import cli

    monkeypatch.setattr("sys.argv", ["raysweep", "plan", str(tmp_path / STEERING.replace("\x00", ""))])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "\x1b" not in "".join(capsys.readouterr())
