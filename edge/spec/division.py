"""How an image is divided into views, beside the whole: a grid of its longer edge, the best of several grids, the grid
of tiles whose ratio is nearest its own, or slices that keep a ratio."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_EDGE = 8192  # that an image is enlarged to: a square of it takes 200 MB
MOST_PATCHES = 1 << 14  # of a view: attention among more takes gigabytes
MOST_PLACES = 1 << 11  # along an edge, which half precision counts exactly
MOST_NUMBERS = 3 << 24  # of a view: those of the largest square


@dataclass(frozen=True)
class ViewsSpec:
    """How an image is divided: its longer edge into `grid` tiles or fewer, as many as `image_tokens` allow."""

    grid: int
    image_tokens: int | None  # rows of embeddings that an image may take; None: as many as its tiles give

    def faults(self, size: int, long_edge: int | None) -> list[str]:
        """What no reader could follow, of views of `size` pixels."""
        if long_edge is None or self.grid != -(-long_edge // size) or self.grid < 2:
            return [f"has views of {self.grid} tiles, and {long_edge} for the longer edge"]
        return []


@dataclass(frozen=True)
class AnyresSpec:
    """How an image is divided: into the tiles of the grid that suits it best, whose embeddings are read line by line
    across all tiles, with a newline behind each (arXiv 2408.03326).

    A view is `side` x `side` embeddings, and behind them the newline.
    """

    grids: tuple[tuple[int, int], ...]  # rows and columns of tiles; of equal ones the first is taken
    side: int
    most_tiles: int | None  # embeddings of so many tiles are kept of all: those of more are resized; None: of all
    image_tokens: int | None  # rows of embeddings that an image may take; None: as many as there are

    def faults(self, size: int, long_edge: int | None) -> list[str]:
        """What no reader could follow, of views of `size` pixels."""
        if long_edge is not None:
            return [f"has views of several grids, and {long_edge} for the longer edge"]
        most = LONGEST_EDGE // size
        if not self.grids or not all(1 <= tiles <= most for grid in self.grids for tiles in grid):
            return [f"has views of the grids {list(self.grids)}, whose edges may have 1 to {most} tiles"]
        if not 1 <= self.side <= size or self.most_tiles == 0:
            return [f"has views of side {self.side} and most_tiles {self.most_tiles}"]
        return []

    @property
    def view_tokens(self) -> int:
        """Rows that a view gives."""
        return self.side**2 + 1

    @property
    def most_views(self) -> int:
        return max(rows * columns for rows, columns in self.grids) + 1


@dataclass(frozen=True)
class RatioSpec:
    """How an image is divided: into the tiles of the grid whose ratio is nearest its own, and the whole behind them
    (arXiv 2404.16821, section 3.1). A grid of one tile is the whole."""

    tiles: tuple[int, int]  # the fewest and the most that a grid has
    image_tokens: int | None  # rows of embeddings that an image may take; None: as many as its tiles give

    def faults(self, size: int, long_edge: int | None) -> list[str]:
        """What no reader could follow, of views of `size` pixels."""
        if long_edge is not None:
            return [f"has views by ratio, and {long_edge} for the longer edge"]
        fewest, most = self.tiles
        if not 1 <= fewest <= most or not 2 <= most <= LONGEST_EDGE // size:
            return [f"has views of {fewest} to {most} tiles, of which there may be 2 to {LONGEST_EDGE // size}"]
        return []

    def most_tiles(self, view_tokens: int, image_tokens: int | None) -> int:
        """Of an image that takes `image_tokens` embeddings or fewer, of which a view gives `view_tokens`."""
        most = self.tiles[1]
        return most if image_tokens is None else min(most, image_tokens // view_tokens - 1)


@dataclass(frozen=True)
class SlicesSpec:
    """How an image is divided: into the slices of the grid whose ratio is nearest its own, of about as many as it has
    times a view's pixels, and the whole before them (arXiv 2403.11703, section 3.1)."""

    slices: int  # the most that a grid has
    image_tokens: int | None  # rows of embeddings that an image may take; None: as many as its slices give

    def faults(self, size: int, long_edge: int | None) -> list[str]:
        """What no reader could follow, of views of `size` x `size` pixels."""
        if long_edge is not None:
            return [f"has slices, and {long_edge} for the longer edge"]
        if not 2 <= self.slices <= LONGEST_EDGE // size:
            return [f"has {self.slices} slices, of which there may be 2 to {LONGEST_EDGE // size}"]
        return []

    def most_slices(self, view_tokens: int, image_tokens: int | None) -> int:
        """Of an image that takes `image_tokens` embeddings or fewer, of which a view gives `view_tokens`."""
        return self.slices if image_tokens is None else min(self.slices, image_tokens // view_tokens - 1)


@dataclass(frozen=True)
class PatchesSpec:
    """What a view that keeps its image's ratio is: patches, row after row, each with its place (arXiv 2307.06304)."""

    side: int  # pixels of a patch
    longest: int  # patches that an edge of a view may have
    most: int  # patches that the vision part takes; a view of fewer is filled up
    table: int  # positions along an edge of the encoder's table

    def faults(self, size: int) -> list[str]:
        """What no reader could follow, of views of about `size` x `size` pixels."""
        if not (1 <= self.side <= size and 1 <= self.longest <= MOST_PLACES and 1 <= self.table <= MOST_PLACES):
            return [f"has patches of {self.side} pixels, {self.longest} along an edge, and a table of {self.table}"]
        most = min(MOST_PATCHES, MOST_NUMBERS // self.width)
        if not (needed := self.needed(size)) <= self.most <= most:
            return [f"has {self.most} patches, and a view may have {needed} of at most {most}"]
        return []

    def needed(self, size: int) -> int:
        """The most patches that a view of about `size` x `size` pixels can have: edges are rounded, up too."""
        pixels = (size / self.side) ** 2
        return max(edge * min(self.longest, round(pixels / (edge - 0.5))) for edge in range(1, self.longest + 1))

    @property
    def width(self) -> int:
        """Numbers of a patch: its pixels, its place in the table, its row and column, and whether it is none."""
        return 3 * self.side**2 + 5
