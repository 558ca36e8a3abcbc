"""Check and measure every path of raysweep on one GPU, in at most 8 minutes. Run it from a checkout:

    PYTHONPATH=. python benchmarks/gpu_check.py --out gpu_check.json

It needs torch, transformers, safetensors, numpy and pyarrow, and it downloads nothing. The checks of training also need
accelerate. `--device cpu --tiny` runs every path on the CPU in seconds; its times and memory then say nothing.

The JSON has every figure of FIGURES. A figure without a value has the reason in its note. The exit code is 1 if a section
failed or a figure exceeds its limit.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gpu_checks import correctness, facts, limits, memory, models, speed, training
from gpu_checks.record import Figure, NotRunError, Setup


@dataclass(frozen=True)
class Section:
    """A part of the script: what it runs, its figures, and the seconds that must be left for it to start."""

    name: str
    run: Callable[[Setup], None]
    figures: tuple[str, ...]
    seconds: float = 5


SECTIONS = (
    *(
        Section(
            f"correctness of {name}",
            partial(correctness.check_architecture, name=name),
            correctness.names_of(name),
        )
        for name in models.ARCHITECTURES
    ),
    Section("bfloat16", correctness.check_bf16, correctness.BF16_FIGURES),
    Section("CKA", correctness.check_cka, correctness.CKA_FIGURES),
    Section("correctness of training", training.check_correct, training.CORRECT, 15),
    Section("the machine's rates", limits.measure, limits.FIGURES, 15),
    Section("speed in memory", speed.check_resident, speed.RESIDENT, 60),
    Section("speed from disk", speed.check_streamed, speed.STREAMED, 60),
    Section("speed of training", training.check_speed, training.SPEED, 45),
    Section("memory", memory.check, memory.FIGURES, 30),
    Section("memory of training", memory.check_training, memory.TRAINING),
    Section("CUDA context", facts.check_context, facts.CONTEXT, 20),
    Section("synchronisations", facts.check_synchronisations, facts.SYNCHRONISATIONS),
    Section("free memory", facts.check_free_memory, facts.MEMORY),
    Section("out of memory", facts.check_out_of_memory, facts.OUT_OF_MEMORY, 20),
    Section("torch's state", facts.check_state, facts.STATE, 0),
    Section("sticky error", facts.check_sticky, facts.STICKY, 20),
)
FIGURES = tuple(figure for section in SECTIONS for figure in section.figures)


def _of_all(*words: str) -> tuple[str, ...]:
    """The figures of all architectures whose path begins with one of the words."""
    return tuple(
        name
        for name in FIGURES
        if name.partition(": ")[2].startswith(words) and name.partition(":")[0] in models.ARCHITECTURES
    )


# Figures that the table shows by their worst.
GROUPS = {
    "sweep: difference from the CPU": _of_all("sweep"),
    "capture: difference from the CPU": _of_all("capture"),
    "streamed and spilled: difference from the CPU": _of_all("streamed", "spilled"),
    "gradient estimate: difference from the CPU": _of_all("gradient"),
    "removal: difference from the CPU": _of_all("removal"),
    "texts that differ from the CPU's": _of_all("text"),
    "bfloat16: relative difference": correctness.BF16_FIGURES,
    "CKA: difference from float64 on the CPU": correctness.CKA_FIGURES,
    "training: relative difference from the CPU": training.CORRECT,
    "torch's state": facts.STATE,
    "sticky error": facts.STICKY,
}


def run_section(setup: Setup, section: Section) -> dict[str, Any]:
    """Run one section. Whatever it raises is recorded, and its figures that have no value get the reason."""
    started, outcome, reason = time.monotonic(), "passed", ""
    try:
        if setup.left < section.seconds:
            raise NotRunError(f"{max(0, setup.left):.0f} s were left and it needs {section.seconds:.0f} s")
        section.run(setup)
    except NotRunError as error:
        outcome, reason = "not run", f"not run: {error}"
    except Exception:
        outcome, reason = (
            "failed",
            "failed: " + " | ".join(line[:300] for line in traceback.format_exc().strip().splitlines()[-3:]),
        )
        traceback.print_exc()
    if outcome == "failed":  # only now does no traceback hold tensors
        setup.free_memory()
    for name in section.figures:
        if name not in setup.figures:
            setup.missing(name, reason or "was not measured")
            outcome = outcome if reason else "failed"
    if any(setup.figures[name].missed for name in section.figures):
        outcome = "failed"
    return {"outcome": outcome, "reason": reason, "seconds": round(time.monotonic() - started, 2)}


def machine(device: str) -> dict[str, Any]:
    """Where the figures were taken."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "device": device,
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def table(setup: Setup, sections: dict[str, dict[str, Any]]) -> list[str]:
    """The sections that did not pass, the worst figure of each group, and the others one by one: at most 39 lines."""
    lines = [
        f"{section['outcome']}: {name} {section['reason'].partition(': ')[2][-90:]}".rstrip()
        for name, section in sections.items()
        if section["outcome"] != "passed"
    ]
    lines.append(f"{' ' * 55} measured    limit")
    for name, figures in GROUPS.items():
        found = {each: setup.figures[each] for each in figures if setup.figures[each].value is not None}
        if found:
            worst = max(found, key=lambda each: (found[each].missed, found[each].value))
            lines.append(_line(name, found[worst], f"worst of {len(found)}: {worst}"))
    grouped = {figure for figures in GROUPS.values() for figure in figures}
    for name in FIGURES:
        if name not in grouped and name not in limits.FIGURES and setup.figures[name].value is not None:
            lines.append(_line(name, setup.figures[name], setup.figures[name].note))
    rates = [f"{name} {setup.figures[name].value:.3g} {setup.figures[name].unit}" for name in _measured(setup)]
    lines += [f"rates: {', '.join(part)}" for part in (rates[:3], rates[3:]) if part]
    return lines[:39]


def _measured(setup: Setup) -> list[str]:
    return [name for name in limits.FIGURES if name in setup.figures and setup.figures[name].value is not None]


def _line(name: str, figure: Figure, note: str) -> str:
    mark = "✗" if figure.missed else " "
    limit = f"{figure.limit:8.3g}" if figure.limit is not None else ""
    return f"{mark} {name[:52]:52} {figure.value:>9.3g} {limit:8}  {note[:70]}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="the file for all figures")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu for a dry run")
    parser.add_argument("--minutes", type=float, default=8, help="sections that would start later are skipped")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, for a dry run")
    parser.add_argument("--scratch", type=Path, help="a folder for 5 GB of checkpoints, removed again")
    given = parser.parse_args(arguments)
    device = "cuda:0" if given.device == "cuda" else given.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device that torch can use; give --device cpu --tiny for a dry run")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # A call that hangs on the device ends the process a minute after the time is used up. The file then has what came before.
    faulthandler.dump_traceback_later(60 * given.minutes + 60, exit=True)
    sections: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        setup = Setup(device, given.tiny, Path(scratch), 60 * given.minutes)
        setup.kept["settings"] = facts.torch_settings()
        for section in SECTIONS:
            sections[section.name] = run_section(setup, section)
            print(
                f"{section.name}: {sections[section.name]['outcome']}, {sections[section.name]['seconds']} s",
                file=sys.stderr,
            )
            figures = {name: figure.to_json() for name, figure in setup.figures.items()}
            report = {"machine": machine(device), "tiny": given.tiny, "sections": sections, "figures": figures}
            given.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
        setup.kept.clear()
    faulthandler.cancel_dump_traceback_later()
    print("\n".join(table(setup, sections)))
    failed = [name for name, section in sections.items() if section["outcome"] == "failed"]
    print(f"{len(failed)} of {len(sections)} sections failed; all figures: {given.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
