"""Messages of the protocol become the turns of a conversation: a question each, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.server.errors import ApiError
from edge.server.fields import Fields, as_fields, shown
from edge.server.limits import Limits


@dataclass(frozen=True)
class Picture:
    url: str
    param: str  # the field that it stood in


Item = str | Picture
ReadPart = Callable[[Fields], Item]


@dataclass
class Said:
    """One turn: text and pictures in the order in which they are shown."""

    content: list[Item]
    answer: str | None = None


@dataclass
class Conversation:
    where: str  # the field that it stood in
    system: str | None = None
    turns: list[Said] = field(default_factory=list)

    @property
    def pictures(self) -> list[Picture]:
        return [item for said in self.turns for item in said.content if isinstance(item, Picture)]

    @property
    def characters(self) -> int:
        texts = [item for said in self.turns for item in (*said.content, said.answer) if isinstance(item, str)]
        return sum(map(len, texts)) + len(self.system or "")

    def add(self, role: str, content: list[Item], where: str) -> None:
        """Questions in a row are one question. Raises ApiError where the order makes no conversation."""
        if role in ("system", "developer"):
            if self.turns:
                raise ApiError(400, f"{where} is a {role} message after the conversation began", param=where)
            told = _joined(content, f"{where}.content")
            self.system = told if self.system is None else f"{self.system}\n\n{told}"
        elif role == "user":
            if self.turns and self.turns[-1].answer is None:
                self.turns[-1].content += content
            else:
                self.turns.append(Said(content))
        elif not self.turns or self.turns[-1].answer is not None:
            raise ApiError(400, f"{where} answers no question", param=where)
        else:
            self.turns[-1].answer = _joined(content, f"{where}.content")

    def finish(self, limits: Limits, context: int) -> None:
        """Make it ready to be answered by a model of so many positions. Raises ApiError."""
        where = self.where
        if not self.turns or self.turns[-1].answer is not None:
            raise ApiError(400, f"{where} does not end with a user's message", param=where)
        if (count := len(self.pictures)) > limits.pictures:
            raise ApiError(400, f"{where} holds {count} images; at most {limits.pictures} are taken", param=where)
        if (count := self.characters) > (most := context * limits.text_per_position):
            message = f"{where} holds {count:,} characters; at most {most:,} fit into the context of {context} tokens"
            raise ApiError(400, message, param=where, code="context_length_exceeded")
        for said in self.turns:
            said.content = _arranged(said.content)


def read_messages(messages: Sequence[Any], where: str, read_part: ReadPart, limits: Limits) -> Conversation:
    """`where`: the field that they stand in. Raises ApiError."""
    if len(messages) > limits.messages:
        raise ApiError(400, f"{where} has {len(messages)} items; at most {limits.messages} are taken", param=where)
    found = Conversation(where)
    for number, data in enumerate(messages):
        place = f"{where}[{number}]"
        message = as_fields(data, place)
        message.only("type", "message", "only messages are read")
        role = message.needed_text("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise ApiError(
                400,
                f"{message.name('role')} is {shown(role)}, expected system, developer, user or assistant",
                param=message.name("role"),
            )
        for key in ("tool_calls", "function_call"):
            message.only(key, [], "tools are not supported")
        message.ignore(("name", "refusal", "audio", "annotations", "id", "status", "reasoning_content"))
        found.add(role, _content(message, read_part), place)
        message.end()
    return found


def _content(message: Fields, read_part: ReadPart) -> list[Item]:
    value, where = message.take("content"), message.name("content")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ApiError(400, f"{where} is {shown(value)}, expected a string or an array of parts", param=where)
    parts = [as_fields(part, f"{where}[{number}]") for number, part in enumerate(value)]
    found = []
    for part in parts:
        found.append(read_part(part))
        part.end()
    return found


def _joined(content: Sequence[Item], where: str) -> str:
    if any(isinstance(item, Picture) for item in content):
        raise ApiError(400, f"{where} holds an image; only a user's message may", param=where)
    return "\n".join(map(str, content))


def _arranged(content: list[Item]) -> list[Item]:
    """Texts beside each other are one, of a line each. Pictures that follow all of the text go before it: so the
    models were trained, and so `edge run` asks; between texts they stay where they are."""
    found: list[Item] = []
    for item in content:
        if isinstance(item, str) and found and isinstance(found[-1], str):
            found[-1] = f"{found[-1]}\n{item}"
        else:
            found.append(item)
    if isinstance(found[0], str) and all(isinstance(item, Picture) for item in found[1:]):
        return [*found[1:], found[0]]
    return found
