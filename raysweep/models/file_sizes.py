"""Limits on the sizes of a checkpoint's settings and tokenizer files, checked before any library reads them."""

from __future__ import annotations

from pathlib import Path

from raysweep import limits

_SETTINGS = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "quantize_config.json",
    "chat_template.json",
    "raysweep_provenance.json",
)
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
    "*.index.json",
)
_TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja")


def check_file_sizes(folder: Path) -> None:
    """Raise InputError if a settings, tokenizer, index, or template file of the checkpoint in `folder` is too large to be read."""
    for names, limit in (
        (_SETTINGS, limits.SETTINGS_BYTES),
        (_VOCABULARIES, limits.VOCABULARY_BYTES),
        (_TEMPLATES, limits.TEMPLATE_SOURCE),
    ):
        for path in sorted(path for name in names for path in folder.glob(name)):
            if path.is_file():
                limit.check(path.stat().st_size, path)
