"""The tutorials run without an error or a warning and print what is committed; and the comparison finds what differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / ".ci"))

from tutorials import clean, different, problems, tolerance_of  # noqa: E402

NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_prints_what_is_committed(path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAYSWEEP_", "PYTEST_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "tutorials.py"), "--check", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_is_committed_executed_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size <= 300_000
    again = nbformat.from_dict(notebook)
    clean(again)
    assert again == notebook, "run `make tutorials`"
    figures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(figures) >= 2


def test_there_are_two_tutorials():
    assert [path.stem for path in NOTEBOOKS] == ["fine-tune-critical-layers", "first-sweep"]


# --- the comparison -----------------------------------------------------------------------------------------------


def notebook(text: str, name: str = "stdout", tags: tuple[str, ...] = ()):
    cell = new_code_cell("print()", outputs=[new_output("stream", name=name, text=text)], metadata={"tags": list(tags)})
    return new_notebook(cells=[cell])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cost 0.374\n", "cost 0.375\n"),
        ("layers [0, 1, 2]", "layers [0, 1, 2]"),
        ("a 10.01", "a  9.99"),
        ("ρ −0.59", "ρ −0.59"),
        ("1e-9 nats", "3e-9 nats"),
    ],
)
def test_equal_texts_with_close_numbers_are_equal(before, after):
    assert problems(notebook(before), notebook(after)) == []


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("cost 0.374", "cost 0.394", "a number was 0.374 and is now 0.394 (tolerance 1 %)"),
        ("layers [0, 1]", "layers [0, 2]", "a number was 1 and is now 2"),
        ("ρ −0.59", "ρ 0.59", "a number was −0.59 and is now 0.59"),
        ("layers [0, 1]", "layers [0, 1, 2]", "the text was"),
        ("cost 0.374", "price 0.374", "the text was"),
    ],
)
def test_other_texts_and_numbers_are_found(before, after, message):
    (found,) = problems(notebook(before), notebook(after))
    assert message in found


def test_a_tag_widens_the_tolerance_of_its_cell():
    tags = ("tolerance=30%",)
    assert problems(notebook("loss 1.0", tags=tags), notebook("loss 1.2", tags=tags)) == []
    assert problems(notebook("loss 1.0", tags=tags), notebook("loss 1.4", tags=tags)) != []
    assert tolerance_of(notebook("", tags=("tolerance=any",)).cells[0]) == float("inf")
    assert different("loss 1.0", "loss 9.0", float("inf")) is None


def test_warnings_are_found():
    warned = notebook("FutureWarning: old", name="stderr")
    assert problems(warned, warned) == ["cell 1 writes to standard error:\nFutureWarning: old"]


def test_a_figure_that_is_missing_is_found():
    before = notebook("ok")
    before.cells[0].outputs.append(new_output("display_data", data={"image/png": ""}))
    (found,) = problems(before, notebook("ok"))
    assert "display_data" in found


def test_cleaning_removes_what_changes_from_run_to_run():
    found = notebook("one\n")
    found.cells[0].outputs.append(new_output("stream", name="stdout", text="two\n"))
    found.cells[0].outputs.append(
        new_output("display_data", data={"image/png": "x", "text/plain": "<Figure size 700x280>", "text/html": ""})
    )
    found.cells[0].metadata["execution"] = {"iopub.execute_input": "2026-01-01"}
    found.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    clean(found)
    assert [output.get("text") or dict(output.data) for output in found.cells[0].outputs] == [
        "one\ntwo\n",
        {"image/png": "x"},
    ]
    assert found.cells[0].metadata == {}
    assert found.cells[0].id == "cell-1"
    assert found.metadata.language_info == {"name": "python"}
