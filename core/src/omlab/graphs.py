"""Graphs: the pure tensor functions of a model, declared without importing a framework.

A model is a short NumPy pipeline around one or more graphs. The declaration says what goes in and out; the
network behind it is built by :meth:`omlab.model.Model.network` only when an engine has to be made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum

import attrs

from omlab.vocabulary import Precision


class Judge(StrEnum):
    """How two outputs of a graph are compared by the parity gate."""

    #: Class scores per voxel, classes on axis 1: arg-max labels flipped in parts per million, and Dice.
    #: With a single channel: the sign (logits) is compared.
    LABELS = "labels"
    #: One channel of probabilities in 0..1: label is p > 0.5.
    PROBABILITY = "probability"
    #: Logits of masks that may overlap, one mask a map: the sign of every element.
    MASKS = "masks"
    #: Feature vectors on the last axis: cosine and relative error.
    EMBEDDING = "embedding"
    #: Class logits on the last axis: greatest gap of the soft-maxed values, and arg-max.
    LOGITS = "logits"
    #: Next-token logits of a language model on the last axis: how many times greater the engine's perplexity is than
    #: the reference's on text that the reference itself would write, exp of the mean Kullback-Leibler divergence.
    LANGUAGE = "language"
    #: Any other tensor: relative error (norm of the difference over the norm of the reference).
    VALUES = "values"


@attrs.frozen
class TensorSpec:
    """One named tensor.

    Attributes
    ----------
    name : as in the exported graph.
    dtype : NumPy name, ``"float32"``, ``"int64"``.
    shape : one entry an axis; an ``int`` is fixed, a ``str`` names a symbolic dimension.
    ranges : symbolic dimension -> (smallest, usual, greatest).
    axes : what the axes mean, ``"batch channel i j k"``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] = attrs.field(converter=tuple)
    axes: str = ""
    ranges: Mapping[str, tuple[int, int, int]] = attrs.field(factory=dict)

    @property
    def symbolic(self) -> tuple[str, ...]:
        """Names of the symbolic dimensions, in order, once each."""
        return tuple(dict.fromkeys(d for d in self.shape if isinstance(d, str)))

    def concrete(self, sizes: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Shape with every symbolic dimension replaced: by ``sizes``, else its usual value, else 1."""
        sizes = sizes or {}
        return tuple(d if isinstance(d, int) else sizes.get(d, self.ranges.get(d, (1, 1, 1))[1]) for d in self.shape)


@attrs.frozen
class Tolerance:
    """What the parity gate admits for one precision. ``None`` means the quantity is not judged."""

    flips_ppm: float | None = None
    dice: float | None = None
    cosine: float | None = None
    relative: float | None = None
    gap: float | None = None
    perplexity: float | None = None


#: By judge and precision. float32 differs from the reference only by the order of sums; bfloat16 keeps 8 bits
#: of mantissa, so single logits move by about one per cent.
TOLERANCES: dict[Judge, dict[Precision, Tolerance]] = {
    Judge.LABELS: {
        Precision.FLOAT32: Tolerance(flips_ppm=100.0, dice=0.9995),
        Precision.FLOAT16: Tolerance(flips_ppm=500.0, dice=0.999),
        Precision.BFLOAT16: Tolerance(flips_ppm=1000.0, dice=0.998),
        Precision.INT8: Tolerance(flips_ppm=5000.0, dice=0.99),
        Precision.INT4: Tolerance(flips_ppm=20000.0, dice=0.97),
    },
    Judge.EMBEDDING: {
        Precision.FLOAT32: Tolerance(cosine=0.99999, relative=1e-3),
        Precision.FLOAT16: Tolerance(cosine=0.9999, relative=1e-2),
        Precision.BFLOAT16: Tolerance(cosine=0.999, relative=5e-2),
        Precision.INT8: Tolerance(cosine=0.99, relative=0.15),
        Precision.INT4: Tolerance(cosine=0.97, relative=0.25),
    },
    Judge.LOGITS: {
        Precision.FLOAT32: Tolerance(gap=1e-3),
        Precision.FLOAT16: Tolerance(gap=5e-3),
        Precision.BFLOAT16: Tolerance(gap=2e-2),
        Precision.INT8: Tolerance(gap=5e-2),
        Precision.INT4: Tolerance(gap=0.1),
    },
    Judge.VALUES: {
        Precision.FLOAT32: Tolerance(relative=1e-3),
        Precision.FLOAT16: Tolerance(relative=1e-2),
        Precision.BFLOAT16: Tolerance(relative=5e-2),
        Precision.INT8: Tolerance(relative=0.1),
        Precision.INT4: Tolerance(relative=0.25),
    },
    Judge.LANGUAGE: {
        Precision.FLOAT32: Tolerance(perplexity=1.0001),
        Precision.FLOAT16: Tolerance(perplexity=1.001),
        Precision.BFLOAT16: Tolerance(perplexity=1.01),
        Precision.INT8: Tolerance(perplexity=1.02),
        Precision.INT4: Tolerance(perplexity=1.15),
    },
}
TOLERANCES[Judge.PROBABILITY] = TOLERANCES[Judge.MASKS] = TOLERANCES[Judge.LABELS]


@attrs.frozen
class Graph:
    """A named pure function of tensors.

    Attributes
    ----------
    name : unique within a model, ``"encoder"``.
    inputs, outputs : tensors in calling order.
    judge : how the parity gate compares each output; one entry serves all.
    tolerances : precision -> tolerance, where the defaults of :data:`TOLERANCES` do not fit.
    sources : modules whose text defines the network, ``("omlab_deepbet.network",)``; they enter the digest, so
        that a changed network is never served from an old engine.
    config : JSON-able constructor arguments of the network; part of the digest.
    engines : the only engines that can run it, by name; any without one. An engine that serves one family of networks
        (:attr:`omlab.engines.base.Backend.general`) runs only graphs that name it.
    """

    name: str
    inputs: tuple[TensorSpec, ...] = attrs.field(converter=tuple)
    outputs: tuple[TensorSpec, ...] = attrs.field(converter=tuple)
    judge: Judge | Mapping[str, Judge] = Judge.VALUES
    tolerances: Mapping[Precision, Tolerance] = attrs.field(factory=dict)
    sources: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    config: Mapping[str, object] = attrs.field(factory=dict)
    engines: tuple[str, ...] = attrs.field(default=(), converter=tuple)

    def judge_of(self, output: str) -> Judge:
        """How output ``output`` is compared."""
        if isinstance(self.judge, Judge):
            return self.judge
        return self.judge.get(output, Judge.VALUES)

    def tolerance(self, output: str, precision: Precision) -> Tolerance:
        """What is admitted for ``output`` at ``precision``."""
        return self.tolerances.get(precision) or TOLERANCES[self.judge_of(output)][precision]

    def digest(self) -> str:
        """SHA-256 over the declaration and the text of :attr:`sources`, in hexadecimal."""
        from importlib.util import find_spec

        described = json.dumps(
            {
                "name": self.name,
                "inputs": [[t.name, t.dtype, t.shape] for t in self.inputs],
                "outputs": [[t.name, t.dtype, t.shape] for t in self.outputs],
                "config": self.config,
            },
            sort_keys=True,
            default=str,
        )
        digest = hashlib.sha256(described.encode())
        for module in self.sources:
            spec = find_spec(module)
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError(f"graph '{self.name}' names the source module '{module}', not found")
            with open(spec.origin, "rb") as file:
                digest.update(file.read())
        return digest.hexdigest()
