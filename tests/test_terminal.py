"""Text for a terminal: what could steer it is printed escaped."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from raysweep.errors import RenamedWarning
from raysweep.progress import Progress
from raysweep.terminal import aligned, echo, fitted, message, printable, shortened, show_old_names, wrapped

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


def test_text_is_wrapped_and_intervals_stay_in_one_piece() -> None:
    text = "a cost of +0.37 nats " + "and more words " * 4 + "[0.30, 0.45] and a path /" + "x" * 90
    lines = wrapped(text)
    assert " ".join(map(str.strip, lines)) == text
    assert any("[0.30, 0.45]" in line for line in lines)
    assert [len(line) <= 80 for line in lines] == [True] * (len(lines) - 1) + [False], "a path is not broken"
    assert fitted("  " + "word " * 20)[1].startswith("  word")
    assert fitted("a   b") == ["a   b"]


def test_a_table_that_is_too_wide_shortens_names_and_then_goes_on_in_blocks() -> None:
    rows = [["cell", "one", "two"], ["a-name-" * 6, "1", "22"], ["b", "333", "4"]]
    assert aligned(rows, width=40, right=(1, 2))[1:] == [
        f"{shortened('a-name-' * 6, 30)}    1   22",
        f"{'b':<30}  333    4",
    ]
    wide = aligned([["cell", *(f"column-{n}" for n in range(9))], ["b", *"123456789"]], width=40)
    assert max(map(len, wide)) <= 40
    assert [line.split()[0] for line in wide if line] == ["cell", "b"] * 3
    assert aligned([]) == []


def test_messages_are_wrapped_in_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "warning: " + "words " * 30
    message(text)
    assert capsys.readouterr().err == text + "\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    message(text)
    assert max(map(len, capsys.readouterr().err.splitlines())) <= 80
