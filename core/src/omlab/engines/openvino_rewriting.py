"""Exact algebra on a graph before OpenVINO compiles it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray


@attrs.frozen(eq=False)
class _Repeated:
    """Values every one of which is repeated along the spatial axes: what they are made of, and how often."""

    source: Any
    factors: tuple[int, ...]


def split_upsampled(model: Any) -> int:
    """Convolve coarse values before they are repeated, in place; returns the number of convolutions changed.

    The decoder of a U-Net repeats the voxels of its coarser stage (nearest-neighbour upsampling), joins them to the
    finer stage along the channels, and convolves. A convolution is a sum over channels, so it is one of the fine part
    plus one of the repeated part; and repeating voxels, then convolving with a kernel of k, is one transposed
    convolution of the coarse values with a kernel of k + factor - 1, a third of the work in 3D for a factor of 2 and
    k = 3. Neither the repeated nor the joined values are ever written. The sums are the same, in another order.

    Parameters
    ----------
    model : ``openvino.Model`` with static shapes where something is to be changed.
    """
    changed = 0
    for node in list(model.get_ordered_ops()):
        if node.get_type_name() != "Convolution" or not _plain(node):
            continue
        joined = node.input_value(0).get_node()
        if joined.get_type_name() != "Concat":
            continue
        if joined.get_attributes()["axis"] not in (1, 1 - _rank(joined.output(0))):
            continue
        parts = [_repeated(joined.input_value(place)) for place in range(len(joined.inputs()))]
        if any(parts):
            _replace(node, joined, parts)
            changed += 1
    return changed


def _rank(output: Any) -> int:
    return int(output.get_partial_shape().rank.get_length())


def _plain(node: Any) -> bool:
    """Is the convolution of stride and dilation 1, with a constant kernel of odd sides and as much padding as keeps the
    shape?"""
    found = node.get_attributes()
    kernel = node.input_value(1)
    if kernel.get_node().get_type_name() != "Constant":
        return False
    sides = list(kernel.get_shape())[2:]
    same = [side // 2 for side in sides]
    return (
        all(side % 2 for side in sides)
        and found["auto_pad"] in ("explicit", "same_upper", "same_lower", "notset")
        and (found["auto_pad"].startswith("same") or list(found["pads_begin"]) == list(found["pads_end"]) == same)
        and set(found["strides"]) == set(found["dilations"]) == {1}
    )


def _repeated(output: Any) -> _Repeated | None:
    """[n, c, i, 1, j, 1, ...] broadcast to [n, c, i, a, j, b, ...] and reshaped to [n, c, i a, j b, ...]."""
    if output.get_node().get_type_name() != "Reshape" or not output.get_partial_shape().is_static:
        return None
    broadcast = output.get_node().input_value(0)
    if broadcast.get_node().get_type_name() != "Broadcast" or not broadcast.get_partial_shape().is_static:
        return None
    narrow = source = broadcast.get_node().input_value(0)
    rank = _rank(output)
    # Axes are put in one after another; none of these steps moves a value.
    while source.get_node().get_type_name() in ("Reshape", "Unsqueeze") and _rank(source) > rank:
        source = source.get_node().input_value(0)
    if _rank(source) != rank or not source.get_partial_shape().is_static:
        return None
    shape, wide = list(source.get_shape()), list(broadcast.get_shape())
    factors = wide[3::2]
    sides = list(zip(shape[2:], factors, strict=False))
    fits = (
        list(narrow.get_shape()) == [*shape[:2], *(n for side, _ in sides for n in (side, 1))]
        and wide == [*shape[:2], *(n for pair in sides for n in pair)]
        and list(output.get_shape()) == [*shape[:2], *(side * factor for side, factor in sides)]
    )
    return _Repeated(source, tuple(factors)) if fits else None


def _replace(node: Any, joined: Any, parts: Sequence[_Repeated | None]) -> None:
    from openvino import opset13 as ops
    from openvino.utils import replace_node

    kernel = node.input_value(1).get_node().data
    sides = kernel.shape[2:]
    pads = [side // 2 for side in sides]
    ones = [1] * len(sides)
    widths = [joined.input_value(place).get_shape()[1] for place in range(len(parts))]
    stops = np.cumsum(widths)
    # Fine parts next to each other stay joined.
    fine: list[int] = [place for place, part in enumerate(parts) if part is None]
    terms = []
    for place, part in enumerate(parts):
        own = kernel[:, stops[place] - widths[place] : stops[place]]
        if part is not None:
            terms.append(
                ops.convolution_backprop_data(
                    part.source, ops.constant(transposed(own, part.factors)), list(part.factors),
                    pads_begin=pads, pads_end=pads, dilations=ones,
                )
            )  # fmt: skip
    if fine:
        values = [joined.input_value(place) for place in fine]
        own = np.concatenate([kernel[:, stops[place] - widths[place] : stops[place]] for place in fine], axis=1)
        source = values[0] if len(values) == 1 else ops.concat(values, 1)
        terms.append(ops.convolution(source, ops.constant(own), ones, pads, pads, ones))
    total = terms[0]
    for term in terms[1:]:
        total = ops.add(total, term)
    total.set_friendly_name(node.get_friendly_name())
    replace_node(node, total)


def transposed(kernel: NDArray[np.floating[Any]], factors: Sequence[int]) -> NDArray[np.floating[Any]]:
    """Kernel of the transposed convolution, with ``factors`` as strides and padding k // 2, that equals repeating every
    value ``factors`` times and then convolving with ``kernel`` under a padding of k // 2.

    A value at i is repeated to f i + r for r below f, and the convolution takes it into t where t + s - k // 2 is that
    place: so t - f i = r - s + k // 2 for every r, and tap s of the kernel.

    Parameters
    ----------
    kernel : [out, in, *k], k odd.

    Returns
    -------
    [in, out, *(k + f - 1)] of the same type.
    """
    sides = kernel.shape[2:]
    turned = np.flip(kernel, tuple(range(2, kernel.ndim))).swapaxes(0, 1)
    found = np.zeros((*turned.shape[:2], *(k + f - 1 for k, f in zip(sides, factors, strict=True))), np.float64)
    for shift in product(*(range(f) for f in factors)):
        place = tuple(slice(s, s + k) for s, k in zip(shift, sides, strict=True))
        found[(slice(None), slice(None), *place)] += turned
    return found.astype(kernel.dtype)
