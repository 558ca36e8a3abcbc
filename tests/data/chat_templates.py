"""Chat templates in the shapes that published models have, and conversations for them.

Each has one trait or several that decide texts: tools, calls, results, reasoning that is kept, moved or cut, documents,
a system turn that is added or folded into the user's, parts of a content.
"""

from __future__ import annotations

from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- set date_string = '1 Jan 2024' %}{%- endif %}"
    "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set first = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set first = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n\\n' }}"
    "{%- if tools is not none %}{{- 'Call one of these functions:\\n' }}"
    "{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}{%- endif %}"
    "{{- first }}{{- '<|eot_id|>' }}"
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' or m.role == 'ipython' %}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}{{- m.content | tojson }}{{- '<|eot_id|>' }}"
    "{%- elif 'tool_calls' in m %}"
    "{%- if m.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}"
    "{%- set call = m.tool_calls[0].function %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}"
    "{%- else %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)

MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set turns = messages %}{%- endif %}"
    "{%- set asked = turns | selectattr('role', 'equalto', 'user') | list %}"
    "{{- bos_token }}"
    "{%- for m in turns %}"
    "{%- if m.role == 'user' %}"
    "{%- if tools is not none and m == asked[-1] %}"
    "{{- '[AVAILABLE_TOOLS] [' }}"
    "{%- for t in tools %}{{- t | tojson }}{{- ', ' if not loop.last else ']' }}{%- endfor %}{{- '[/AVAILABLE_TOOLS]' }}"
    "{%- endif %}"
    "{%- if loop.first and system is defined %}{{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}"
    "{%- elif m.tool_calls is defined and m.tool_calls is not none %}"
    "{{- '[TOOL_CALLS] [' }}"
    "{%- for c in m.tool_calls %}"
    "{%- if c.id | length != 9 %}{{- raise_exception('ids of calls have 9 characters') }}{%- endif %}"
    "{{- (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' }}{{- ', ' if not loop.last else ']' + eos_token }}"
    "{%- endfor %}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}"
    "{%- elif m.role == 'tool' %}"
    "{{- '[TOOL_RESULTS] {\"content\": ' + m.content | string + ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
    "{%- else %}{{- raise_exception('no such role') }}{%- endif %}"
    "{%- endfor %}"
)

GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

QWEN = (
    "{%- if tools %}"
    "{{- '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if messages[0].role == 'system' else '') }}"
    "{{- 'You may call:\\n<tools>' }}{%- for t in tools %}{{- '\\n' }}{{- t | tojson }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}"
    "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- set ns = namespace(last=0) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}"
    "{%- set said = m.content if m.content is string else '' %}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'assistant' %}"
    "{%- set thought = '' %}"
    "{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}"
    "{%- elif '</think>' in said %}"
    "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set said = said.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{- said }}"
    "{%- for c in m.tool_calls or [] %}"
    "{%- if c.function %}{%- set c = c.function %}{%- endif %}"
    "{{- '\\n' if loop.first and said or not loop.first else '' }}"
    '{{- \'<tool_call>\\n{"name": "\' + c.name + \'", "arguments": \' }}'
    "{{- c.arguments if c.arguments is string else c.arguments | tojson }}{{- '}\\n</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- elif m.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\\n<tool_response>\\n' + said + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)

PHI = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] + '<|end|>\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + '<|end|>\\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\\n' + m['content'] + '<|end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)

ZEPHYR = (
    "{% for m in messages %}\n"
    "{% if m['role'] == 'user' %}\n{{ '<|user|>\\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}\n{{ '<|system|>\\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\\n' + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>\\n' }}{% endif %}\n{% endfor %}"
)

R1 = (
    "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' and m.content is defined %}"
    "{% set said = m.content.split('</think>')[-1] if '</think>' in m.content else m.content %}"
    "{{ '<|Assistant|>' + said + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)

COMMAND = (
    "{{ bos_token }}{% if tools %}{{ '<|SYSTEM|>Tools:' }}{% for t in tools %}{{ '\\n' + t.function.name + ': ' + t.function.description }}"
    "{% endfor %}{{ '<|END|>' }}{% endif %}"
    "{% if documents %}{{ '<|SYSTEM|><results>' }}{% for d in documents %}{{ '\\nDocument: ' }}{{ loop.index0 }}"
    "{% for key, value in d.items() %}{{ '\\n' + key + ': ' + value | string }}{% endfor %}{% endfor %}{{ '\\n</results><|END|>' }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' and m.tool_calls %}{{ '<|CHATBOT|>' + (m.tool_plan or '') + '<|ACTION|>' }}{{ m.tool_calls | tojson }}{{ '<|END|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|RESULT|>' + m.content + '<|END|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|CHATBOT|>' + m.content + '<|END|>' }}"
    "{% else %}{{ '<|' + m.role | upper + '|>' + m.content + '<|END|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|CHATBOT|>' }}{% endif %}"
)

HERMES = (
    "{{ bos_token }}{% macro signature(f) %}{{ f.name }}({% for p in f.parameters.properties %}{{ p }}{{ ', ' if not loop.last }}{% endfor %})"
    "{% endmacro %}{{ '<|im_start|>system\\nFunctions: ' }}{% for t in tools or [] %}{{ signature(t.function) + ' ' + t | tojson + '\\n' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% for m in messages %}"
    "{% if m.role in ('user', 'system') or (m.role == 'assistant' and m.tool_calls is not defined) %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}"
    "{% for c in m.tool_calls %}{{ '\\n<tool_call>\\n' }}{{ c.function | tojson }}{{ '\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>tool\\n<tool_response>\\n' }}"
    "{{ {'name': m.name, 'content': m.content} | tojson }}{{ '\\n</tool_response><|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# With the tag that marks what is generated, and every content as parts.
PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% generation %}{% for part in m.content %}"
    "{% if part.type == 'image' or 'image' in part %}{{ '<image>' }}"
    "{% elif part.type == 'thinking' %}{{ '[' + part.thinking + ']' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

SHAPES = {
    "chatml": CHATML,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "qwen": QWEN,
    "phi": PHI,
    "zephyr": ZEPHYR,
    "r1": R1,
    "command": COMMAND,
    "hermes": HERMES,
    "parts": PARTS,
}
MARKS = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]"),
    *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|end|>"),
    *("<|assistant|>", "<|system|>", "<|User|>", "<|Assistant|>", "<|SYSTEM|>", "<|USER|>", "<|CHATBOT|>", "<|END|>"),
    *("<|ACTION|>", "<|RESULT|>"),
]


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SYSTEM, USER, ANSWER = said("system", "Be short."), said("user", "2 + 3?"), said("assistant", "It is 5.")
NEXT, BYE = said("user", "And 2 + 2?"), said("assistant", " 4, I\n\nthink. ")
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
CALLING = said("assistant", "", tool_calls=[CALL])
SILENT = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = said("tool", '{"sum": 5}', name="add", tool_call_id="abcdefghi")
PROPERTIES = {"a": {"type": "integer"}, "b": {"type": "integer"}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": PROPERTIES, "required": ["a", "b"]},
    },
}
THOUGHT = said("assistant", "5", reasoning_content="2 and 3 are 5.")
DOCUMENTS = [{"title": "Sums", "text": "2 + 3 = 5"}, {"title": "More", "text": "2 + 2 = 4", "year": 1999}]
PARTED = said("user", [{"type": "text", "text": "2 + 3?"}, {"type": "text", "text": " Say it."}])
ONE_PART = said("assistant", [{"type": "text", "text": "It is 5."}])

PLAIN: dict[str, dict[str, Any]] = {
    "two turns": {"messages": [USER, ANSWER]},
    "two rounds": {"messages": [USER, ANSWER, NEXT, BYE]},
    "a system turn": {"messages": [SYSTEM, USER, BYE]},
}
WITH_TOOLS: dict[str, dict[str, Any]] = {
    "tools, not called": {"messages": [USER, ANSWER], "tools": [TOOL, TOOL]},
    "a call at the end": {"messages": [USER, CALLING], "tools": [TOOL]},
    "a call at the end, content null": {"messages": [SYSTEM, USER, SILENT], "tools": [TOOL]},
    "a call, its result and an answer": {"messages": [USER, SILENT, RESULT, ANSWER], "tools": [TOOL]},
}
THOUGHTFUL: dict[str, dict[str, Any]] = {
    "reasoning": {"messages": [USER, THOUGHT]},
    "reasoning in an earlier turn": {"messages": [USER, THOUGHT, NEXT, THOUGHT]},
    "reasoning in the text": {"messages": [USER, said("assistant", "<think>2 and 3</think>\n\n5")]},
    "reasoning under another name": {"messages": [USER, said("assistant", "5", reasoning="2 and 3 are 5.")]},
}
PARTS_OF: dict[str, dict[str, Any]] = {
    "parts of texts": {"messages": [PARTED, ONE_PART]},
    "one part each": {"messages": [said("user", [{"type": "text", "text": "2 + 3?"}]), ONE_PART]},
}
OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {**WITH_TOOLS, "a date": {"messages": [USER, ANSWER], "date_string": "2 Feb 2002"}},
    "mistral": WITH_TOOLS,
    "gemma": PARTS_OF,
    "qwen": {
        **WITH_TOOLS,
        **THOUGHTFUL,
        "no thinking": {"messages": [USER, ANSWER], "enable_thinking": False},
        "thinking": {"messages": [USER, ANSWER], "enable_thinking": True},
        "two calls": {"messages": [USER, said("assistant", "Wait.", tool_calls=[CALL, CALL])], "tools": [TOOL]},
    },
    "r1": {"reasoning in the text": THOUGHTFUL["reasoning in the text"]},
    "command": {
        **WITH_TOOLS,
        "documents": {"messages": [USER, ANSWER], "documents": DOCUMENTS},
        "documents and tools": {"messages": [SYSTEM, USER, SILENT], "documents": DOCUMENTS, "tools": [TOOL]},
        "a plan": {"messages": [USER, SILENT | {"tool_plan": "I add."}], "tools": [TOOL]},
    },
    "hermes": WITH_TOOLS,
    "parts": PARTS_OF,
}
CASES = [
    (shape, what, record)
    for shape in SHAPES
    for what, record in {**(PLAIN if shape != "parts" else {}), **OTHERS.get(shape, {})}.items()
]
