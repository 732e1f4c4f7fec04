"""TIFF files written by hand, one sample at a time, and the brightness that the TIFF 6.0 specification gives them."""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE = range(4)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = range(3)


@dataclass(frozen=True)
class Tiff:
    samples: np.ndarray  # [H, W, S] int64, or float64 for SampleFormat 3
    bits: int | tuple[int, ...] = 8
    photometric: int | None = BLACK_IS_ZERO
    order: str = "<"
    planar: int = 1
    compression: int = NONE
    predictor: int = 1
    fill_order: int = 1
    sample_format: int | None = None
    extra: tuple[int, ...] = ()
    rows_per_strip: int | None = None
    tile: tuple[int, int] | None = None  # width, height
    colormap: np.ndarray | None = None  # [3, 2**bits]
    tags: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)  # tag: (type, values), over all else
    big: bool = False  # BigTIFF

    @property
    def depths(self) -> tuple[int, ...]:
        return self.bits if isinstance(self.bits, tuple) else (self.bits,) * self.samples.shape[2]

    def bytes(self, *more: Tiff) -> bytes:
        """One file; `more` are its further pages."""
        mark = b"II" if self.order == "<" else b"MM"
        out = bytearray(mark + self._pack("H", 43 if self.big else 42))
        out += self._pack("HHQ", 8, 0, 0) if self.big else self._pack("I", 0)
        link = len(out) - (8 if self.big else 4)
        for page in (self, *more):
            link = page._page(out, link)
        return bytes(out)

    def _pack(self, kind: str, *values: float) -> bytes:
        return struct.pack(self.order + kind, *values)

    def _page(self, out: bytearray, link: int) -> int:
        """Appends data and directory, points `link` at the directory; where the next page's link lies."""
        offsets, counts = [], []
        for block in self._blocks():
            offsets.append(len(out))
            counts.append(len(block))
            out += block + bytes(len(block) % 2)
        entries = self._entries(offsets, counts)
        word, width = ("Q", 8) if self.big else ("I", 4)
        directory = self._pack("Q" if self.big else "H", len(entries))
        for tag, (kind, values) in sorted(entries.items()):
            body = self._pack({3: "H", 4: "I"}[kind] * len(values), *values)
            if len(body) > width:
                body, outside = self._pack(word, len(out)), body
                out += outside + bytes(len(outside) % 2)
            directory += self._pack("HH" + word, tag, kind, len(values)) + body.ljust(width, b"\0")
        out[link : link + width] = self._pack(word, len(out))
        out += directory + bytes(width)
        return len(out) - width

    def _entries(self, offsets: list[int], counts: list[int]) -> dict[int, tuple[int, tuple[int, ...]]]:
        height, width, samples = self.samples.shape
        entries = {
            256: (4, (width,)),
            257: (4, (height,)),
            258: (3, self.depths),
            259: (3, (self.compression,)),
            277: (3, (samples,)),
            284: (3, (self.planar,)),
        }
        if self.photometric is not None:
            entries[262] = (3, (self.photometric,))
        if self.tile is None:
            entries |= {273: (4, tuple(offsets)), 278: (4, (self._rows,)), 279: (4, tuple(counts))}
        else:
            entries |= {322: (4, self.tile[:1]), 323: (4, self.tile[1:]), 324: (4, tuple(offsets))}
            entries[325] = (4, tuple(counts))
        if self.predictor != 1:
            entries[317] = (3, (self.predictor,))
        if self.fill_order != 1:
            entries[266] = (3, (self.fill_order,))
        if self.extra:
            entries[338] = (3, self.extra)
        if self.sample_format is not None:
            entries[339] = (3, (self.sample_format,) * samples)
        if self.colormap is not None:
            entries[320] = (3, tuple(self.colormap.reshape(-1).tolist()))
        return entries | self.tags

    @property
    def _rows(self) -> int:
        return self.rows_per_strip or self.samples.shape[0]

    def _blocks(self) -> list[bytes]:
        """The strips or tiles in the file's order."""
        height, width, samples = self.samples.shape
        across, down = self.tile or (width, self._rows)
        planes = [(index,) for index in range(samples)] if self.planar == 2 else [tuple(range(samples))]
        blocks = []
        for plane, y, x in itertools.product(planes, range(0, height, down), range(0, width, across)):
            block = self.samples[y : y + down, x : x + across][:, :, plane]
            if self.tile:
                missing = (down - block.shape[0], across - block.shape[1])
                block = np.pad(block, ((0, missing[0]), (0, missing[1]), (0, 0)))
            blocks.append(self._block(block, [self.depths[index] for index in plane]))
        return blocks

    def _block(self, block: np.ndarray, depths: list[int]) -> bytes:
        if self.predictor == 2:
            block = np.concatenate([block[:, :1], np.diff(block, axis=1)], axis=1) % 2 ** np.array(depths)
        rows = [self._row(row, depths) for row in block]
        if self.compression == PACKBITS:  # row by row, as the specification wants it
            data = b"".join(_packbits(row) for row in rows)
        else:
            data = {NONE: bytes, DEFLATE: zlib.compress, LZW: _lzw}.get(self.compression, bytes)(b"".join(rows))
        return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if self.fill_order == 2 else data

    def _row(self, row: np.ndarray, depths: list[int]) -> bytes:
        """[W, S] → the row's bytes: whole bytes in the file's order, everything else packed from the highest bit."""
        if self.sample_format == FLOAT:
            return self._pack("f" * row.size, *row.reshape(-1).tolist())
        values = [(int(value), depth) for pixel in row for value, depth in zip(pixel, depths, strict=True)]
        if set(depths) <= {8, 16, 32}:
            order = "little" if self.order == "<" else "big"
            return b"".join((value % 2**depth).to_bytes(depth // 8, order) for value, depth in values)
        text = "".join(f"{value:0{depth}b}" for value, depth in values)
        text += "0" * (-len(text) % 8)
        return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def _packbits(data: bytes) -> bytes:
    return b"".join(bytes([len(data[at : at + 128]) - 1]) + data[at : at + 128] for at in range(0, len(data), 128))


def _lzw(data: bytes) -> bytes:
    """Codes of 9 bits only: the table is cleared before they would grow."""
    codes = [256]
    for at in range(0, len(data), 200):
        codes += [*data[at : at + 200], 256]
    text = "".join(f"{code:09b}" for code in [*codes, 257])
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def brightness(tiff: Tiff) -> np.ndarray:
    """float64 [H, W, 3] in 0..255, on white: what the specification says of the samples, read from nothing but them."""
    values = tiff.samples / (2.0 ** np.array(tiff.depths) - 1)
    alpha = np.ones(values.shape[:2])
    colours = 3 if tiff.photometric == RGB else 1
    associated = False
    for kind, channel in zip(tiff.extra, np.moveaxis(values[:, :, colours:], 2, 0), strict=True):
        if kind != UNSPECIFIED:
            alpha, associated = channel, kind == ASSOCIATED
    if tiff.photometric == PALETTE:
        colour = np.moveaxis(tiff.colormap[:, tiff.samples[:, :, 0]], 0, 2) / 65535
    else:
        colour = values[:, :, :colours]
        if tiff.photometric == WHITE_IS_ZERO:
            colour = 1 - colour
    if not associated:
        colour = colour * alpha[:, :, None]
    return np.broadcast_to((colour + 1 - alpha[:, :, None]) * 255, (*values.shape[:2], 3))
