"""Attention with memory in MIL: keys and values of all layers lie in two states, and come back as far as is filled."""

from __future__ import annotations

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from numpy.typing import NDArray

from exporters.formats.coreml.weights import Weights
from exporters.models.decoders import DecoderConfig

_ALL_BUT_2 = [True, True, False, True]


class Memory:
    """What a decoder's layers attend to. How far it is filled shows in the shapes: the mask is as long as what will be
    remembered, the rows are those that are new.

    states `[layers, 1, kv_heads, context, head_dim]`, rows `[1, S, hidden]`, mask `[1, 1, S, T]` in half precision.
    """

    def __init__(
        self, config: DecoderConfig, weights: Weights, states: tuple[Var, Var], inputs_embeds: Var, mask: Var
    ) -> None:
        self._config = config
        self._states = states
        groups = config.heads // config.kv_heads
        # Heads that share a key are laid behind each other as further queries: no key is copied.
        self._mask = mask if groups == 1 else mb.tile(x=mask, reps=[1, 1, groups, 1])
        new, total = (
            mb.slice_by_size(x=mb.shape(x=x), begin=[axis], size=[1]) for x, axis in _sizes(inputs_embeds, mask)
        )
        self._new = inputs_embeds.shape[1]
        self._past, self._total = mb.sub(x=total, y=new), total
        self._cos, self._sin = (self._rows(weights, name, table) for name, table in _tables(config))

    def rows(self, layer: int, qkv: Var, cap: float) -> Var:
        """qkv `[1, S, (heads + 2 kv_heads) * head_dim]` -> `[1, S, heads * head_dim]`."""
        c = self._config
        x = mb.reshape(x=qkv, shape=[1, -1, c.heads + 2 * c.kv_heads, c.head_dim])
        y = self._attended(layer, mb.transpose(x=x, perm=[0, 2, 1, 3]), cap)
        return mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 1, 3]), shape=[1, -1, c.heads * c.head_dim])

    def columns(self, layer: int, qkv: Var, cap: float) -> Var:
        """qkv `[1, (heads + 2 kv_heads) * head_dim, 1, S]` -> `[1, heads * head_dim, 1, S]`."""
        c = self._config
        x = mb.reshape(x=qkv, shape=[1, c.heads + 2 * c.kv_heads, c.head_dim, -1])
        y = self._attended(layer, mb.transpose(x=x, perm=[0, 1, 3, 2]), cap)
        return mb.reshape(x=mb.transpose(x=y, perm=[0, 1, 3, 2]), shape=[1, c.heads * c.head_dim, 1, -1])

    def _attended(self, layer: int, x: Var, cap: float) -> Var:
        """x `[1, heads + 2 kv_heads, S, D]` -> `[1, heads, S, D]`. cap: of the scores, 0: none."""
        c = self._config
        turned, kept = c.heads + c.kv_heads, c.kv_heads
        qk, v = mb.split(x=x, split_sizes=[turned, kept], axis=1)
        q, k = mb.split(x=self._rotated(qk), split_sizes=[c.heads, kept], axis=1)
        k, v = (self._remembered(state, layer, new) for state, new in zip(self._states, (k, v), strict=True))
        q = mb.reshape(x=q, shape=[1, kept, -1, c.head_dim])
        if cap:
            y = self._capped(q, k, v, cap)
        else:
            y = mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=self._mask)
        return mb.reshape(x=y, shape=[1, c.heads, -1, c.head_dim])

    def _capped(self, q: Var, k: Var, v: Var, cap: float) -> Var:
        """Attention written out: the operation has no soft cap."""
        q = mb.mul(x=q, y=np.float16(self._config.head_dim**-0.5 / cap))
        scores = mb.mul(x=mb.tanh(x=mb.matmul(x=q, y=k, transpose_y=True)), y=np.float16(cap))
        return mb.matmul(x=mb.softmax(x=mb.add(x=scores, y=self._mask), axis=-1), y=v)

    def _rows(self, weights: Weights, name: str, table: np.ndarray) -> Var:
        """The rows of a table `[1, 1, context, D/2]` that belong to the new positions."""
        var = weights.array(name, table[None, None], wide=False)
        begin = mb.concat(values=[_vector([0, 0]), self._past, _vector([0])], axis=0)
        if isinstance(self._new, int):  # so that the shapes of one position are known beforehand
            return mb.slice_by_size(x=var, begin=begin, size=[1, 1, self._new, table.shape[-1]])
        end = mb.concat(values=[_vector([1, 1]), self._total, _vector([table.shape[-1]])], axis=0)
        return mb.slice_by_index(x=var, begin=begin, end=end, begin_mask=_ALL_BUT_2, end_mask=_ALL_BUT_2)

    def _rotated(self, x: Var) -> Var:
        half, rest = self._config.rope.width // 2, self._config.head_dim - self._config.rope.width
        if rest:
            a, b, *kept = mb.split(x=x, split_sizes=[half, half, rest], axis=-1)
        else:
            a, b, *kept = mb.split(x=x, num_splits=2, axis=-1)
        first = mb.sub(x=mb.mul(x=a, y=self._cos), y=mb.mul(x=b, y=self._sin))
        second = mb.add(x=mb.mul(x=b, y=self._cos), y=mb.mul(x=a, y=self._sin))
        return mb.concat(values=[first, second, *kept], axis=-1)

    def _remembered(self, state: Var, layer: int, new: Var) -> Var:
        """Write `new` `[1, kv_heads, S, D]` behind what is there; all of it so far `[1, kv_heads, T, D]`."""
        c = self._config
        head, tail = _vector([layer, 0, 0]), _vector([layer + 1, 1, c.kv_heads])
        begin = mb.concat(values=[head, self._past, _vector([0])], axis=0)
        end = mb.concat(values=[tail, self._total, _vector([c.head_dim])], axis=0)
        updated = mb.slice_update(
            x=mb.read_state(input=state), update=mb.expand_dims(x=new, axes=[0]), begin=begin, end=end
        )
        kept = mb.coreml_update_state(state=state, value=updated)
        # In two steps, so that what is known of the shape stays known.
        own = mb.slice_by_index(
            x=kept,
            begin=[layer, 0, 0, 0, 0],
            end=[layer + 1, 0, 0, 0, 0],
            begin_mask=[False, True, True, True, True],
            end_mask=[False, True, True, True, True],
            squeeze_mask=[True, False, False, False, False],
        )
        filled = mb.concat(values=[_vector([0, 0]), self._total, _vector([0])], axis=0)
        return mb.slice_by_index(x=own, begin=[0, 0, 0, 0], end=filled, begin_mask=[True] * 4, end_mask=_ALL_BUT_2)


def _vector(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def _sizes(inputs_embeds: Var, mask: Var) -> tuple[tuple[Var, int], tuple[Var, int]]:
    """Where the number of new positions stands, and that of all."""
    return (inputs_embeds, 1), (mask, 3)


def _tables(config: DecoderConfig) -> tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]:
    cos, sin = config.rope.tables(config.context)  # [context, D/2]
    return ("rope.cos", cos.numpy()), ("rope.sin", sin.numpy())
