"""3D convolutions and the moments of instance norms, taken out of OpenVINO's hands into :mod:`omlab.engines.winograd`.

OpenVINO runs operations written in Python in place of its own. Between them tensors are matrices, a row a voxel and a
column a channel, which is how OpenVINO's convolutions lay them down too: nothing is copied on the way in or out, and
operations on each number by itself have no other order of axes to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from openvino import Model, Op
from openvino import opset13 as ops
from openvino.passes import ConstantFolding, Manager
from openvino.utils import replace_node

if TYPE_CHECKING:  # numba takes a second to import, which only graphs with such convolutions are to wait for
    from omlab.engines.winograd import Convolution, Workers

#: Orders of axes that put the channels last, and second again.
_LAST, _SECOND = [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]
#: Channels are worked on so many at a time.
CHANNELS = 16
#: Operations on each number by itself.
_ELEMENTWISE = {"Add": ops.add, "Subtract": ops.subtract, "Multiply": ops.multiply, "PRelu": ops.prelu}


def fits(shape: Sequence[int], kernel: Sequence[int]) -> bool:
    """Can and should a convolution of stride 1 and padding 1 be taken? For few voxels there is nothing to win, for very
    many channels the transformed kernel (5.3 times as large) would go through memory again and again.

    Parameters
    ----------
    shape : (depth, height, width) of the input.
    kernel : shape of the weights, [outputs, inputs, 3, 3, 3].
    """
    outputs, inputs, *sides = kernel
    depth, height, width = shape
    return (
        sides == [3, 3, 3]
        and inputs % CHANNELS == outputs % CHANNELS == 0
        and depth % 2 == height % 4 == width % 4 == 0
        and depth * height * width >= 16**3
        and inputs * outputs <= 256**2
    )


class _Convolve(Op):  # type: ignore[misc]  # the library is untyped here
    """[voxels, inputs], then the norm's three [1, inputs] and the addend [voxels, outputs], if there are any, to
    [voxels, outputs]."""

    def __init__(
        self, inputs: Any, run: Convolution, shape: Sequence[int], workers: Workers, slope: float | None, added: bool
    ) -> None:
        super().__init__(self)
        self._given = (run, tuple(shape), workers, slope, added)
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        shape = self.get_input_partial_shape(0)
        shape[1] = len(self._given[0].bias)
        self.set_output_type(0, self.get_input_element_type(0), shape)

    def clone_with_new_inputs(self, inputs: Any) -> Op:
        return _Convolve(inputs, *self._given)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        run, shape, workers, slope, added = self._given
        found = [tensor.data for tensor in inputs]
        run(
            found[0].reshape(*shape, -1), outputs[0].data.reshape(*shape, -1), workers,
            norm=None if slope is None else np.concatenate(found[1:4]), slope=1.0 if slope is None else slope,
            addend=found[-1] if added else None,
        )  # fmt: skip
        return True


class _Moments(Op):  # type: ignore[misc]
    """[voxels, channels] to mean and variance, [1, channels] each."""

    def __init__(self, inputs: Any, workers: Workers) -> None:
        super().__init__(self)
        self._workers = workers
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        shape = self.get_input_partial_shape(0)
        shape[0] = 1
        for output in (0, 1):
            self.set_output_type(output, self.get_input_element_type(0), shape)

    def clone_with_new_inputs(self, inputs: Any) -> Op:
        return _Moments(inputs, self._workers)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        from omlab.engines.winograd import moments

        outputs[0].data[0], outputs[1].data[0] = moments(inputs[0].data, self._workers)
        return True


def take_over(model: Model, threads: int, *, every: bool = False) -> int:
    """Replace what can be, in place; returns the number of operations.

    Parameters
    ----------
    model : with static shapes where something is to be replaced.
    threads : that compute.
    every : also where a tensor has as many channels as voxels along a side. OpenVINO took some such tensors that were
        turned for ones that were not (those of deepbet's mask network with 32 x 32 x 32 voxels), and others not: what
        is made so is to be compared with what it was made of.
    """
    if not any(_fits(node, every) for node in model.get_ordered_ops()):
        return 0
    from omlab.engines.winograd import Workers

    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    workers = Workers(threads)
    changed = _replace_moments(model, workers, every)
    convolutions = [node for node in model.get_ordered_ops() if _fits(node, every)]
    for node in convolutions:
        _replace_convolution(node, workers)
    _flatten_between(model, every)
    return changed + len(convolutions)


def has_more(model: Model) -> bool:
    """Would more convolutions be taken with ``every``?"""
    return any(_fits(node, True) and not _fits(node, False) for node in model.get_ordered_ops())


def _name(output: Any) -> str:
    return str(output.get_node().get_type_name())


def _input(output: Any, place: int) -> Any:
    return output.get_node().input_value(place)


def _constant(output: Any) -> np.ndarray[Any, Any] | None:
    return output.get_node().data if _name(output) == "Constant" else None  # type: ignore[no-any-return]


def _shape(output: Any) -> list[int]:
    return list(output.get_shape()) if output.get_partial_shape().is_static else []


def _same(a: Any, b: Any) -> bool:
    return a.get_index() == b.get_index() and a.get_node().get_friendly_name() == b.get_node().get_friendly_name()


def _redirect(old: Any, new: Any) -> None:
    for target in old.get_target_inputs():
        target.replace_source_output(new)


def _ambiguous(shape: Sequence[int]) -> bool:
    """Has a tensor [1, channels, d, h, w] as many channels as voxels along a side?"""
    return shape[1] in shape[2:]


# Matrices -------------------------------------------------------------------------------------------------------------


def _order(output: Any) -> list[int]:
    order = _constant(_input(output, 1)) if _name(output) == "Transpose" else None
    return [] if order is None else [int(axis) for axis in order]


def _reshaped(output: Any, shape: Sequence[int]) -> Any:
    return ops.reshape(output, ops.constant(np.array(shape)), False).output(0)


def _flat(output: Any) -> Any:
    """[1, channels, d, h, w] as [d h w, channels]; of what was such a matrix before, that matrix."""
    _, channels, *sides = _shape(output)
    if prod(sides) == 1:
        return _reshaped(output, [1, channels])
    if _order(output) == _SECOND and len(_shape(_input(_input(output, 0), 0))) == 2:
        return _input(_input(output, 0), 0)
    turned = ops.transpose(output, ops.constant(np.array(_LAST))).output(0)
    return _reshaped(turned, [prod(sides), channels])


def _spread(matrix: Any, sides: Sequence[int]) -> Any:
    """[d h w, channels] as [1, channels, d, h, w]."""
    channels = _shape(matrix)[1]
    if prod(sides) == 1:
        return _reshaped(matrix, [1, channels, 1, 1, 1])
    turned = ops.transpose(_reshaped(matrix, [1, *sides, channels]), ops.constant(np.array(_SECOND)))
    return turned.output(0)


def _flatten_between(model: Any, every: bool) -> None:
    """Let operations on each number run on matrices too, so that nothing is turned between them and ours."""
    for node in list(model.get_ordered_ops()):
        shape = _shape(node.output(0)) if node.get_type_name() in _ELEMENTWISE else []
        if len(shape) != 5 or shape[0] != 1 or prod(shape[2:]) == 1 or _bias(node.output(0)):
            continue
        if not every and _ambiguous(shape):
            continue
        inputs = [_operand(node.input_value(place), shape) for place in range(len(node.inputs()))]
        if None in inputs:
            continue
        made = _ELEMENTWISE[node.get_type_name()](*inputs)
        new = _spread(made.output(0), shape[2:]).get_node()
        new.set_friendly_name(node.get_friendly_name())
        replace_node(node, new)
    for node in list(model.get_ordered_ops()):
        if node.get_type_name() == "Transpose" and _order(node.output(0)) == _LAST:
            before = node.input_value(0)
            if _order(before) == _SECOND:
                _redirect(node.output(0), _input(before, 0))


def _bias(output: Any) -> bool:
    """Is it a convolution and a constant, which OpenVINO takes for one?"""
    kinds = ("Convolution", "ConvolutionBackpropData")
    return _name(output) == "Add" and any(
        _name(_input(output, place)) in kinds and _constant(_input(output, 1 - place)) is not None for place in (0, 1)
    )


def _operand(output: Any, shape: Sequence[int]) -> Any:
    """An operand for a matrix of that shape; ``None`` if it has another form."""
    own, constant = _shape(output), _constant(output)
    if constant is not None and constant.size == 1:
        return ops.constant(constant.reshape(-1)).output(0)
    if constant is not None and _one_a_channel(own, shape[1]):
        return ops.constant(constant.reshape(1, -1)).output(0)
    fits = len(own) == 5 and own[:2] == list(shape[:2]) and (own == list(shape) or prod(own[2:]) == 1)
    return _flat(output) if fits else None


def _one_a_channel(shape: Sequence[int], channels: int) -> bool:
    """Are these as many numbers as channels, that broadcast along the channels of [n, channels, d, h, w]?"""
    return list(shape[-4:]) == [channels, 1, 1, 1] and set(shape[:-4]) <= {1}


# Moments --------------------------------------------------------------------------------------------------------------


def _averaged(output: Any) -> Any:
    """What ``output`` is the mean of over the last three axes, taken one after another; ``None`` if it is none."""
    for axis in (2, 3, 4):
        divisor = None
        if _name(output) == "Divide":
            divisor, output = _constant(_input(output, 1)), _input(output, 0)
        name = _name(output)
        if name not in ("ReduceMean", "ReduceSum") or not output.get_node().get_attributes()["keep_dims"]:
            return None
        axes, inner = _constant(_input(output, 1)), _input(output, 0)
        if axes is None or [int(a) % 5 for a in axes.reshape(-1)] != [axis] or len(_shape(inner)) != 5:
            return None
        if (divisor is None) != (name == "ReduceMean"):
            return None
        if divisor is not None and float(divisor.reshape(-1)[0]) != _shape(inner)[axis]:
            return None
        output = inner
    return output


def _replace_moments(model: Any, workers: Workers, every: bool) -> int:
    """Means and variances of the same values become one operation, which reads them once."""
    means: dict[tuple[str, int], Any] = {}
    variances: list[tuple[Any, Any]] = []
    for node in model.get_ordered_ops():
        for output in node.outputs():
            of = _averaged(output)
            if of is None or _shape(of)[0] != 1 or _shape(of)[1] % CHANNELS or (not every and _ambiguous(_shape(of))):
                continue
            if _name(of) == "Multiply" and _same(_input(of, 0), _input(of, 1)):
                variances.append((_input(of, 0), output))
            else:
                means[of.get_node().get_friendly_name(), of.get_index()] = output
    changed = 0
    for centred, variance in variances:
        if _name(centred) != "Subtract":
            continue
        source = _input(centred, 0)
        mean = means.get((source.get_node().get_friendly_name(), source.get_index()))
        if mean is not None and _same(mean, _input(centred, 1)):
            made = _Moments([_flat(source)], workers)
            # The variance first: it hangs on the mean.
            _redirect(variance, _spread(made.output(1), (1, 1, 1)))
            _redirect(mean, _spread(made.output(0), (1, 1, 1)))
            changed += 1
    return changed


# Convolutions ---------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Activated:
    """Values that are the leaky ReLU of (source - mean) scale + shift, a number a channel each."""

    source: Any
    vectors: tuple[Any, Any, Any]
    slope: float


def _fits(node: Any, every: bool) -> bool:
    if node.get_type_name() != "Convolution":
        return False
    found, shape, kernel = node.get_attributes(), _shape(node.input_value(0)), _constant(node.input_value(1))
    return (
        kernel is not None
        and len(shape) == 5
        and shape[0] == 1
        and set(found["strides"]) == set(found["dilations"]) == {1}
        and (found["auto_pad"].startswith("same") or set(found["pads_begin"]) == set(found["pads_end"]) == {1})
        and fits(shape[2:], kernel.shape)
        and (every or not (_ambiguous(shape) or _ambiguous([1, kernel.shape[0], *shape[2:]])))
    )


def _replace_convolution(node: Any, workers: Workers) -> None:
    from omlab.engines.winograd import Convolution

    kernel, sides = _constant(node.input_value(1)), _shape(node.input_value(0))[2:]
    assert kernel is not None
    last, bias, addend = _sums(node.output(0), len(kernel))
    activated = _activated(node.input_value(0))
    inputs = [_flat(node.input_value(0) if activated is None else activated.source)]
    if activated is not None:
        inputs += [_operand(vector, _shape(activated.source)) for vector in activated.vectors]
    if addend is not None:
        inputs.append(_flat(addend))
    slope = None if activated is None else activated.slope
    made = _Convolve(inputs, Convolution.of(kernel, bias), sides, workers, slope, addend is not None)
    new = _spread(made.output(0), sides).get_node()
    new.set_friendly_name(last.get_node().get_friendly_name())
    replace_node(last.get_node(), new)


def _sums(output: Any, channels: int) -> tuple[Any, np.ndarray[Any, Any], Any]:
    """What of the sums that follow a convolution can be taken in: the last of them, the constants added to each
    channel, and one addend of the same shape."""
    bias, addend = np.zeros(channels, np.float32), None
    while True:
        targets = list(output.get_target_inputs())
        if len(targets) != 1 or targets[0].get_node().get_type_name() != "Add":
            return output, bias, addend
        sum_ = targets[0].get_node()
        other = sum_.input_value(1 - targets[0].get_index())
        constant = _constant(other)
        if constant is not None and constant.size == channels and _one_a_channel(_shape(other), channels):
            bias = bias + constant.reshape(-1)
        elif constant is None and addend is None and _shape(other) == _shape(output):
            addend = other
        else:
            return output, bias, addend
        output = sum_.output(0)


def _alone(output: Any) -> bool:
    return len(output.get_target_inputs()) == 1


def _activated(output: Any) -> _Activated | None:
    if _name(output) not in ("PRelu", "LeakyRelu") or not _alone(output):
        return None
    slope = _constant(_input(output, 1)) if _name(output) == "PRelu" else None
    if slope is None or slope.size != 1 or not 0 <= float(slope.reshape(-1)[0]) <= 1:
        return None
    channels = _shape(output)[1]

    def parted(output: Any, name: str) -> tuple[Any, Any] | None:
        """The large and the small operand."""
        if _name(output) != name or not _alone(output):
            return None
        for large, small in ((0, 1), (1, 0))[: 1 if name == "Subtract" else 2]:
            if _one_a_channel(_shape(_input(output, small)), channels):
                return _input(output, large), _input(output, small)
        return None

    vectors: list[Any] = []
    place = _input(output, 0)
    for name in ("Add", "Multiply"):
        found = parted(place, name)
        if found is None:
            return None
        place = found[0]
        vectors.insert(0, found[1])
    # The difference is not looked at by the variance any more.
    found = parted(place, "Subtract")
    if found is None or _shape(found[0]) != _shape(output):
        return None
    return _Activated(found[0], (found[1], vectors[0], vectors[1]), float(slope.reshape(-1)[0]))
