"""The Python call that makes examples of records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Unpack, overload

from raysweep.data.examples import Loaded
from raysweep.data.examples import load_examples as load_from
from raysweep.data.formats import FORMATS
from raysweep.errors import InputError
from raysweep.notebook_examples import (
    LoadOptions,
    Tokenizer,
    checked,
    format_given,
    tokenizer_given,
    warn_of_texts,
)

if TYPE_CHECKING:
    from raysweep.data.sources import Source


@overload
def load_examples(
    source: Source, format: str | None, tokenizer: Tokenizer, **options: Unpack[LoadOptions]
) -> Loaded: ...


@overload
def load_examples(
    source: Source, tokenizer: Tokenizer, *, format: str | None = None, **options: Unpack[LoadOptions]
) -> Loaded: ...


def load_examples(
    source: Source,
    *given: Any,
    format: str | None = None,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> Loaded:
    """Read records and make examples of them: the texts, their tokens, and how many tokens are the prompt.

    Warns if the prompt template does not read or changes a part of the records, and if it reads the clock.

    Args:
        source: A file, a folder of Hugging Face `datasets`, a hub data set or a laboratory name, as text or `Path`; or records in
            memory: a list of dicts, a pandas data frame or a data set of `datasets`.
        *given: The tokenizer, or a format and a tokenizer, as positional arguments.
        format: How a record is read; by default the one format that fits the first record, or `columns` with the options `prompt`
            and `response`.
        tokenizer: A tokenizer, or the name or folder of a checkpoint.
        **options: `limit`, `split`, `template`, `max_tokens`, `too_long`, `prompt`, `response`, `exclude`, `last`,
            `all_but_last` and `template_date`, as in a config's data sets and models; `prompts_only` for models whose states alone
            are measured.

    Returns:
        The examples, and counts of those that were cut or skipped.

    Raises:
        InputError: The source, the format, the template or an option is invalid, or a record does not fit.
        TypeError: An option does not exist.
    """
    if len(given) > 2:
        raise TypeError(
            f"load_examples takes a source, a format and a tokenizer; got {1 + len(given)} positional arguments"
        )
    if len(given) == 2:
        format, tokenizer = given
    elif given and (tokenizer is not None or given[0] in (None, "columns", *FORMATS)):
        format = given[0]
    elif given:
        tokenizer = given[0]
    if tokenizer is None:
        raise InputError("load_examples needs a tokenizer; give one, or the name or folder of a checkpoint")
    if format is not None and not isinstance(format, str):
        raise InputError(f"format is of type {type(format).__name__}; give the name of a format, then the tokenizer")
    found, source = checked(options, LoadOptions), list(source) if isinstance(source, Iterator) else source
    record_format = format_given(source, {**found, "format": format})
    loaded = load_from(source, record_format, tokenizer_given(tokenizer), **found)
    warn_of_texts(loaded, record_format, found)
    return loaded
