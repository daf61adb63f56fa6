"""3D convolutions of 3 x 3 x 3 by Winograd's minimal filtering, compiled for this processor by numba.

No engine for processors has it for three dimensions: they multiply 27 numbers an output and input channel, which on a
processor at its limit takes most of the time of a 3D U-Net. Minimal filtering (Winograd, 1980; Lavin and Gray,
arXiv:1509.09308) of two outputs along depth, four along height and four along width takes 4 x 6 x 6 products for
2 x 4 x 4 outputs: 4.5 in place of 27. What is added to it are sums of neighbouring numbers, before and after; the
products are matrices, channels by channels.

Arrays lie channels last, [depth, height, width, channels], as engines keep them; channels go in vectors of 16. Sums and
products are of single precision: the result is within about 5e-6 of the largest value.

This module imports numba: ask :func:`omlab.engines.hardware.winograd` before.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model
from numpy.typing import NDArray

from omlab.engines import hardware

Floats = NDArray[np.float32]

#: Channels in a vector.
LANES = 16
#: Tiles whose sums are held in registers at once.
_TILES = 8 if "avx512f" in hardware.cpu().flags else 4
#: Tiles that a kernel is loaded for where it stays in the processor's cache, and where it does not: measured.
_FEW, _MANY = 16, 32
#: Products of a tile: four along depth, six along height, six along width.
_PRODUCTS = 4 * 6 * 6
#: Voxels after which sums go on in double precision.
_CHUNK = 256
_COMPILED: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": True}
_INLINE: dict[str, Any] = {**_COMPILED, "inline": "always"}


# Vectors --------------------------------------------------------------------------------------------------------------
# numba has none, and its compiler finds none in code with as many arrays as this; so they are told to it.


class _VectorType(types.Type):  # type: ignore[misc]  # numba is untyped
    def __init__(self) -> None:
        super().__init__(name="omlab.Vector16")


_VECTOR = _VectorType()
_LLVM = ir.VectorType(ir.FloatType(), LANES)
_ANY = ir.Constant(_LLVM, ir.Undefined)
_FIRST = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
#: A product and a sum may become one instruction.
_FUSED = ("contract",)


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _LLVM)


def _address(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), _LLVM.as_pointer())


def _everywhere(builder: Any, number: Any) -> Any:
    return builder.shuffle_vector(builder.insert_element(_ANY, number, ir.IntType(32)(0)), _ANY, _FIRST)


@intrinsic
def _load(context: Any, array: Any, place: Any) -> Any:
    """Sixteen numbers of a flat array."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        found = builder.load(_address(context, builder, signature.args[0], *given))
        found.align = 4
        return found

    return _VECTOR(array, types.intp), generate


@intrinsic
def _store(context: Any, array: Any, place: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        made = builder.store(given[2], _address(context, builder, signature.args[0], *given[:2]))
        made.align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, _VECTOR), generate


@intrinsic
def _plus(context: Any, a: Any, b: Any) -> Any:
    return _VECTOR(_VECTOR, _VECTOR), lambda context, builder, signature, given: builder.fadd(*given, flags=_FUSED)


@intrinsic
def _minus(context: Any, a: Any, b: Any) -> Any:
    return _VECTOR(_VECTOR, _VECTOR), lambda context, builder, signature, given: builder.fsub(*given, flags=_FUSED)


@intrinsic
def _times(context: Any, a: Any, b: Any) -> Any:
    return _VECTOR(_VECTOR, _VECTOR), lambda context, builder, signature, given: builder.fmul(*given, flags=_FUSED)


@intrinsic
def _scaled(context: Any, number: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.fmul(_everywhere(builder, given[0]), given[1], flags=_FUSED)

    return _VECTOR(types.float32, _VECTOR), generate


@intrinsic
def _larger(context: Any, a: Any, b: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *given), *given)

    return _VECTOR(_VECTOR, _VECTOR), generate


@overload(operator.add)
def _add(a, b):  # type: ignore[no-untyped-def]  # numba compares signatures
    return (lambda a, b: _plus(a, b)) if isinstance(a, _VectorType) and isinstance(b, _VectorType) else None  # noqa: PLW0108


@overload(operator.sub)
def _subtract(a, b):  # type: ignore[no-untyped-def]  # numba compares signatures
    return (lambda a, b: _minus(a, b)) if isinstance(a, _VectorType) and isinstance(b, _VectorType) else None  # noqa: PLW0108


@overload(operator.mul)
def _multiply(a, b):  # type: ignore[no-untyped-def]  # numba compares signatures
    if not isinstance(b, _VectorType):
        return None
    return (lambda a, b: _times(a, b)) if isinstance(a, _VectorType) else (lambda a, b: _scaled(a, b))  # noqa: PLW0108


@intrinsic
def _products(
    context: Any, values: Any, value: Any, weights: Any, weight: Any, sums: Any, total: Any, inputs: Any, outputs: Any
) -> Any:
    """``_TILES`` rows of ``values`` [tiles, inputs] times ``weights`` [inputs, 16], into ``sums`` [tiles, outputs].

    The sums stay in registers over all inputs: one instruction a product. The places are where rows begin.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        def start(which: int) -> Any:
            data = context.make_array(signature.args[which])(context, builder, given[which]).data
            return builder.gep(data, [given[which + 1]])

        values, weights, sums = start(0), start(2), start(4)
        inputs, outputs = given[6:]
        index = inputs.type
        kind = ir.FunctionType(_LLVM, [_LLVM] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        before, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(index)
        k.add_incoming(index(0), before)
        held = [builder.phi(_LLVM) for _ in range(_TILES)]
        row = builder.load(
            builder.bitcast(builder.gep(weights, [builder.mul(k, index(LANES))]), _LLVM.as_pointer())
        )  # fmt: skip
        row.align = 4
        following = []
        for tile, sum_ in enumerate(held):
            sum_.add_incoming(ir.Constant(_LLVM, [0.0] * LANES), before)
            number = builder.load(builder.gep(values, [builder.add(builder.mul(inputs, index(tile)), k)]))
            following.append(builder.call(fused, [_everywhere(builder, number), row, sum_]))
            sum_.add_incoming(following[-1], loop)
        next_ = builder.add(k, index(1))
        k.add_incoming(next_, loop)
        builder.cbranch(builder.icmp_signed("<", next_, inputs), loop, after)
        builder.position_at_end(after)
        for tile, sum_ in enumerate(following):
            place = builder.gep(sums, [builder.mul(outputs, index(tile))])
            builder.store(sum_, builder.bitcast(place, _LLVM.as_pointer())).align = 4
        return context.get_dummy_value()

    n = types.intp
    return types.void(values, n, weights, n, sums, n, n, n), generate


# Filtering ------------------------------------------------------------------------------------------------------------
# Names of the literature: d inputs, B' d the transformed inputs, A' m the outputs. Along depth with points 0, 1, -1 and
# infinity, along height and width with 0, 1, -1, 2, -2 and infinity.

_TWO, _FOUR, _FIVE, _EIGHT = (np.float32(n) for n in (2, 4, 5, 8))
_ALONG_DEPTH = np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]])
_ALONG_SIDE = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)  # fmt: skip
#: Of a kernel's 27 numbers, as one matrix [144, 27].
_TRANSFORM = np.kron(_ALONG_DEPTH, np.kron(_ALONG_SIDE, _ALONG_SIDE))


@njit(**_INLINE)
def _to_six(d0, d1, d2, d3, d4, d5):  # type: ignore[no-untyped-def]
    even, odd = d4 - _FOUR * d2, d3 - _FOUR * d1
    near, far = d4 - d2, _TWO * (d3 - d1)
    return _FOUR * d0 - _FIVE * d2 + d4, even + odd, even - odd, near + far, near - far, _FOUR * d1 - _FIVE * d3 + d5


@njit(**_INLINE)
def _from_six(m0, m1, m2, m3, m4, m5):  # type: ignore[no-untyped-def]
    a, b, c, d = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + a + c, b + _TWO * d, a + _FOUR * c, b + _EIGHT * d + m5


@njit(**_INLINE)
def _store_six(array, place, step, six):  # type: ignore[no-untyped-def]
    _store(array, place, six[0])
    _store(array, place + step, six[1])
    _store(array, place + 2 * step, six[2])
    _store(array, place + 3 * step, six[3])
    _store(array, place + 4 * step, six[4])
    _store(array, place + 5 * step, six[5])


@njit(**_INLINE)
def _load_six(array, place, step):  # type: ignore[no-untyped-def]
    return (
        _load(array, place), _load(array, place + step), _load(array, place + 2 * step),
        _load(array, place + 3 * step), _load(array, place + 4 * step), _load(array, place + 5 * step),
    )  # fmt: skip


@njit(**_COMPILED)
def _across(p0, p1, p2, p3, start, row, rows):  # type: ignore[no-untyped-def]
    """Transform four planes along depth and six rows of them along height: [4, 6, row] into ``rows``."""
    for place in range(0, row, LANES):
        at = start + place
        a, b = _load_six(p0, at, row), _load_six(p2, at, row)
        _store_six(rows, place, row, _to_six(
            a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3], a[4] - b[4], a[5] - b[5]))  # fmt: skip
        a, b = _load_six(p1, at, row), _load_six(p2, at, row)
        _store_six(rows, 6 * row + place, row, _to_six(
            a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4], a[5] + b[5]))  # fmt: skip
        _store_six(rows, 12 * row + place, row, _to_six(
            b[0] - a[0], b[1] - a[1], b[2] - a[2], b[3] - a[3], b[4] - a[4], b[5] - a[5]))  # fmt: skip
        b = _load_six(p3, at, row)
        _store_six(rows, 18 * row + place, row, _to_six(
            a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3], a[4] - b[4], a[5] - b[5]))  # fmt: skip


@njit(**_COMPILED)
def _along(rows, row, values, first, tiles, step, channels):  # type: ignore[no-untyped-def]
    """Transform along width: rows [24, row] into ``values`` [24, 6, tiles, channels], from tile ``first``."""
    for line in range(24):
        for channel in range(0, channels, LANES):
            at, to = line * row + channel, 6 * line * step + first * channels + channel
            d0, d1 = _load(rows, at), _load(rows, at + channels)
            for _ in range(tiles):
                d2, d3 = _load(rows, at + 2 * channels), _load(rows, at + 3 * channels)
                d4, d5 = _load(rows, at + 4 * channels), _load(rows, at + 5 * channels)
                _store_six(values, to, step, _to_six(d0, d1, d2, d3, d4, d5))
                d0, d1 = d4, d5
                at += 4 * channels
                to += channels


@njit(**_COMPILED)
def _multiplied(values, weights, sums, tiles, held, inputs, outputs):  # type: ignore[no-untyped-def]
    blocks = outputs // LANES
    for product in range(_PRODUCTS):
        for block in range(blocks):
            for tile in range(0, tiles, _TILES):
                _products(
                    values, (product * held + tile) * inputs, weights, (product * blocks + block) * inputs * LANES,
                    sums, (product * held + tile) * outputs + block * LANES, inputs, outputs,
                )  # fmt: skip


@njit(**_COMPILED)
def _back(sums, first, tiles, held, small, bias, addend, added, out, start, shape, channels):  # type: ignore[no-untyped-def]
    """Outputs of tiles [144, tiles, channels]: 2 x 4 x 4 voxels each, at ``start`` of ``out`` [depth, ...]."""
    height, width = shape
    step, row, plane = held * channels, width * channels, height * width * channels
    for tile in range(tiles):
        for channel in range(0, channels, LANES):
            at = (first + tile) * channels + channel
            for line in range(36):
                m0, m1 = _load(sums, at), _load(sums, at + 36 * step)
                m2, m3 = _load(sums, at + 72 * step), _load(sums, at + 108 * step)
                _store(small, LANES * line, m0 + m1 + m2)
                _store(small, LANES * (36 + line), m1 - m2 - m3)
                at += step
            constant = _load(bias, channel)
            for depth in range(2):
                for line in range(6):
                    place = LANES * (36 * depth + 6 * line)
                    six = _load_six(small, place, LANES)
                    r0, r1, r2, r3 = _from_six(six[0], six[1], six[2], six[3], six[4], six[5])
                    _store(small, place, r0)
                    _store(small, place + LANES, r1)
                    _store(small, place + 2 * LANES, r2)
                    _store(small, place + 3 * LANES, r3)
                for line in range(4):
                    six = _load_six(small, LANES * (36 * depth + line), 6 * LANES)
                    r0, r1, r2, r3 = _from_six(six[0], six[1], six[2], six[3], six[4], six[5])
                    to = start + depth * plane + (4 * tile + line) * channels + channel
                    if added:
                        r0, r1 = r0 + _load(addend, to), r1 + _load(addend, to + row)
                        r2, r3 = r2 + _load(addend, to + 2 * row), r3 + _load(addend, to + 3 * row)
                    _store(out, to, r0 + constant)
                    _store(out, to + row, r1 + constant)
                    _store(out, to + 2 * row, r2 + constant)
                    _store(out, to + 3 * row, r3 + constant)


@njit(**_COMPILED)
def _bring(x, number, shape, channels, plane, norm, slope):  # type: ignore[no-untyped-def]
    """Copy a plane of ``x`` [depth, ...] into the middle of ``plane``, whose rim is zero; a plane outside is zero.
    ``norm`` [3, channels] of mean, scale and shift, or empty, and the leaky ReLU are applied on the way."""
    depth, height, width = shape
    row, wide = width * channels, (width + 2) * channels
    if number < 0 or number >= depth:
        plane[:] = 0
        return
    for line in range(height):
        at, to = (number * height + line) * row, (line + 1) * wide + channels
        if norm.size == 0:
            for place in range(0, row, LANES):
                _store(plane, to + place, _load(x, at + place))
            continue
        for channel in range(0, channels, LANES):
            mean, scale = _load(norm, channel), _load(norm, channels + channel)
            shift = _load(norm, 2 * channels + channel)
            for place in range(channel, row, channels):
                value = (_load(x, at + place) - mean) * scale + shift
                _store(plane, to + place, _larger(value, slope * value))


@njit(**_COMPILED)
def _slab(x, shape, sizes, weights, bias, norm, slope, addend, added, out, first, last, lines, held, work):  # type: ignore[no-untyped-def]
    """The planes from ``first`` to ``last`` of ``out``; ``lines`` rows of tiles at once, in the memory of ``work``."""
    _, height, width = shape
    inputs, outputs = sizes
    wide = (width + 2) * inputs
    ring, used = work[: 4 * (height + 2) * wide].reshape(4, -1), 4 * (height + 2) * wide
    rows, used = work[used : used + 24 * wide], used + 24 * wide
    small, used = work[used : used + 72 * LANES], used + 72 * LANES
    values, used = work[used : used + _PRODUCTS * held * inputs], used + _PRODUCTS * held * inputs
    sums = work[used : used + _PRODUCTS * held * outputs]
    ring[:] = 0
    across = width // 4
    # Depth follows in a ring of four planes: each is read, normalised and framed once.
    for number in (first - 1, first):
        _bring(x, number, shape, inputs, ring[(number + 4) & 3], norm, slope)
    for number in range(first, last, 2):
        for new in (number + 1, number + 2):
            _bring(x, new, shape, inputs, ring[new & 3], norm, slope)
        p0, p1, p2, p3 = ring[(number + 3) & 3], ring[number & 3], ring[(number + 1) & 3], ring[(number + 2) & 3]
        for line in range(0, height, 4 * lines):
            here = min(lines, (height - line) // 4)
            for r in range(here):
                _across(p0, p1, p2, p3, (line + 4 * r) * wide, wide, rows)
                _along(rows, wide, values, r * across, across, held * inputs, inputs)
            _multiplied(values, weights, sums, here * across, held, inputs, outputs)
            for r in range(here):
                start = ((number * height + line + 4 * r) * width) * outputs
                _back(
                    sums, r * across, across, held, small, bias, addend, added, out, start, (height, width), outputs
                )  # fmt: skip


@njit(**_COMPILED)
def _moments(x, channels, first, last, pivot, small, sums):  # type: ignore[no-untyped-def]
    """Add up voxels less ``pivot``, and their squares, into ``sums`` [2, channels] of double precision."""
    for begin in range(first, last, _CHUNK):
        end = min(last, begin + _CHUNK)
        for channel in range(0, channels, LANES):
            middle = _load(pivot, channel)
            total = middle - middle
            squares = total
            for voxel in range(begin, end):
                value = _load(x, voxel * channels + channel) - middle
                total = total + value
                squares = squares + value * value
            _store(small, 0, total)
            _store(small, LANES, squares)
            for lane in range(LANES):
                sums[0, channel + lane] += small[lane]
                sums[1, channel + lane] += small[LANES + lane]


# For Python -----------------------------------------------------------------------------------------------------------

_NONE = np.empty(0, np.float32)
_own = threading.local()


def _work(size: int) -> Floats:
    """Memory of this thread, kept for the next call."""
    held: Floats | None = getattr(_own, "work", None)
    if held is None or held.size < size:
        held = _own.work = np.empty(size, np.float32)
    return held


class Workers:
    """Threads that share a call; compiled code runs without Python's lock."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self._pool = ThreadPoolExecutor(self.count - 1, "omlab-winograd") if self.count > 1 else None

    def each(self, run: Callable[[int, int], Any], size: int, unit: int) -> list[Any]:
        """``run(first, last)`` for parts of ``range(size)`` in multiples of ``unit``; the last part runs here."""
        part = -(-size // unit // self.count) * unit or unit
        parts = [(first, min(size, first + part)) for first in range(0, size, part)]
        if self._pool is None:
            return [run(*given) for given in parts]
        others = [self._pool.submit(run, *given) for given in parts[:-1]]
        own = run(*parts[-1])
        return [*(other.result() for other in others), own]


@attrs.frozen(eq=False)
class Convolution:
    """A convolution of 3 x 3 x 3, stride 1 and padding 1; made by :meth:`of`.

    Attributes
    ----------
    weights : [144, outputs / 16, inputs, 16] the transformed kernel.
    bias : [outputs].
    """

    weights: Floats
    bias: Floats

    @staticmethod
    def of(kernel: NDArray[np.floating[Any]], bias: NDArray[np.floating[Any]] | None = None) -> Convolution:
        """Transform a kernel [outputs, inputs, 3, 3, 3]; ``bias`` [outputs].

        Raises
        ------
        ValueError
            Another shape, or channels that fill no whole vectors.
        """
        outputs, inputs = kernel.shape[:2]
        if kernel.shape[2:] != (3, 3, 3) or outputs % LANES or inputs % LANES:
            raise ValueError(f"no kernel of 3 x 3 x 3 with whole vectors of {LANES} channels: {kernel.shape}")
        taps = kernel.reshape(outputs // LANES, LANES, inputs, 27).transpose(3, 0, 2, 1).reshape(27, -1)
        found = (_TRANSFORM @ taps).reshape(_PRODUCTS, outputs // LANES, inputs, LANES)
        constant = np.zeros(outputs, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32)
        return Convolution(found.astype(np.float32), constant)

    def __call__(
        self,
        x: Floats,
        out: Floats,
        workers: Workers,
        *,
        norm: Floats | None = None,
        slope: float = 1.0,
        addend: Floats | None = None,
    ) -> None:
        """Convolve ``x`` [depth, height, width, inputs] into ``out`` [depth, height, width, outputs], both contiguous;
        depth even, height and width multiples of 4.

        Parameters
        ----------
        norm : [3, inputs] of mean, scale and shift: not ``x`` is convolved but the leaky ReLU of
            (x - mean) scale + shift, which is never written.
        slope : of the leaky ReLU below zero, from 0 to 1.
        addend : of the shape of ``out``, added to it.
        """
        depth, height, width, inputs = x.shape
        outputs = out.shape[3]
        across = width // 4
        # With many channels a kernel is worth loading only for many tiles.
        lines = max(1, min(height // 4, (_FEW if inputs * outputs < 128**2 else _MANY) // across))
        # One more than are used: rows a power of two apart would meet in the same places of the cache.
        held = -(-lines * across // _TILES) * _TILES + 1
        size = 4 * (height + 2) * (width + 2) * inputs + 24 * (width + 2) * inputs + 72 * LANES
        size += _PRODUCTS * held * (inputs + outputs)
        flat, flat_out = x.reshape(-1), out.reshape(-1)
        scaling = _NONE if norm is None else np.ascontiguousarray(norm, np.float32).reshape(-1)
        other = _NONE if addend is None else addend.reshape(-1)

        def run(first: int, last: int) -> None:
            _slab(
                flat, (depth, height, width), (inputs, outputs), self.weights.reshape(-1), self.bias, scaling,
                np.float32(slope), other, addend is not None, flat_out, first, last, lines, held, _work(size),
            )  # fmt: skip

        workers.each(run, depth, 2)


def moments(x: Floats, workers: Workers) -> tuple[Floats, Floats]:
    """Mean and variance of each channel, [channels] each, of ``x`` [..., channels], contiguous, channels a multiple of
    16. In one pass: values less the first voxel's are added up, 256 in single precision, the rest in double."""
    channels = x.shape[-1]
    flat = x.reshape(-1)
    count = flat.size // channels
    pivot = np.array(flat[:channels])

    def run(first: int, last: int) -> NDArray[np.float64]:
        sums = np.zeros((2, channels))
        _moments(flat, channels, first, last, pivot, _work(2 * LANES), sums)
        return sums

    total, squares = sum(workers.each(run, count, _CHUNK)) / count
    return (pivot + total).astype(np.float32), (squares - total * total).clip(0).astype(np.float32)
