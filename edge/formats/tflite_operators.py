"""The operators of TFLite files that this project writes, and what each of them takes.

The library's kernels take an operator's inputs by their place, and follow what is not there: so how many there are, of
what kind each is, and that something wrote it before it is read, is looked at here first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.formats.flatbuffers import Damage, Numbers


class Operator(NamedTuple):
    name: str
    options: int  # BuiltinOptions
    # A letter for each input. f: float32, a constant or what another operator made; c: a constant of float32; b: such,
    # or left out; h: such of float16; w: weights, constant, or what DEQUANTIZE made of such; i: a constant of int32
    takes: str
    most: int = 0  # inputs, where the last may be repeated


# BuiltinOperator -> what it is
OPERATORS = {
    0: Operator("ADD", 11, "ff"),
    1: Operator("AVERAGE_POOL_2D", 5, "f"),
    2: Operator("CONCATENATION", 10, "ff", 5),
    3: Operator("CONV_2D", 1, "fcc"),
    4: Operator("DEPTHWISE_CONV_2D", 2, "fcc"),
    6: Operator("DEQUANTIZE", 38, "h"),
    9: Operator("FULLY_CONNECTED", 8, "fwb"),
    14: Operator("LOGISTIC", 0, "f"),
    18: Operator("MUL", 21, "ff"),
    19: Operator("RELU", 0, "f"),
    22: Operator("RESHAPE", 17, "fi"),
    25: Operator("SOFTMAX", 9, "f"),
    34: Operator("PAD", 22, "fi"),
    39: Operator("TRANSPOSE", 26, "fi"),
    40: Operator("MEAN", 27, "fi"),
    41: Operator("SUB", 28, "ff"),
    45: Operator("STRIDED_SLICE", 32, "fiii"),
    76: Operator("RSQRT", 0, "f"),
    117: Operator("HARD_SWISH", 91, "f"),
    126: Operator("BATCH_MATMUL", 101, "ff"),
    150: Operator("GELU", 116, "f"),
}
FULLY_CONNECTED, RESHAPE = 9, 22
_CONVOLUTIONS, _DEQUANTIZE, _PAD, _MEAN, _POOL, _MATMUL = (3, 4), 6, 34, 40, 1, 126
_KINDS = {"f": 0, "c": 0, "b": 0, "h": 1, "i": 2}  # letter -> TensorType
_FLOAT, _INTEGERS = 0, (9, 17)  # of TensorType: float32, and what weights are rounded to
_LEFT_OUT = -1


class Facts(NamedTuple):
    """Of every tensor of every subgraph, one after the other."""

    kinds: Numbers
    constant: NDArray[np.bool_]
    given: NDArray[np.bool_]  # a subgraph's input
    scaled: NDArray[np.bool_]  # it has scales
    ranks: Numbers
    elements: NDArray[np.float64]
    first: Numbers  # sizes of the first and of the last axis, 1 where there is none
    last: Numbers


class Operands(NamedTuple):
    """Of every operator of every subgraph, in their order."""

    code: Numbers
    counts: Numbers  # of its inputs
    inputs: Numbers  # of all, one after the other: places in Facts, -1 where one is left out
    output: Numbers  # each has one

    def at(self, chosen: Numbers, place: int) -> Numbers:
        """An input of some operators, which have so many."""
        return np.asarray(self.inputs[(np.cumsum(self.counts) - self.counts)[chosen] + place], np.int64)


def check(operands: Operands, facts: Facts) -> None:
    """Raises Damage where an operator does not have what it takes."""
    for code in np.unique(operands.code).tolist():
        operator, chosen = OPERATORS[code], np.flatnonzero(operands.code == code)
        least, most = len(operator.takes), operator.most or len(operator.takes)
        counts = operands.counts[chosen]
        if np.any((counts < least) | (counts > most)):
            wrong = int(counts[(counts < least) | (counts > most)][0])
            raise Damage(f"a {operator.name} of {wrong} inputs, where it takes {least}")
    _order(operands, facts)
    for code in np.unique(operands.code).tolist():
        chosen = np.flatnonzero(operands.code == code)
        for place in range(max(operands.counts[chosen])):
            having = chosen[operands.counts[chosen] > place]
            letter = OPERATORS[code].takes[min(place, len(OPERATORS[code].takes) - 1)]
            _kind(code, place, letter, operands.at(having, place), operands, facts)
        _shapes(code, chosen, operands, facts)


def _order(operands: Operands, facts: Facts) -> None:
    """What is read was given, is constant, or was made before, by one operator."""
    made = np.full(len(facts.kinds), len(operands.code), np.int64)  # by which operator
    made[operands.output[::-1]] = np.arange(len(operands.code))[::-1]
    if len(np.unique(operands.output)) != len(operands.output):
        raise Damage("two operators have one result")
    if np.any(facts.constant[operands.output] | facts.given[operands.output]):
        raise Damage("an operator whose result is a constant or an input")
    if np.any(facts.kinds[operands.output] != _FLOAT):
        raise Damage("an operator whose result is no float32")
    reader = np.repeat(np.arange(len(operands.code)), operands.counts)
    read = operands.inputs >= 0
    source = operands.inputs[read]
    there = facts.constant[source] | facts.given[source] | (made[source] < reader[read])
    if not np.all(there):
        name = OPERATORS[int(operands.code[reader[read][~there][0]])].name
        raise Damage(f"a {name} reads what nothing wrote before it")


def _kind(code: int, place: int, letter: str, inputs: Numbers, operands: Operands, facts: Facts) -> None:
    name = OPERATORS[code].name
    left_out = inputs == _LEFT_OUT
    if np.any(left_out) and letter != "b":
        raise Damage(f"a {name} without its input {place}")
    inputs = inputs[~left_out]
    kinds, constant = facts.kinds[inputs], facts.constant[inputs]
    if letter == "w":
        widened = np.isin(inputs, operands.output[operands.code == _DEQUANTIZE])
        sound = widened | (constant & ((kinds == _FLOAT) | (np.isin(kinds, _INTEGERS) & facts.scaled[inputs])))
    else:
        sound = (kinds == _KINDS[letter]) & (constant | (letter == "f"))
    if not np.all(sound):
        raise Damage(f"a {name} whose input {place} is not of the kind that it takes")


def _shapes(code: int, chosen: Numbers, operands: Operands, facts: Facts) -> None:
    """Sizes that kernels take from one tensor and use on another."""
    x, out = operands.at(chosen, 0), operands.output[chosen]
    rank = facts.ranks[x]
    sound = np.ones(len(chosen), bool)
    if code == FULLY_CONNECTED:
        weight, bias = operands.at(chosen, 1), operands.at(chosen, 2)
        sound &= (facts.ranks[weight] == 2) & (facts.last[weight] == facts.last[x]) & (rank > 0)
        sound &= (facts.first[weight] == facts.last[out]) & (facts.ranks[out] > 0)
        sound &= (bias == _LEFT_OUT) | ((facts.elements[bias] == facts.first[weight]) & (facts.ranks[bias] == 1))
    elif code in _CONVOLUTIONS:
        weight, bias = operands.at(chosen, 1), operands.at(chosen, 2)
        channels = facts.first[weight] if code == _CONVOLUTIONS[0] else facts.last[weight]
        sound &= (rank == 4) & (facts.ranks[out] == 4) & (facts.ranks[weight] == 4) & (facts.ranks[bias] == 1)
        sound &= (facts.elements[bias] == channels) & (facts.last[out] == channels)
    elif code == _POOL:
        sound &= (rank == 4) & (facts.ranks[out] == 4)
    elif code == _MATMUL:
        sound &= (rank >= 2) & (facts.ranks[operands.at(chosen, 1)] >= 2)
    elif "i" in OPERATORS[code].takes:
        for place in range(1, len(OPERATORS[code].takes)):
            numbers = operands.at(chosen, place)
            count = facts.elements[numbers]
            if code == _MEAN:
                sound &= (count >= 1) & (count <= rank)
            else:
                sound &= count == (facts.ranks[out] if code == RESHAPE else 2 * rank if code == _PAD else rank)
            sound &= facts.ranks[numbers] == (2 if code == _PAD else 1)
    if not np.all(sound):
        raise Damage(f"a {OPERATORS[code].name} of shapes that do not go together")
