"""Chat templates that read the clock, and the date that they are given in its place.

transformers offers templates `strftime_now(format)`, which asks the machine's clock. A template that calls it makes other
texts every day. Here such a template is given the time 00:00 of one date, whatever the clock says.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

import jinja2

from raysweep.config_dates import parse_date
from raysweep.data.template_limits import Allowance, limited_chat_templates
from raysweep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_READS = re.compile(r"\bstrftime_now\b")
_TIMES = "raysweep_times"
_UNKNOWN = "raysweep needs the time as "
# transformers passes plain data alone to a template, no function, so this macro looks times up that were written before.
# The line break at its end belongs to its last tag; the template behind it begins as it would without the macro.
_MACRO = (
    "{%- macro strftime_now(format) -%}"
    f"{{{{ {_TIMES}[format] if format in {_TIMES} else raise_exception('{_UNKNOWN}' ~ format) }}}}"
    "{%- endmacro %}\n"
)


def today() -> str:
    """Return this machine's date as YYYY-MM-DD."""
    return datetime.date.today().isoformat()


class TemplateClock:
    """The clock of chat templates, stopped at a date (YYYY-MM-DD); `was_read` says whether a template has asked for it.

    Raises InputError for text that is not a date.
    """

    def __init__(self, date: str) -> None:
        try:
            self.date = parse_date(date)
        except ValueError as error:
            raise InputError(f"template_date: {error}") from error
        self._time = datetime.datetime.fromisoformat(date)
        self._times: dict[str, str] = {}

    @property
    def was_read(self) -> bool:
        """Whether a template has asked for the time so far."""
        return bool(self._times)

    def render(self, tokenizer: PreTrainedTokenizerBase, turns: Any, **options: Any) -> str:
        """Apply the tokenizer's chat template at this date; `options` are `apply_chat_template`'s.

        Raises what the template raises.
        """
        with Allowance().one_record(), limited_chat_templates():
            return self._rendered(tokenizer, turns, options)

    def _rendered(self, tokenizer: PreTrainedTokenizerBase, turns: Any, options: dict[str, Any]) -> str:
        options["tokenize"] = False
        template = tokenizer.get_chat_template(options.get("chat_template"), options.get("tools"))
        if not _READS.search(template):
            return str(tokenizer.apply_chat_template(turns, **options))
        options["chat_template"] = _MACRO + template
        while True:
            times = dict(self._times)
            try:
                return str(tokenizer.apply_chat_template(turns, **options, **{_TIMES: times}))
            except jinja2.TemplateError as error:
                _, unknown, asked = str(error).partition(_UNKNOWN)
                if not unknown or asked in times:
                    raise
                self._times[asked] = self._time.strftime(asked)
