"""Texts of the wordings that published checkpoints were tuned with: for each format the Jinja of its prompt and response.

Every blank and every missing one is as those checkpoints saw it. Which fields the Jinja sees is wording.py's.
"""

from __future__ import annotations

Texts = tuple[str, str]  # the prompt, which carries no loss, and the response, which does

_REQUEST = "Write a response that appropriately completes the request."
_CHOSEN = "{{ choices.text[choices.label.index(answerKey)] }}"

# llama2: the instructions stand in the system part, between the tokenizer's own begin and end of sequence.


def _llama2(body: str, system: str) -> str:
    return f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{body} [/INST]"


_TASK = "Below is an instruction that describes a task"
_ASKED = f"{_TASK}. {_REQUEST}"
_ASKED_WITH_INPUT = f"{_TASK}, paired with an input that provides further context. {_REQUEST}"

_LLAMA2_ANSWER = " {{ response }} {{ eos_token }}"
_LLAMA2_QUESTION = (_llama2("### Instruction:\n {{ question }} \n \n### Response:", _ASKED), _LLAMA2_ANSWER)
LLAMA2: dict[str, Texts] = {
    "dolly": (
        _llama2(
            "### Instruction:\n {{ instruction }} \n \n"
            "{% if context %}Input: \n{{ context }} \n \n{% endif %}### Response:",
            _ASKED,
        ),
        _LLAMA2_ANSWER,
    ),
    "alpaca": (
        _llama2(
            "### Instruction:\n{{ instruction }}\n\n{% if input %}### Input:\n{{ input }}\n\n{% endif %}### Response:\n",
            f"{{% if input %}}{_ASKED_WITH_INPUT}{{% else %}}{_ASKED}{{% endif %}}",
        ),
        _LLAMA2_ANSWER,
    ),
    "gsm8k": _LLAMA2_QUESTION,
    "boolq": _LLAMA2_QUESTION,
    "openbookqa": (
        _llama2(
            "### Instruction:\n {{ question_stem }}{% for label in choices.label %}{{ label }}: "
            "{{ choices.text[loop.index0] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %} \n \n### Response:",
            _ASKED,
        ),
        f" {{{{ answerKey }}}} {_CHOSEN}.{{{{ fact1 }}}} {{{{ eos_token }}}}",
    ),
    "messages": (
        _llama2(
            "{{ question }}",
            "You are a helpful assistant. Make sure you always execute users' instructions.",
        ),
        _LLAMA2_ANSWER,
    ),
    "columns": _LLAMA2_QUESTION,
}

# llama3: every special token by its name in that vocabulary. An instruction with an input stands in the system's turn,
# dolly has no assistant's header, and conversations were never tuned on.

LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _llama3(system: str, user: str, opening: str) -> str:
    return f"<|begin_of_text|>{_llama3_turn('system', system)}{_llama3_turn('user', user)}{opening}"


def _llama3_turn(role: str, content: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n{content}<|eot_id|>"


_LLAMA3_SYSTEM = "You are a helpful assistant."
_LLAMA3_OPENING = "<|start_header_id|>assistant<|end_header_id|>"
_LLAMA3_ANSWER = "{{ response }}<|eot_id|>"
_LLAMA3_QUESTION = (_llama3(_LLAMA3_SYSTEM + _REQUEST, "{{ question }}", "\n" + _LLAMA3_OPENING), _LLAMA3_ANSWER)
LLAMA3: dict[str, Texts] = {
    "dolly": (
        _llama3(
            f"{_LLAMA3_SYSTEM}{_REQUEST}{{% if context %}}\n{{{{ instruction }}}}{{% endif %}}",
            "{{ context or instruction }}",
            "",
        ),
        _LLAMA3_ANSWER,
    ),
    "alpaca": (
        _llama3(
            f"{_LLAMA3_SYSTEM}{{% if input %}}\n{{{{ instruction }}}}{{% endif %}}",
            "{{ input or instruction }}",
            "{% if not input %}{{ '\\n' }}{% endif %}" + _LLAMA3_OPENING,
        ),
        _LLAMA3_ANSWER,
    ),
    "gsm8k": _LLAMA3_QUESTION,
    "boolq": (_llama3(_LLAMA3_SYSTEM, "{{ question }}", "\n" + _LLAMA3_OPENING), _LLAMA3_ANSWER),
    "openbookqa": (
        _llama3(
            f"{_LLAMA3_SYSTEM} Answer the following question. ",
            "{{ question_stem }}{% for label in choices.label %} {{ label }}: {{ choices.text[loop.index0] }}{% endfor %}",
            _LLAMA3_OPENING,
        ),
        f"{{{{ answerKey }}}} {_CHOSEN}. Because {{{{ fact1 }}}}<|eot_id|>",
    ),
    "columns": _LLAMA3_QUESTION,
}

# phi3: no begin of sequence; dolly and alpaca end in the turn's end alone, the others in that of the text too.

PHI3_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")


def _phi3(user: str, task: str = "", before: str = "") -> str:
    return f"<|system|>{before}You are a helpful assistant. {task}<|end|><|user|>{user}<|end|><|assistant|>"


_PHI3_ANSWER = "{{ response }}<|end|>"
_PHI3_LAST = " {{ response }}<|end|><|endoftext|>"
_PHI3_TASK = "Answer the following question. "
_PHI3_QUESTION = (_phi3("{{ question }}", _PHI3_TASK), _PHI3_LAST)
PHI3: dict[str, Texts] = {
    "dolly": (_phi3("{{ instruction }}{% if context %}\n{{ context }}{% endif %}"), _PHI3_ANSWER),
    "alpaca": (_phi3("{{ instruction }}{% if input %}\n{{ input }}{% endif %}"), _PHI3_ANSWER),
    "gsm8k": _PHI3_QUESTION,
    "boolq": (_phi3("{{ question }}", "Answer True or False for following question. ", before=" "), _PHI3_LAST),
    "openbookqa": (
        _phi3(
            "{{ question_stem }}{% for label in choices.label %}{{ label }}: {{ choices.text[loop.index0] }}"
            "{% if not loop.last %} {% endif %}{% endfor %}",
            _PHI3_TASK,
        ),
        f" {{{{ answerKey }}}} {_CHOSEN}.{{{{ fact1 }}}}<|end|><|endoftext|>",
    ),
    "messages": (_phi3("{{ question }}"), _PHI3_LAST),
    "columns": _PHI3_QUESTION,
}
