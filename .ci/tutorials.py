"""Execute the tutorials in docs/tutorials: write their outputs, or compare them with the committed ones.

`python .ci/tutorials.py` executes each notebook in a fresh kernel and saves it, without times and other data that change from run
to run. `--check` saves nothing: it fails if a cell raises an error or writes to standard error, and if a printed text differs from
the committed one. Numbers may differ by 1 %, or by the tolerance in a cell's tag (`tolerance=20%`), or by anything (`tolerance=any`).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
TOLERANCE = 0.01
ABSOLUTE = 0.002  # numbers near 0 differ by rounding
KERNEL = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's advice to install ipywidgets
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
}


def execute(notebook: Any) -> None:
    """Execute all cells in an empty folder, in place; raise CellExecutionError at the first error."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(KERNEL)  # the kernel inherits them
        client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}})
        manager = client.create_kernel_manager()
        manager.transport, manager.ip = "ipc", f"{folder}/.kernel"  # sockets in the folder, no TCP ports
        client.execute()


def clean(notebook: Any) -> None:
    """Remove what differs from run to run, and join neighbouring pieces of one stream."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and outputs and outputs[-1].get("name") == output.name:
                outputs[-1].text += output.text
                continue
            if "data" in output:
                output.data.pop("text/html", None)  # the plain text has the same table
                if "image/png" in output.data:
                    output.data.pop("text/plain", None)  # the size of the figure
            outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs


def printed(cell: Any) -> str:
    """Return what a cell printed, and its value as text."""
    outputs = cell.get("outputs", [])
    return "\n".join(str(o.get("text") or o.get("data", {}).get("text/plain", "")) for o in outputs).strip()


def tolerance_of(cell: Any) -> float:
    """Return the relative tolerance for a cell's numbers; raise ValueError for a tag that gives none."""
    for tag in cell.metadata.get("tags", []):
        if tag.startswith("tolerance="):
            value = tag.removeprefix("tolerance=")
            return float("inf") if value == "any" else float(value.removesuffix("%")) / 100
    return TOLERANCE


def different(before: str, after: str, tolerance: float) -> str | None:
    """Return how two printed texts differ, or None. Runs of spaces count as one: columns follow the width of numbers."""
    plain = [" ".join(NUMBER.sub("0", text).split()) for text in (before, after)]
    if plain[0] != plain[1]:
        return f"the text was\n{before}\nand is now\n{after}"
    for old, new in zip(NUMBER.findall(before), NUMBER.findall(after), strict=True):
        was, now = float(old.replace("−", "-")), float(new.replace("−", "-"))
        if abs(now - was) > max(tolerance * abs(was), ABSOLUTE):
            return f"a number was {old} and is now {new} (tolerance {100 * tolerance:g} %) in\n{after}"
    return None


def problems(committed: Any, executed: Any) -> list[str]:
    """Return what is wrong with the executed notebook: noise on standard error, figures that are missing, other texts."""
    found = []
    for number, (before, after) in enumerate(zip(committed.cells, executed.cells, strict=True), 1):
        noise = [o.text for o in after.get("outputs", []) if o.output_type == "stream" and o.name == "stderr"]
        if noise:
            found.append(f"cell {number} writes to standard error:\n{''.join(noise)}")
        kinds = [[o.output_type for o in cell.get("outputs", [])] for cell in (before, after)]
        text = different(printed(before), printed(after), tolerance_of(after))
        if text or kinds[0] != kinds[1]:
            found.append(f"cell {number}: {text or f'outputs were {kinds[0]} and are now {kinds[1]}'}")
    return found


def main() -> int:
    """Execute the notebooks that the command line names, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    parser.add_argument("--check", action="store_true", help="compare with the committed outputs and save nothing")
    arguments = parser.parse_args()
    failed = False
    for path in arguments.notebooks:
        committed = nbformat.read(path, as_version=4)
        executed = nbformat.read(path, as_version=4)
        execute(executed)
        clean(executed)
        found = problems(committed if arguments.check else executed, executed)
        for problem in found:
            print(f"{path.name}: {problem}")
        failed |= bool(found)
        if not arguments.check:
            nbformat.write(executed, path)
            print(f"{path.name}: saved, {path.stat().st_size / 1000:.0f} KB")
    if failed and arguments.check:
        print("If the change is intended, run `make tutorials` and commit the notebooks.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
