"""Ways to spoil the checkpoints and records of a world."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from command_line import Result
from safetensors.torch import load_file, save_file

LAYERS, CONTEXT, VOCABULARY = 4, 128, 320
UP = "model.layers.2.mlp.up_proj.weight"


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put(world: Path, *records: Any) -> None:
    """Put records, or raw bytes, behind the ones that are there."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in records]
    with (world / "counts.jsonl").open("ab") as file:
        file.writelines(line + b"\n" for line in lines)


def spoil_shards(world: Path) -> None:
    tensors = load_file(world / "base" / "model.safetensors")
    (world / "base" / "model.safetensors").unlink()
    save_file(tensors, world / "base" / "model-00001-of-00002.safetensors")
    shards = dict.fromkeys(tensors, "model-00001-of-00002.safetensors") | {UP: "model-00002-of-00002.safetensors"}
    (world / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def spoil_with_pickle(world: Path) -> None:
    (world / "tuned" / "model.safetensors").unlink()
    torch.save({UP: torch.zeros(2), "args": Path("x")}, world / "tuned" / "pytorch_model.bin")


def spoil_adapter(world: Path) -> None:
    shutil.rmtree(world / "tuned")
    (world / "tuned").mkdir()
    (world / "tuned" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({f"base_model.model.{UP}": torch.tensor([1.0, torch.nan])}, world / "tuned" / "adapter_model.safetensors")


def new_token(world: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    tokenizer.add_tokens([f"<pad-{i}>" for i in range(VOCABULARY - len(tokenizer))] + ["<new>"])
    tokenizer.save_pretrained(world / "base")
    put(world, {"question": "<new> one", "answer": "two"})


def template(text: str | None) -> Callable[[Path], None]:
    def write(world: Path) -> None:
        for name in ("base", "tuned"):
            (world / name / "chat_template.jinja").unlink(missing_ok=True)
            settings = json.loads((world / name / "tokenizer_config.json").read_text())
            settings.pop("chat_template", None)
            (world / name / "tokenizer_config.json").write_text(json.dumps(settings))
            if text is not None:
                (world / name / "chat_template.jinja").write_text(text)

    return write


def told(refused: Result, expected: str) -> bool:
    """Whether the one error line is the expected one, * standing for anything."""
    pieces = f"error: {expected}\n".split("*")
    text, at = refused.err, 0
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0 or (at == 0 and found):
            return False
        at = found + len(piece)
    return at == len(text)


class Page(HTMLParser):
    """A page as a browser sees it; `open` are the elements that were never closed."""

    VOID = ("meta", "link", "img", "br", "hr", "input", "col")

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and "svg" not in self.open:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.texts.append(data)


def page_of(tmp_path) -> Page:
    return Page(tmp_path / "run" / "report" / "index.html")
