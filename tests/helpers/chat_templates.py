"""Chat templates as published checkpoints spell them, and some that nobody should."""

from __future__ import annotations

from exporters.sources.published import SYSTEM

# Vicuna's prompt in several spellings.
VICUNA = {
    "terse": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}{% else %}"
        "{% if loop.first %}{{ '" + SYSTEM.replace("'", "\\'") + " ' }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "with what transformers adds": (
        '{%- set ns = namespace(system="' + SYSTEM + '") -%}\n'
        "{%- for message in messages -%}\n"
        "    {%- if message.role == 'system' -%}{%- set ns.system = message.content -%}{%- continue -%}{%- endif -%}\n"
        "    {%- if message.role not in ['user', 'assistant'] -%}{{ raise_exception('who?') }}{%- endif -%}\n"
        "    {%- if ns.system -%}{{ ns.system + ' ' }}{%- set ns.system = '' -%}{%- endif -%}\n"
        "    {%- if message.role == 'user' -%}{{ 'USER: ' ~ message.content ~ ' ' }}\n"
        "    {%- else -%}{{ 'ASSISTANT: ' }}{%- generation -%}{{ message.content ~ '</s>' }}{%- endgeneration -%}\n"
        "    {%- endif -%}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}\n"
    ),
    "no system": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        '{% if loop.first %}{{ "' + SYSTEM + ' " }}{% endif %}'
        "{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '}[m['role']] + m['content'] }}"
        "{{ ' ' if m['role'] == 'user' else eos_token }}{% endfor %}{{ 'ASSISTANT:' if add_generation_prompt }}"
    ),
    "typed entries": (
        "{% if messages[0]['role'] != 'system' %}{{ \"" + SYSTEM + ' " }}{% endif %}'
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}"
        "{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
}

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# A prompt of its own -> what of it is found in an error.
OWN = {
    "llama 2": (LLAMA_2, "[INST] <image>"),
    "llama 3": (LLAMA_3, "<|start_header_id|>user"),
    "chatml": (CHATML, "<|im_start|>user"),
    "idefics": (IDEFICS, "User:<image>What is this?"),
    "no system sentence": (VICUNA["terse"].replace(SYSTEM.replace("'", "\\'") + " ", ""), "USER: <image>"),
    "a space after the end": (VICUNA["terse"].replace("+ eos_token", "+ eos_token + ' '"), "</s> USER"),
    "another system": (
        VICUNA["terse"].replace("m['content'] + ' ' }}{% else", "'S: ' + m['content'] }}{% else"),
        "S: ",
    ),
    "a picture after its question": (
        VICUNA["typed entries"].replace("'<image>\n'", "''").replace("{{ c['text'] }}", "{{ c['text'] }}<image>"),
        "What is this?<image>",
    ),
}
# Of no chat -> why.
DAMAGED = {
    "syntax": ("{% if %}", "TemplateSyntaxError"),
    "throws": ("{{ raise_exception('never') }}", "TemplateError: never"),
    "no attribute": ("{{ nothing.at_all }}", "UndefinedError"),
    "reads attributes": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    "runs a program": ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
    "formats attributes": ("{{ ('{0.__class__.__init__}' | attr('format'))(messages) }}", "leaves out"),
    "reads a file": ("{% include '/etc/passwd' %}", "cannot be rendered"),
    "imports": ("{% import 'os' as os %}{{ os.getcwd() }}", "cannot be rendered"),
    "a long range": ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "ends the process"),
    "a power": ("{{ 9 ** 9999999999 }}", "cannot be rendered"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be rendered"),
    "memory": ("{{ 'a' * 10**11 }}", "MemoryError"),
    "huge output": (
        "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
        "",
    ),  # by the time, or by what it leaves out
    "silent": ("{{ bos_token }}", "leaves out a question"),
    "first question only": ("{{ messages[0]['content'] }}", "leaves out a question"),
    "last question only": ("{{ messages[-1]['content'] }}", "leaves out a question"),
    "the entries": ("{% for m in messages %}{{ [m['content']] | string | upper }}{% endfor %}", "leaves out"),
    "a book": (" " * 70_000 + "{{ 1 }}", "70007 characters long"),
}
