"""What may be wrong with the decoder of a pair, and with its vocabulary: SentencePiece's, or byte-level BPE.

What llama.cpp makes of it was read in its `src/llama-vocab.cpp` and `tools/mtmd/mtmd-cli.cpp` (as in llama-cpp-python
0.3.36).
"""

from __future__ import annotations

import re
from dataclasses import replace

from edge.errors import BundleError
from edge.formats.gguf import GGUF, GGUFArray
from edge.spec import PromptSpec
from edge.spec.pieces import Slot
from exporters.gguf import rendering, template
from exporters.gguf.fault import Change, Rows, shape, values, whole
from exporters.gguf.names import TEMPLATE
from exporters.sources.published import prompt

_TOKENIZER = "tokenizer.ggml."
_TOKENS, _SCORES, _TYPES = (f"{_TOKENIZER}{name}" for name in ("tokens", "scores", "token_type"))
LISTS = (_TOKENS, _SCORES, _TYPES)
_KINDS = {_TOKENS: (8,), _SCORES: (5, 6), _TYPES: (5,)}  # string; int32 or float32; int32
_BPE = "gpt2"  # what byte-level BPE is called there
_IDS = {"bos": 1, "eos": 2}  # what llama.cpp takes where none is set
# What stands where none is set, and is wanted here.
_FLAGS = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": True}
_BLOCK = re.compile(r"blk\.(\d+)\.")
_ANEW = "make the file anew from the checkpoint: edge export CKPT --format gguf -o OUT"


def model(file: GGUF) -> str:
    """Raises BundleError on one of several files."""
    if file.settings.get("split.count", 1) not in (0, 1):
        raise BundleError(f"{file.path.name} is one of several files", hint="join them: llama-gguf-split --merge")
    return f"{file.settings.get('general.name', 'a decoder')}"


def width(file: GGUF) -> int:
    return (shape(file, "token_embd.weight") or (0,))[0]


def examine(file: GGUF, model: str | None) -> Rows:
    """`model`: what its mmproj is of, "MobileVLM V2" and the like; None where that is not known."""
    rows = Rows("decoder")
    _counts(rows, file)
    _vocabulary(rows, file)
    _special(rows, file)
    _template(rows, file, model)
    return rows


def _counts(rows: Rows, file: GGUF) -> None:
    blocks = len({match[1] for name in file.tensors if (match := _BLOCK.match(name))})
    told = whole(file, f"{file.architecture}.block_count"), whole(file, f"{file.architecture}.embedding_length")
    table = shape(file, "token_embd.weight")
    pieces = file.settings.get(_TOKENS)
    count = pieces.count if isinstance(pieces, GGUFArray) else 0
    off = []
    if not blocks or told[0] != blocks:
        off.append(f"{told[0]} layers set, {blocks} stored")
    if told[1] != width(file) or not table:
        off.append(f"width {told[1]} set, {width(file)} stored")
    if len(table) == 2 and count and count != table[1]:
        off.append(f"{count} tokens, a table of {table[1]}")
    if off:
        rows.wrong("counts", "; ".join(off), f"llama.cpp refuses the file, or computes nonsense; {_ANEW}")
    else:
        rows.ok("counts", f"{blocks} layers, width {told[1]}, {table[1]} tokens")


def _vocabulary(rows: Rows, file: GGUF) -> None:
    kind = file.settings.get(f"{_TOKENIZER}model")
    count = len(values(file, _TOKENS))
    lists = {key: file.settings.get(key) for key in LISTS}
    off = [
        key for key, v in lists.items() if v is not None and not (isinstance(v, GGUFArray) and v.code in _KINDS[key])
    ]
    missing = [key.removeprefix(_TOKENIZER) for key, v in lists.items() if v is None]
    short = [key.removeprefix(_TOKENIZER) for key in LISTS if lists[key] and len(values(file, key)) < count]
    if kind == _BPE:
        _merged(rows, file, off, count)
    elif isinstance(kind, str) and kind != "llama":
        said = f"a tokenizer of the kind {kind!r}"
        rows.wrong("vocabulary", said, "it is the decoder of no MobileVLM or LLaVA-1.5: other rows may mean nothing")
    elif kind is None or off or short or "tokens" in missing or not count:
        said = f"tokenizer {kind!r}, {count} tokens" + "".join(f", {name} too short" for name in short)
        rows.wrong("vocabulary", said, f"llama.cpp refuses the file; {_ANEW}")
    elif missing or len(set(values(file, _SCORES))) < 2:
        said = "no " + " and ".join(missing) if missing else "all scores are alike"
        rows.wrong("vocabulary", said, f"text is cut into other tokens than the model learned; {_ANEW}")
    else:
        rows.ok("vocabulary", f"{count} tokens, with scores and types")


def _merged(rows: Rows, file: GGUF, off: list[str], count: int) -> None:
    """A vocabulary of byte-level BPE: it has merges for scores."""
    merges, pre = file.settings.get(f"{_TOKENIZER}merges"), file.settings.get(f"{_TOKENIZER}pre")
    short = len(values(file, _TYPES)) < count
    if not isinstance(merges, GGUFArray) or merges.code != _KINDS[_TOKENS][0]:
        rows.wrong("vocabulary", f"tokenizer {_BPE!r}, no merges", f"llama.cpp refuses the file; {_ANEW}")
    elif off or short or not count:
        said = f"tokenizer {_BPE!r}, {count} tokens, damaged lists"
        rows.wrong("vocabulary", said, f"llama.cpp refuses the file; {_ANEW}")
    elif not isinstance(pre, str):
        said = f"no {_TOKENIZER}pre"
        rows.wrong("vocabulary", said, f"text is cut into other tokens than the model learned; {_ANEW}")
    else:
        rows.ok("vocabulary", f"{count} tokens, with {merges.count} merges, cut as {pre}")


def _special(rows: Rows, file: GGUF) -> None:
    tokens, types = values(file, _TOKENS), values(file, _TYPES)
    ids = {name: _id(file, name) for name in _IDS if not _without(file, name)}
    outside = [f"{name} is {token}" for name, token in ids.items() if not 0 <= token < max(len(tokens), 1)]
    if outside:
        rows.wrong("special tokens", "; ".join(outside), f"the model never begins or ends as it learned; {_ANEW}")
        return
    flags = {f"{_TOKENIZER}{name}": wanted for name, wanted in _FLAGS.items()}
    if file.settings.get(f"{_TOKENIZER}model") == _BPE:
        del flags[f"{_TOKENIZER}add_bos_token"], flags[f"{_TOKENIZER}add_space_prefix"]  # each model has its own
    off = [key for key, wanted in flags.items() if file.settings.get(key, wanted) is not wanted]
    text = [name for name, token in ids.items() if token < len(types) and types[token] == 1]
    if off:
        said = ", ".join(f"{key.removeprefix(_TOKENIZER)} {str(file.settings[key]).lower()}" for key in off)
        cost = "the prompt does not begin, or end, as the model learned: worse answers"
        rows.wrong("special tokens", said, cost, Change({key: flags[key] for key in off}))
    elif text:
        cost = f"a prompt's </s> may be read as text, and an answer does not end; {_ANEW}"
        rows.warning("special tokens", f"{' and '.join(text)} marked as ordinary text", cost)
    else:
        rows.ok("special tokens", ", ".join(f"{name} {token}" for name, token in ids.items()))


def _template(rows: Rows, file: GGUF, model: str | None) -> None:
    """Compared by what it renders, where jinja2 is installed; else with our own text. A template of its own is what the
    model's author says of it, and no fault: one that is missing, fails or loses the question is."""
    stored = file.settings.get(TEMPLATE)
    begin, end = (_text(file, name) for name in _IDS)
    spec = prompt(0, None, (_id(file, "eos"),))
    ours = template.jinja(spec, lambda i: end)
    change = Change({TEMPLATE: ours})
    if not isinstance(stored, str) or not stored.strip():
        cost = "llama.cpp's chat programs do not start, and the templates they name instead are not this model's"
        rows.wrong("template", "missing", cost, change)
    elif stored == ours:
        rows.ok("template", "Vicuna v1, as the model learned")
    elif len(stored) > rendering.LONGEST:
        rows.warning("template", f"{len(stored)} characters long, and not rendered", "perhaps none")
    else:
        try:
            _rendered(rows, stored, spec, (begin, end), change, model)
        except ModuleNotFoundError:
            said = "not the text that edge export writes; pip install jinja2 to compare what it says"
            rows.warning("template", said, "perhaps none: it may be the model's own")


def _rendered(
    rows: Rows,
    stored: str,
    spec: PromptSpec,
    ends: tuple[str, str],
    change: Change,
    model: str | None,
) -> None:
    """`ends` are the texts of bos and eos."""
    say = rows.wrong if model else rows.warning
    if (difference := rendering.difference(stored, spec, *ends)) is None:
        if "USER: " in stored and "ASSISTANT: " in stored:
            # llama-chat.cpp looks for these two words.
            cost = "without --jinja llama.cpp writes another model's prompt, with line breaks"
            rows.warning("template", "Vicuna v1, taken for another without --jinja", cost, change)
        else:
            rows.ok("template", "renders Vicuna v1, as the model learned")
    elif rendering.difference(stored, replace(spec, image=(Slot("image"),)), *ends) is None:
        cost = "llama.cpp puts no line break between a picture and its question, as the model learned: worse answers"
        say("template", difference, cost, change)
    elif damaged := rendering.damage(stored, *ends):
        say("template", damaged, "llama.cpp's chat programs fail, or do not ask what you ask", change)
    else:
        own = f"its own, not Vicuna v1: {rendering.excerpt(stored, *ends)}"
        if model and model.startswith("MobileVLM"):
            cost = f"worse answers, unless the model was tuned with it: {model} as published learned Vicuna v1"
            rows.warning("template", own, cost)
        else:
            rows.ok("template", own)


def _id(file: GGUF, name: str) -> int:
    value = file.settings.get(f"{_TOKENIZER}{name}_token_id", _IDS[name])
    return value if type(value) is int else -1


def _without(file: GGUF, name: str) -> bool:
    """Whether there is no such token: what llama.cpp takes where none is set is a word of other models' BPE."""
    return file.settings.get(f"{_TOKENIZER}model") == _BPE and f"{_TOKENIZER}{name}_token_id" not in file.settings


def _text(file: GGUF, name: str) -> str:
    if _without(file, name):
        return ""
    tokens, token = values(file, _TOKENS), _id(file, name)
    usual = {"bos": "<s>", "eos": "</s>"}
    return str(tokens[token]) if 0 <= token < len(tokens) else usual[name]
