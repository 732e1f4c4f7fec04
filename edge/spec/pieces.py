"""What a prompt is made of: text, ids of special tokens, and slots for what is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SlotName = Literal["system", "content", "answer", "image", "number"]
Trim = Literal["none", "left", "right", "both"]


@dataclass(frozen=True)
class Text:
    """Text of the template. It is tokenised together with the text beside it."""

    text: str


@dataclass(frozen=True)
class Ids:
    """Token ids as they are: of special tokens, whose names a user may type without effect."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """Where a message stands, as text, and whether the template strips white space from a side of it; an image's rows;
    or how many images of the conversation stand before it."""

    slot: SlotName
    trim: Trim = "none"


Piece = Text | Ids | Slot
Pieces = tuple[Piece, ...]
_KINDS = {"text": Text, "ids": Ids, "slot": Slot}


@dataclass(frozen=True)
class Questions:
    """From where a turn begins to where the answer's pieces do."""

    first: Pieces  # of a conversation without a system message
    after_system: Pieces | None  # of one with it, which these hold too; None: the template takes none
    later: Pieces  # after an answer and its end_ids


@dataclass(frozen=True)
class ViewPieces:
    """What an image of several views becomes: tile after tile, and the whole as one more view behind or before them."""

    tiles: tuple[tuple[Pieces, ...], ...]  # of each row, of each column; a tile's rows in the slot `image`
    row_end: Pieces  # behind the last tile of each row
    overview: Pieces  # the whole
    overview_first: bool = False  # before the tiles

    def all(self) -> Iterator[Pieces]:
        yield from (piece for row in self.tiles for piece in row)
        yield from (self.row_end, self.overview)

    def of(self, rows: int, columns: int) -> Iterator[Piece]:
        """Of an image that is divided so."""
        if self.overview_first:
            yield from self.overview
        for row in self.tiles[:rows]:
            for tile in row[:columns]:
                yield from tile
            yield from self.row_end
        if not self.overview_first:
            yield from self.overview

    def faults(self) -> list[str]:
        found = misplaced("views.row_end", self.row_end) + misplaced(
            "views.overview", unnumbered(self.overview), "image"
        )
        for row in self.tiles:
            for tile in row:
                found += misplaced("views.tiles", tile, "image")
        if not self.tiles or len({len(row) for row in self.tiles}) != 1 or not self.tiles[0]:
            found.append("views.tiles is no table of rows and columns")
        return found


def piece(data: object) -> Piece:
    """One piece from a JSON object. Raises ValueError on what is none."""
    if isinstance(data, Mapping) and len(kinds := data.keys() & _KINDS) == 1:
        if "text" in kinds and isinstance(text := data["text"], str):
            return Text(text)
        if "ids" in kinds and _are_ids(data["ids"]):
            return Ids(tuple(data["ids"]))
        if "slot" in kinds and data["slot"] in _names(SlotName) and data.get("trim", "none") in _names(Trim):
            return Slot(data["slot"], data.get("trim", "none"))
    raise ValueError(f"has the piece {data!r}, expected a text, ids or a slot")


def shown(pieces: Iterable[Piece], said: Mapping[str, str]) -> str:
    """For people: ids in brackets, slots as `said` has them."""
    return "".join(
        piece.text if isinstance(piece, Text) else said[piece.slot] if isinstance(piece, Slot) else str(list(piece.ids))
        for piece in pieces
    )


def slots(pieces: Iterable[Piece]) -> list[str]:
    return [piece.slot for piece in pieces if isinstance(piece, Slot)]


def unnumbered(pieces: Pieces) -> Pieces:
    """Without the slot of an image's number, which may stand there once or not."""
    number = next((at for at, piece in enumerate(pieces) if isinstance(piece, Slot) and piece.slot == "number"), None)
    return pieces if number is None else pieces[:number] + pieces[number + 1 :]


def misplaced(where: str, pieces: Pieces, *expected: str) -> list[str]:
    """What is wrong with the slots of these pieces: each of `expected` stands in them once, and in this order."""
    found = slots(pieces)
    if found == list(expected):
        return []
    counts = Counter(found)
    odd = [name for name in dict.fromkeys([*expected, *found]) if counts[name] != (name in expected)]
    if not odd:
        return [f"{where} has its slots in the order {', '.join(found)}"]
    return [f"{where} has the slot {name!r} {counts[name]} times, not {int(name in expected)}" for name in odd]


def _are_ids(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(i) is int and i >= 0 for i in value)


def _names(kind: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = kind.__args__
    return names
