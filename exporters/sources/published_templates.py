"""Chat templates of published language models, for checkpoints that learned one and came without it: `--prompt`.

Written after the models' documentation: what each renders is in tests/export/test_template_pieces.py.
"""

from __future__ import annotations

_ROLES = "{% for message in messages %}"
_GO_ON = "{% endfor %}{% if add_generation_prompt %}"
TEMPLATES = {
    "chatml": (
        _ROLES + "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        + _GO_ON + "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama_2": (
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
        "{% else %}{% set system = false %}{% set turns = messages %}{% endif %}{% for message in turns %}"
        "{% if loop.first and system != false %}"
        "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{{ bos_token }}" + _ROLES + "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
        "+ message['content'] | trim + '<|eot_id|>' }}"
        + _GO_ON + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}" + _ROLES
        + "{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ '<start_of_turn>' + message['role'] | replace('assistant', 'model') + '\n' + message['content'] | trim "
        "+ '<end_of_turn>\n' }}" + _GO_ON + "{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}" + _ROLES
        + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
    ),
    "phi3": (
        _ROLES + "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
        + _GO_ON + "{{ '<|assistant|>\n' }}{% endif %}"
    ),
}  # fmt: skip
# The special tokens that they are written with: a tokenizer without them is another model's.
SPECIAL = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "phi3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
}
