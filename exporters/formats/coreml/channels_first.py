"""The same graph in the form that Apple's neural engine likes: features along axis 1 and positions along the last, 1x1
convolutions for products, each head's attention on its own (apple/ml-ane-transformers, "Deploying Transformers on the
Apple Neural Engine", 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from torch import fx

from edge.errors import EdgeError
from exporters.formats.coreml.lower import Lowering, Weight
from exporters.models.ops import UNSEEN

# Rules that can take columns; and those that make columns of rows: what they give is mostly taken by others of them.
_ABLE = {"add", "mul", "activation", "soft_cap", "gated", "getattr"}
_START = {"linear", "layer_norm", "rms_norm", "attention", "attend"}


class ChannelsFirst(Lowering):
    """Rows `[1, S, C]` become columns `[1, C, 1, S]` where a rule wants them so, and rows again where none does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._columns: set[Var] = set()
        self._turned: dict[Var, Var] = {}  # rows or columns -> the other

    def run(self, x: Var, done: Callable[[float], None]) -> Var:
        return cast("Var", self._rows(super().run(x, done)))

    def apply(self, rule: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = [*args, *kwargs.values()]
        found = [value for value in given if isinstance(value, Var)]
        in_columns = any(value in self._columns for value in found)
        starts = rule in _START and (in_columns or found[0].rank == 3)
        # A number for each row and feature is in the module as rows.
        able = rule in _ABLE and in_columns and not any(isinstance(value, Weight) for value in given)
        self.axis = 1 if starts or able else -1
        turn = self._turn if self.axis == 1 else self._rows
        args, kwargs = fx.node.map_aggregate((tuple(args), dict(kwargs)), turn)
        result = super().apply(rule, args, kwargs)
        if self.axis == 1 and isinstance(result, Var):
            self._columns.add(result)
        return result

    def cast(self, x: Var, dtype: str) -> Var:
        y = super().cast(x, dtype)
        if x in self._columns:
            self._columns.add(y)
        return y

    def getattr(self, x: Var, name: str) -> Any:
        shape = super().getattr(x, name)
        return (shape[0], shape[3], shape[1]) if self.axis == 1 else shape

    def along(self, x: Var) -> tuple[int, ...]:
        return (1, int(x.shape[1]), 1, 1) if self.axis == 1 else super().along(x)

    def linear(self, x: Var, weight: Weight, bias: Weight | None) -> Var:
        if self.axis != 1:
            raise EdgeError(
                f"Core ML: {weight} multiplies {x.rank} axes, and a convolution takes rows only", hint="leave out --ane"
            )
        product = self._weights.product(weight, self._wide)
        return mb.conv(x=x, weight=product, bias=self.bias(bias, product.shape[0]), pad_type="valid")

    def attention(self, q: Var, k: Var, v: Var, heads: int, empty: Var | None = None) -> Var:
        size = q.shape[1] // heads
        unseen = None
        if empty is not None:
            unseen = mb.mul(x=mb.reshape(x=empty, shape=[1, -1, 1, 1]), y=self.number(UNSEEN))
        # q, k, v of each head are [1, size, 1, S]; scores [1, S of k, 1, S of q].
        q = mb.mul(x=q, y=self.number(size**-0.5))
        k = mb.transpose(x=k, perm=[0, 3, 2, 1])
        seen = []
        for own_q, own_k, own_v in zip(_cut(q, heads, 1), _cut(k, heads, 3), _cut(v, heads, 1), strict=True):
            scores = mb.einsum(values=(own_k, own_q), equation="bkhc,bchq->bkhq")
            scores = scores if unseen is None else mb.add(x=scores, y=unseen)
            shares = mb.softmax(x=scores, axis=1)
            seen.append(mb.einsum(values=(own_v, shares), equation="bchk,bkhq->bchq"))
        return mb.concat(values=seen, axis=1)

    def attend(self, layer: int, qkv: Var, cap: float = 0.0) -> Var:
        assert self._memory is not None
        return self._memory.columns(layer, self.narrow(qkv), cap)

    def _turn(self, x: Any) -> Any:
        """Columns of rows."""
        if not isinstance(x, Var) or x in self._columns or x.rank != 3:
            return x
        if x not in self._turned:
            y = mb.transpose(x=mb.expand_dims(x=x, axes=[2]), perm=[0, 3, 2, 1])
            self._columns.add(y)
            self._turned |= {x: y, y: x}
        return self._turned[x]

    def _rows(self, x: Any) -> Any:
        if not isinstance(x, Var) or x not in self._columns:
            return x
        if x not in self._turned:
            y = mb.squeeze(x=mb.transpose(x=x, perm=[0, 3, 2, 1]), axes=[2])
            self._turned |= {x: y, y: x}
        return self._turned[x]


def _cut(x: Var, count: int, axis: int) -> Sequence[Var]:
    return [x] if count == 1 else mb.split(x=x, num_splits=count, axis=axis)
