"""What the published LLaVA-style models have in common: the prompts they were trained with, and CLIP's colours.

Sources: the MobileVLM repository (`conversation.py`, template `v1`), and LLaVA's (`vicuna_v1`, `llava_v1`).
"""

from __future__ import annotations

from edge.spec import PromptSpec
from edge.spec.pieces import Questions, Slot, Text

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# What `--prompt` knows by name -> its system sentence; all else they have in common. A PromptSpec cannot spell LLaVA's
# other conversations: `llama_2` has its system sentence inside the first question and begins each turn with <s>,
# `llava_v0` ends an answer with text, `mpt` and `chatml_direct` have special tokens between the roles.
PROMPTS = {
    "vicuna": SYSTEM,
    "llava_v1": SYSTEM.replace("curious user", "curious human").replace("the user's", "the human's"),
}


def prompt(image_tokens: int, bos_id: int | None, stop_ids: tuple[int, ...]) -> PromptSpec:
    """Vicuna's template. The first of `stop_ids` closes an answer."""
    user = (Text("USER: "), Slot("content"), Text(" "))
    return PromptSpec(
        question=Questions(user, (Slot("system"), Text(" "), *user), user),
        image_question=None,
        image=(Slot("image"), Text("\n")),
        answer=(Text("ASSISTANT: "), Slot("answer")),
        generation=(Text("ASSISTANT:"),),
        default_system=SYSTEM,
        image_tokens=image_tokens,
        bos_id=bos_id,
        restarts=("bos", "image"),  # their programs tokenise the texts around an image one by one
        end_ids=stop_ids[:1],
        stop_ids=stop_ids,
        stop_strings=("</s>",),
    )
