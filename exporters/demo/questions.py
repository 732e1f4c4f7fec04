"""Questions about a scene: eight kinds, four phrasings each, and for every question exactly one right answer."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from exporters.demo.world import COLOURS, PLACES, SHAPES, Scene, Thing

NUMBERS = ("Zero", "One", "Two", "Three", "Four", "Five")
PHRASINGS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {}?",
        "Which colour does the {} have?",
        "Tell me the colour of the {}.",
        "Name the colour of the {}.",
    ),
    "shape": (
        "What shape is the {}?",
        "Which shape does the {} have?",
        "Tell me the shape of the {}.",
        "Name the shape of the {}.",
    ),
    "size": (
        "What size is the {}?",
        "How big is the {}?",
        "Is the {} small or large?",
        "Tell me the size of the {}.",
    ),
    "place": (
        "Where is the {}?",
        "In which place is the {}?",
        "Where do you see the {}?",
        "Tell me where the {} is.",
    ),
    "count": (
        "How many {} are there?",
        "How many {} do you see?",
        "Count the {}.",
        "Tell me the number of {}.",
    ),
    "presence": (
        "Is there {}?",
        "Do you see {}?",
        "Does the picture show {}?",
        "Can you find {}?",
    ),
    "read": (
        "What does the sign say?",
        "What is written on the sign?",
        "Read the sign.",
        "Read the text in the picture.",
    ),
    "describe": (
        "Describe the picture.",
        "What is in the picture?",
        "Tell me what you see.",
        "Give a description of the picture.",
    ),
}
KINDS = tuple(PHRASINGS)
NO_SIGN = "There is no sign."


@dataclass(frozen=True)
class Question:
    """A question, its only right answer, and its kind."""

    kind: str
    text: str
    answer: str


def ask(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """A question of this kind about the scene, or None where the scene has no unambiguous one."""
    found = _MAKERS[kind](scene, rng)
    if found is None:
        return None
    subject, answer = found
    if kind == "presence":
        subject = ("an " if subject[0] in "aeiou" else "a ") + subject
    return Question(kind, rng.choice(PHRASINGS[kind]).format(subject), answer)


def conversation(scene: Scene, rng: random.Random, turns: int) -> list[Question]:
    """Up to `turns` questions about one scene in random order; what needs looking up and counting comes most often."""
    kinds: list[str] = []
    while len(kinds) < turns:
        often = ("colour", "size", "place", "count", "presence")
        kinds += rng.sample((*KINDS, *often) if rng.random() < 0.5 else often, len(often))
    asked = [ask(scene, kind, rng) for kind in kinds[:turns]]
    return [question for question in asked if question] or [_describe_question(scene, rng)]


def _describe_question(scene: Scene, rng: random.Random) -> Question:
    return Question("describe", rng.choice(PHRASINGS["describe"]), _describe(scene))


def _only(scene: Scene, matches: Callable[[Thing], bool], thing: Thing) -> bool:
    return [other for other in scene.things if matches(other)] == [thing]


def _refer(scene: Scene, rng: random.Random, hidden: str) -> tuple[str, Thing] | None:
    """Words that mean exactly one thing and do not give the attribute `hidden` away."""
    choices: list[tuple[str, Thing]] = []
    for thing in scene.things:
        colour, shape, place = thing.colour, thing.shape, thing.place
        if hidden != "place":
            choices.append((f"object at the {PLACES[place]}", thing))
        if hidden != "shape" and _only(scene, lambda t: t.shape == shape, thing):  # noqa: B023 - called at once
            choices.append((shape, thing))
        if hidden != "colour" and _only(scene, lambda t: t.colour == colour, thing):  # noqa: B023
            choices.append((f"{colour} object", thing))
        if hidden in ("size", "place") and _only(scene, lambda t: (t.colour, t.shape) == (colour, shape), thing):  # noqa: B023
            choices.append((f"{colour} {shape}", thing))
    return rng.choice(choices) if choices else None


def _colour(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    found = _refer(scene, rng, "colour")
    return found and (found[0], f"{found[1].colour.capitalize()}.")


def _shape(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    found = _refer(scene, rng, "shape")
    return found and (found[0], f"{found[1].shape.capitalize()}.")


def _size(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    found = _refer(scene, rng, "size")
    return found and (found[0], f"{found[1].size.capitalize()}.")


def _place(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    found = _refer(scene, rng, "place")
    return found and (found[0], f"{PLACES[found[1].place].capitalize()}.")


def _count(scene: Scene, rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(scene.things)
    way = rng.randrange(3)
    if way == 0:
        return "objects", f"{NUMBERS[len(scene.things)]}."
    if way == 1:
        colour = thing.colour if rng.random() < 0.8 else rng.choice(tuple(COLOURS))
        return f"{colour} objects", f"{NUMBERS[sum(t.colour == colour for t in scene.things)]}."
    shape = thing.shape if rng.random() < 0.8 else rng.choice(SHAPES)
    return f"{plural(shape)}", f"{NUMBERS[sum(t.shape == shape for t in scene.things)]}."


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape == "cross" else "s")


def _presence(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Yes and no in equal numbers; half of the absent pairs are made of a colour and a shape that are there."""
    colours, shapes = tuple(COLOURS), tuple(SHAPES)
    here = rng.choice(scene.things)
    way = rng.randrange(3)
    if rng.random() < 0.5:
        return (f"{here.colour} {here.shape}", f"{here.colour} object", here.shape)[way], "Yes."
    if way == 0:
        if rng.random() < 0.5:
            colours, shapes = tuple({t.colour: 0 for t in scene.things}), tuple({t.shape: 0 for t in scene.things})
        pairs = {(t.colour, t.shape) for t in scene.things}
        absent = [f"{c} {s}" for c in colours for s in shapes if (c, s) not in pairs]
        if absent:
            return rng.choice(absent), "No."
    if way == 1:
        return rng.choice([c for c in COLOURS if all(t.colour != c for t in scene.things)]) + " object", "No."
    return rng.choice([s for s in SHAPES if all(t.shape != s for t in scene.things)]), "No."


def _read(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    if scene.sign:
        return "", f"{scene.sign.text}."
    return ("", NO_SIGN) if rng.random() < 0.2 else None


def _describe(scene: Scene) -> str:
    parts = [f"{PLACES[t.place].capitalize()}: a {t.size} {t.colour} {t.shape}." for t in scene.things]
    if scene.sign:
        parts.append(f"The sign says {scene.sign.text}.")
    return " ".join(parts)


_MAKERS: dict[str, Callable[[Scene, random.Random], tuple[str, str] | None]] = {
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "place": _place,
    "count": _count,
    "presence": _presence,
    "read": _read,
    "describe": lambda scene, rng: ("", _describe(scene)),
}
