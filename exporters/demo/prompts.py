"""Conversations as token ids, in the template of MobileVLM (Vicuna v1)."""

from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from exporters.demo.questions import Question

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BOS, EOS = 1, 2


@dataclass(frozen=True)
class Conversation:
    """Ids before the picture, ids after it, and for each of the latter how much it counts when the model learns.

    The ids of an answer share one weight: a description of forty ids is not to drown out "Yes."
    """

    before: list[int]
    after: list[int]
    weights: list[float]


class Prompter:
    """Encodes conversations; each side of the picture is encoded on its own, as upstream does."""

    def __init__(self, tokenizer: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        self.before = [BOS, *self.pieces.encode(f"{SYSTEM} USER: ")]

    def prompt(self, question: str) -> list[int]:
        """Ids after the picture, up to where the answer begins."""
        return self.pieces.encode(f"\n{question} ASSISTANT:")

    def conversation(self, asked: list[Question]) -> Conversation:
        """All questions of a picture as one conversation, answers marked.

        A turn's text is encoded apart from its neighbours', so that an answer's pieces are those that the model would
        have to produce after the prompt.
        """
        after: list[int] = []
        weights: list[float] = []
        for index, question in enumerate(asked):
            text = question.text if index else f"\n{question.text}"
            asking = self.pieces.encode(f"USER: {text} ASSISTANT:" if index else f"{text} ASSISTANT:")
            answer = [*self.pieces.encode(question.answer), EOS]
            after += asking + answer
            weights += [0.0] * len(asking) + [len(answer) ** -0.75] * len(answer)
        return Conversation(self.before, after, weights)

    def text(self, ids: list[int]) -> str:
        """Ids back to text."""
        return self.pieces.decode(ids).strip()
