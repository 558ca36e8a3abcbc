"""The first plan of a run and the second one, whose weights have not changed: seconds, CPU seconds, and bytes of weights read.

Both are `raysweep plan` in a process of its own, next to one that only imports torch and transformers; the first has an empty cache of digests. Pages of the weight files are
dropped from the page cache before each plan and counted after it, however they were read. By default the checkpoints are
a made-up base and tuned model; --base and --tuned take others. Needs 2.5 GB of disk.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import machine, spread
from transformers import LlamaConfig, LlamaForCausalLM

from raysweep.models.checkpoint import describe, find
from raysweep.models.loading import load_tokenizer
from raysweep.models.tensors import read_header
from raysweep.models.weights import weight_files

CONFIG = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12, "num_attention_heads": 16}
READ_AHEAD = 2**20  # bytes after the header that the kernel may read with it
IMPORTS = "import torch, transformers.modeling_utils"
SETTLED = 3.0  # seconds until a new file's digests are kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base")
    parser.add_argument("--tuned")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        folder = Path(scratch)
        base = str(find(asked.base)) if asked.base else made_up(folder / "base", 0)
        tuned = str(find(asked.tuned)) if asked.tuned else base if asked.base else made_up(folder / "tuned", 1)
        files = sorted({path for each in (base, tuned) for path in weight_files(Path(each), each)})
        print(f"{sum(path.stat().st_size for path in files) / 1e9:.2f} GB of weights in {len(files)} files")
        config = write_config(folder, base, tuned)
        time.sleep(SETTLED)
        sides: dict[str, list[tuple[float, float, int]]] = {"first plan": [], "second plan": [], "imports alone": []}
        for _ in range(asked.rounds):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for name, side in sides.items():
                command = ["-c", IMPORTS] if name == "imports alone" else ["-m", "raysweep", "plan", str(config)]
                side.append(timed(command, folder / "cache", files))
        for name, found in sides.items():
            seconds, cpu, read = zip(*found, strict=True)
            print(f"{name}: {spread(list(seconds))} s, CPU {spread(list(cpu))} s, {max(read):,} bytes of weights read")
        for what, at in (("seconds", 0), ("CPU seconds", 1)):
            rounds = list(zip(*([each[at] for each in side] for side in sides.values()), strict=True))
            print(f"first ÷ second, {what}: {spread([one / two for one, two, _ in rounds])}")
            print(f"  second without imports: {spread([two - alone for _, two, alone in rounds])} s")
    print(machine())


def made_up(folder: Path, seed: int) -> str:
    """A model of 1.2 GB with random weights, and the laboratory's tokenizer."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(describe("lab://tiny"))
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **CONFIG)).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_config(folder: Path, base: str, tuned: str) -> Path:
    """Write a config that sweeps the pair on a few records."""
    path = folder / "config.yaml"
    values = {
        "name": "second",
        "models": [{"name": "m", "base": base, "tuned": {"sums": tuned}}],
        "datasets": [{"name": "sums", "path": "lab://sums/test", "format": "gsm8k", "limit": 32}],
        "studies": {"substitution": {"widths": [1]}, "similarity": {}},
        "execution": {"device": "cpu"},
        "storage": str(folder / "run"),
    }
    path.write_text(json.dumps(values))
    return path


def timed(arguments: list[str], cache: Path, files: list[Path]) -> tuple[float, float, int]:
    """Run Python with these arguments; seconds, CPU seconds, and bytes of weights that came into the page cache."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    if left := sum(map(resident, files)):
        raise SystemExit(f"{left} bytes of weights stay in the page cache; use a TMPDIR on a disk")
    own_cache = {"RAYSWEEP_DIGEST_CACHE": "on", "RAYSWEEP_CACHE": str(cache)}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=os.environ | own_cache, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, sum(map(resident, files))


def resident(path: Path) -> int:
    """Bytes of a file's tensors in the page cache, without what the kernel reads ahead of the header."""
    start = min(tensor.start for tensor in read_header(path))
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        address = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-size // page))()
        if libc.mincore(ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(size), pages):
            raise OSError(ctypes.get_errno(), "mincore")
        del address
    ahead = -(-start // page) + READ_AHEAD // page
    return sum(number & 1 for number in pages[ahead:]) * page


if __name__ == "__main__":
    main()
