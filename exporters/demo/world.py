"""A small procedurally drawn world: coloured shapes on a 3x3 grid, and sometimes a sign to read.

Everything follows from a text seed (`scene("test", 7)`), needs only Pillow and numpy, and uses the font that ships
with Pillow, so the same seed draws the same picture on every machine.
"""

import math
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 336  # pixels of the square picture
GRID = 3  # cells per side
CELL = SIDE // GRID  # 112 px: 8x8 patches of the tower, 4x4 tokens after the projector

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (214, 32, 38),
    "green": (30, 150, 62),
    "blue": (36, 76, 214),
    "yellow": (246, 208, 28),
    "purple": (140, 44, 170),
    "orange": (245, 130, 24),
    "black": (28, 28, 32),
}
SIZES = {"small": (46, 56), "large": (82, 98)}  # outer diameter in pixels, both ends included
PLACES = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = tuple(
    """
    ANT ARM ART BAG BAR BAT BED BEE BIG BOX BOY BUS CAB CAN CAP CAR CAT COW CUP CUT DAY DOG DRY EAR EAT EGG EYE FAN
    FAR FIG FLY FOG FOX FUN GAS GET GUM HAT HEN HOT ICE INK JAM JAR JET JOY KEY KID KIT LAB LAW LEG LIP LOG LOW MAN
    MAP MAX MIX MUD NET NEW NUT OAK OIL OLD OWL PAN PEN PIG PIN POT QUA RAT RED RIB ROW RUN SAD SEA SKY SON SUN TAX
    TEA TEN TIN TOP TOY TWO VAN VET WAX WAY WEB WET WHY WIN YES ZIP ZOO
    """.split()  # noqa: SIM905 - ninety quotes would not read better
)


@dataclass(frozen=True)
class Thing:
    """One shape; `place` is the index of its cell, row by row."""

    shape: str
    colour: str
    size: str
    place: int


@dataclass(frozen=True)
class Sign:
    """A white board; character i of `text` stands in cell `place + i`."""

    text: str
    place: int


@dataclass(frozen=True)
class Scene:
    """What is in a picture: `things` in reading order, perhaps a sign; `seed` moves what the drawing leaves open."""

    things: tuple[Thing, ...]
    sign: Sign | None
    seed: str


def scene(split: str, index: int, *, crowded: bool = False) -> Scene:
    """The scene number `index` of a split ("train", "test", "calibration", …): other names give other scenes.

    `crowded` fills every free cell and shows more signs: an eye learns more from each such picture.
    """
    seed = f"{split}:{index}"
    rng = random.Random(seed)
    sign = _sign(rng) if rng.random() < (0.6 if crowded else 0.35) else None
    taken = range(sign.place, sign.place + len(sign.text)) if sign else ()
    free = [place for place in range(GRID * GRID) if place not in taken]
    count = len(free) if crowded else rng.randint(1, 4 if sign else 5)
    if crowded:  # a few holes, so that an empty cell is known as well
        free = [place for place in free if rng.random() > 0.12] or free
        count = len(free)
    places = sorted(rng.sample(free, count))
    things = tuple(
        Thing(rng.choice(SHAPES), rng.choice(tuple(COLOURS)), rng.choice(tuple(SIZES)), place) for place in places
    )
    return Scene(things, sign, seed)


def _sign(rng: random.Random) -> Sign:
    row = rng.randrange(GRID) * GRID
    if rng.random() < 0.4:
        return Sign(str(rng.randint(10, 99)), row + rng.randrange(2))
    if rng.random() < 0.5:
        return Sign(rng.choice(WORDS), row)
    text = "".join(rng.choices(LETTERS, k=3))  # any letters: reading must not be guessing
    while text.startswith(("AS", "US")):  # the tokenizer has pieces that begin so, on their way to the template's names
        text = "".join(rng.choices(LETTERS, k=3))
    return Sign(text, row)


def draw(what: Scene) -> Image.Image:
    """The picture of a scene, RGB, 336x336."""
    rng = random.Random("draw:" + what.seed)
    picture = _background(rng)
    if what.sign:
        _draw_sign(picture, what.sign, rng)
    for thing in what.things:
        diameter = rng.randint(*SIZES[thing.size])
        play = (CELL - diameter) // 2 - 6  # six pixels stay clear between neighbours
        row, column = divmod(thing.place, GRID)
        left = column * CELL + (CELL - diameter) // 2 + rng.randint(-min(play, 18), min(play, 18))
        top = row * CELL + (CELL - diameter) // 2 + rng.randint(-min(play, 18), min(play, 18))
        colour = tuple(min(255, max(0, part + rng.randint(-10, 10))) for part in COLOURS[thing.colour])
        mask = _mask(thing.shape, diameter, math.radians(rng.uniform(-8, 8)))
        picture.paste(colour, (left, top), mask)
    return picture


def _background(rng: random.Random) -> Image.Image:
    """A pale plane with a slope and fine grain: a real picture is never flat."""
    noise = np.random.Generator(np.random.PCG64(rng.getrandbits(32)))
    base = np.array([rng.randint(205, 240) for _ in range(3)], np.float32)
    slope = np.linspace(-1, 1, SIDE, dtype=np.float32)
    light = slope[:, None] * rng.uniform(-12, 12) + slope[None, :] * rng.uniform(-12, 12)  # [SIDE, SIDE]
    grain = noise.standard_normal((SIDE // 2, SIDE // 2), np.float32).repeat(2, 0).repeat(2, 1) * rng.uniform(0, 4)
    pixels = base + (light + grain)[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")


def _mask(shape: str, diameter: int, angle: float) -> Image.Image:
    """Coverage of a shape, mode L, `diameter` pixels wide; drawn four times larger for smooth edges."""
    scale = 4
    wide = diameter * scale
    mask = Image.new("L", (wide, wide))
    pen = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        pen.ellipse((0, 0, wide - 1, wide - 1), fill=255)
        if shape == "ring":
            hole = wide * 0.27
            pen.ellipse((hole, hole, wide - 1 - hole, wide - 1 - hole), fill=0)
    else:
        cos, sin = math.cos(angle), math.sin(angle)
        half = wide / 2
        corners = [(half * (1 + x * cos - y * sin), half * (1 + x * sin + y * cos)) for x, y in _outline(shape)]
        pen.polygon(corners, fill=255)
    return mask.reduce(scale)


@cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners in the square [-1, 1], y downwards."""
    if shape == "square":
        return ((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84))
    if shape == "triangle":
        return ((0.0, -0.95), (0.95, 0.8), (-0.95, 0.8))
    if shape == "cross":
        arm = 0.3
        quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
        corners = []
        for _ in range(4):
            corners += quarter
            quarter = [(-y, x) for x, y in quarter]
        return tuple((x * 0.95, y * 0.95) for x, y in corners)
    radii = (1.0, 0.42)
    turns = [(radii[i % 2], math.pi * i / 5) for i in range(10)]
    return tuple((radius * math.sin(turn), -radius * math.cos(turn)) for radius, turn in turns)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Aileron, embedded in Pillow: no font file of this machine is read


def _draw_sign(picture: Image.Image, sign: Sign, rng: random.Random) -> None:
    pen = ImageDraw.Draw(picture)
    row, column = divmod(sign.place, GRID)
    left, top = column * CELL, row * CELL
    right = left + len(sign.text) * CELL
    board = (left + 4, top + 8, right - 5, top + CELL - 9)
    pen.rounded_rectangle(board, 10, fill="white", outline=(70, 70, 80), width=3)
    font = _font(rng.randint(74, 86))
    down = rng.randint(-4, 4)
    for slot, character in enumerate(sign.text):
        centre = (left + slot * CELL + CELL // 2 + rng.randint(-5, 5), top + CELL // 2 + down)
        pen.text(centre, character, fill=(20, 20, 28), font=font, anchor="mm")
