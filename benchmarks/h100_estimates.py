"""Expected times on one H100, computed from counts and assumed rates; nothing is measured and no GPU is needed.

Each row is `raysweep plan --gpus 1 --rates flops=…,read=…` of a sweep of all windows of 5 layers on 300 records, planned from the
model's architecture alone: layer applications × operations of a layer ÷ flops, or the time that reading takes where that is longer. The
command of the first row is printed. Attention's own products, text, tables and starting workers are not in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FLOPS = 4e14  # bfloat16, dense, reached in practice: an assumption
READS = {"NVMe, 6 GB/s": 6e9, "page cache and PCIe, 50 GB/s": 5e10}
MEMORY = "70GB"  # of the GPU's 80
RECORDS, PROMPT, RESPONSE = 300, 150, 110
BATCH_TOKENS = {"405B": 2048}  # the default of 8,192 needs more memory for the states of a batch
# hidden, intermediate, layers, heads, key-value heads, vocabulary, residency
MODELS: dict[str, tuple[int, int, int, int, int, int, str]] = {
    "7B": (4096, 11008, 32, 32, 32, 32000, "resident"),
    "70B": (8192, 28672, 80, 64, 8, 128256, "stream"),
    "405B": (16384, 53248, 126, 128, 8, 128256, "stream"),
}


def write_config(folder: Path, name: str) -> Path:
    """A config of the model's sweep; its architecture lies next to it."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary, residency = MODELS[name]
    architecture = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / f"{name}.json").write_text(json.dumps(architecture))
    expected = {"examples": RECORDS, "prompt_tokens": PROMPT, "response_tokens": RESPONSE}
    config = {
        "name": name.lower(),
        "models": [
            {
                "name": "model",
                "base": f"./base-{name}",
                "tuned": {"records": f"./tuned-{name}"},
                "architecture": f"{name}.json",
                "template": "llama2",
                "dtype": "bfloat16",
            }
        ],
        "datasets": [
            {
                "name": "records",
                "path": "./records.jsonl",
                "format": "dolly",
                "limit": RECORDS,
                "max_tokens": 512,
                "too_long": "cut",
                "expected": expected,
            }
        ],
        "studies": {"substitution": {"widths": [5]}},
        "execution": {
            "device": "cuda",
            "residency": residency,
            "memory": MEMORY,
            "batch_tokens": BATCH_TOKENS.get(name, "auto"),
        },
        "storage": f"runs/{name.lower()}",
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML
    return path


def planned(path: Path, read: float) -> dict[str, Any]:
    """The plan, as JSON."""
    rates = f"flops={FLOPS:.0e},read={read:.0e}"
    command = [sys.executable, "-m", "raysweep", "plan", path.name, "--gpus", "1", "--rates", rates, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, env={**os.environ}, timeout=600)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def main() -> None:
    print(f"computed, not measured: {FLOPS:.0e} FLOP/s; {RECORDS} records of {PROMPT} + {RESPONSE} tokens, width 5")
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            for place, read in READS.items():
                plan = planned(write_config(Path(name), model), read)
                simulation = plan["simulation"]
                print(
                    f"  {model}, {MODELS[model][-1]}, {place}: {simulation['makespan']:.0f} s; "
                    f"{plan['layer_applications']} layer applications on the records, "
                    f"{simulation['bytes_read'] / 1e9:.0f} GB read; busy {[k['seconds'] for k in plan['kinds']]}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
