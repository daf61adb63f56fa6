"""Golden files: what upstream's own code gave for weights and inputs that anyone can regenerate.

Every tensor of a state dict is drawn from its own name and shape (the *name-seeded rule* below), so two networks that
agree on names, shapes and arithmetic agree on outputs, and nobody needs to share weights.

The rule. For a tensor of a name with n elements in C order: the key is the first 8 bytes of the SHA-256 of the name, as
a little-endian integer; n raw 64-bit values come from ``numpy.random.Philox(key=key).random_raw(n)``; ``u`` is
``(raw >> 40)`` in float32 times 2^-23 minus 1, so -1 <= u < 1. A tensor of two or more dimensions is
``sqrt(3 / fan_in) * u`` (fan_in: product of all dimensions but the first); else by the end of its name:
``running_var`` 1.5 + 0.5 u, ``running_mean`` 0.1 u, ``weight`` or ``gamma`` 1 + 0.1 u, any other 0.1 u. An input X is
``offset + scale * u`` of the name ``input:X``.

A plugin says how a golden file maps onto its network in a module ``<package>.goldens`` with::

    GOLDENS = ("mymodel",)                  # values of meta["model"] that it answers

    def compute(golden: Golden) -> Mapping[str, numpy.ndarray]:
        network = build(golden.kwargs)
        seed_module(network, golden.kept)
        return {"logits": network(golden.input("image"))}

``compute`` reads sizes from ``golden.kwargs`` and inputs from ``golden.input``, so it answers for configurations that
no file of the repository has. Outputs that the golden has and ``compute`` does not give are failures. Whole numbers are
taken for labels, of which one in a thousand may differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import OmlabError
from omlab.files import whole

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
#: Share of the labels of a map (of whole numbers) that may differ; the files of STU-Net ask for that.
FLIPS = 1e-3
#: Values kept of each output by :meth:`Golden.write`.
KEPT_VALUES = 4096


class GoldenError(OmlabError):
    """A golden file cannot be read, or no plugin answers for it."""

    code = "golden"


def u(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Uniform numbers in [-1, 1) that the name alone decides, float32."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = np.random.Philox(key=key).random_raw(prod(shape))
    values = (raw >> np.uint64(40)).astype(np.float32)
    values *= np.float32(2.0**-23)
    values -= np.float32(1)
    return values.reshape(shape)


def weight(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Tensor of a state dict by the name-seeded rule, float32."""
    values = u(name, shape)
    if len(shape) >= 2:
        return values * np.float32(np.sqrt(3.0 / max(1, prod(shape[1:]))))
    if name.endswith("running_var"):
        return np.float32(1.5) + np.float32(0.5) * values
    if name.endswith("running_mean"):
        return np.float32(0.1) * values
    if name.endswith(("weight", "gamma")):
        return np.float32(1) + np.float32(0.1) * values
    return np.float32(0.1) * values


def seed_module(module: torch.nn.Module, kept: Iterable[str] = ()) -> torch.nn.Module:
    """Give every floating entry of a module's state dict its name-seeded value, in place; those in ``kept`` and all
    integers stay."""
    import torch

    kept = set(kept)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name not in kept and tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(np.ascontiguousarray(weight(name, tuple(tensor.shape)))))
    return module


@attrs.frozen(eq=False)
class Fingerprint:
    """An output, sampled.

    Attributes
    ----------
    shape : of the whole array.
    stride : every so many elements of the flattened array are kept.
    values : the kept elements, float32.
    moments : mean, standard deviation and greatest magnitude of the whole array.
    """

    shape: tuple[int, ...]
    stride: int
    values: NDArray[np.float32]
    moments: tuple[float, ...] = ()

    @classmethod
    def of(cls, array: NDArray[Any]) -> Fingerprint:
        """Sampled so that at most :data:`KEPT_VALUES` elements are kept."""
        flat = np.asarray(array, dtype=np.float32).ravel()
        stride = max(1, -(-flat.size // KEPT_VALUES))
        whole_array = flat.astype(np.float64)
        moments = (whole_array.mean(), whole_array.std(), np.abs(whole_array).max()) if flat.size else (0.0, 0.0, 0.0)
        return cls(tuple(np.shape(array)), stride, flat[::stride].copy(), tuple(float(m) for m in moments))

    def error(self, array: NDArray[Any]) -> float:
        """Norm of the difference over the norm of the kept values; infinite for another shape or a value that is not
        finite."""
        found = np.asarray(array)
        if tuple(found.shape) != self.shape:
            return float("inf")
        if not np.isfinite(found).all():
            return float("inf")
        sampled = found.astype(np.float64).ravel()[:: self.stride]
        reference = self.values.astype(np.float64)
        norm = float(np.linalg.norm(reference))
        gap = float(np.linalg.norm(sampled - reference))
        return gap / norm if norm else gap

    def differing(self, array: NDArray[Any]) -> int:
        """How many of the kept values are others; all for another shape."""
        found = np.asarray(array)
        if tuple(found.shape) != self.shape:
            return self.values.size
        return int(np.count_nonzero(found.ravel()[:: self.stride] != self.values))


def _fingerprint(arrays: Mapping[str, NDArray[Any]], name: str) -> Fingerprint:
    shape = tuple(int(n) for n in arrays[f"output/{name}/shape"])
    stride, values = int(arrays[f"output/{name}/stride"]), arrays[f"output/{name}/values"]
    if stride < 1 or values.shape != (-(-prod(shape) // stride),):
        raise ValueError(f"output '{name}' ({values.size} values for the shape {shape} at the stride {stride})")
    return Fingerprint(shape, stride, values, tuple(float(m) for m in arrays.get(f"output/{name}/moments", ())))


@attrs.frozen(eq=False)
class Golden:
    """A golden file in memory.

    Attributes
    ----------
    meta : ``model``, ``upstream``, ``entry``, ``kwargs``, ``inputs``, ``outputs``, ``notes``, ``kept`` and more.
    literal : inputs that are stored as they are.
    outputs : name -> fingerprint.
    """

    meta: Mapping[str, Any]
    literal: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, Fingerprint]
    path: Path | None = None

    @property
    def model(self) -> str:
        """Which model's plugin answers."""
        return str(self.meta.get("model", ""))

    @property
    def kwargs(self) -> dict[str, Any]:
        """Constructor arguments of upstream's class, or arguments of a step."""
        return dict(self.meta.get("kwargs", {}))

    @property
    def kept(self) -> list[str]:
        """Entries of the state dict that keep what the constructor gave them."""
        return list(self.meta.get("kept", []))

    def input(self, name: str) -> NDArray[Any]:
        """An input: literal, or drawn by the rule. Raises :class:`GoldenError` if the file names none."""
        if name in self.literal:
            return self.literal[name]
        inputs = self.meta.get("inputs", {})
        if name not in inputs:
            has = ", ".join([*self.literal, *inputs]) or "none"
            raise GoldenError(f"{self.path}: has no input '{name}', it has {has}")
        spec = inputs[name]
        values = u(f"input:{name}", tuple(spec["shape"]))
        return np.float32(spec.get("offset", 0.0)) + np.float32(spec.get("scale", 1.0)) * values

    @classmethod
    def read(cls, path: str | Path) -> Golden:
        """Raises :class:`GoldenError` where the file is missing, damaged or no golden file."""
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except FileNotFoundError:
            raise GoldenError(f"{path}: does not exist") from None
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise GoldenError(f"{path}: cannot be read as .npz: {error}") from None
        try:
            meta = json.loads(arrays["meta"].tobytes())
            names = sorted(
                {name.removeprefix("output/").rpartition("/")[0] for name in arrays if name.startswith("output/")}
            )
            outputs = {name: _fingerprint(arrays, name) for name in names}
        except (KeyError, ValueError, TypeError) as error:
            raise GoldenError(f"{path}: is no golden file, {error} is missing or malformed") from None
        if not isinstance(meta, dict) or not meta.get("model"):
            raise GoldenError(f"{path}: is no golden file, its meta names no model")
        if not outputs:
            raise GoldenError(f"{path}: holds no output to compare with")
        literal = {name.removeprefix("input/"): array for name, array in arrays.items() if name.startswith("input/")}
        return cls(meta, literal, outputs, path)

    @classmethod
    def make(
        cls,
        meta: Mapping[str, Any],
        outputs: Mapping[str, NDArray[Any]],
        literal: Mapping[str, NDArray[Any]] | None = None,
    ) -> Golden:
        """From whole outputs of upstream's code."""
        return cls(meta, literal or {}, {name: Fingerprint.of(array) for name, array in outputs.items()})

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        arrays: dict[str, Any] = {"meta": np.frombuffer(json.dumps(self.meta).encode(), np.uint8)}
        arrays |= {f"input/{name}": array for name, array in self.literal.items()}
        for name, mark in self.outputs.items():
            arrays |= {
                f"output/{name}/shape": np.array(mark.shape, np.int64),
                f"output/{name}/stride": np.array(mark.stride, np.int64),
                f"output/{name}/values": mark.values,
                f"output/{name}/moments": np.array(mark.moments, np.float64),
            }
        with whole(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)


@attrs.frozen
class Row:
    """One output of one file against the plugin's."""

    file: Path
    output: str
    error: float
    ok: bool
    note: str = ""


def answering(model: str) -> Any:
    """The ``goldens`` module of the plugin that answers for ``model``: the plugin of that name first.

    Raises
    ------
    GoldenError
        None does.
    """
    from omlab.plugins import Registry

    registry = Registry.discover()
    failed = [f"{broken.distribution}: {broken.reason}" for broken in registry.broken]
    for plugin in sorted(registry.plugins.values(), key=lambda p: p.name != model):
        if not (plugin.path.parent / "goldens.py").is_file():
            continue
        try:
            module = import_module(f"{plugin.package}.goldens")
        except Exception as error:  # a plugin that fails must not keep another from answering
            if plugin.name == model:
                raise GoldenError(
                    f"the golden files of '{model}' cannot be computed: {plugin.package}.goldens cannot be imported: "
                    f"{type(error).__name__}: {error}",
                    remedy=f"Install what it needs: pip install '{plugin.distribution}[convert]'",
                ) from error
            failed.append(f"{plugin.package}.goldens: {type(error).__name__}: {error}")
            continue
        if model in getattr(module, "GOLDENS", ()):
            return module
    also = f" (not asked, as they cannot be imported: {'; '.join(failed)})" if failed else ""
    raise GoldenError(
        f"no installed plugin answers for golden files of '{model}'{also}",
        remedy=f"Install it: pip install omlab-{model}",
    )


def verify(golden: Golden, tolerance: float = TOLERANCE) -> list[Row]:
    """Compute every output of ``golden`` with the plugin that answers, and compare."""
    path = golden.path or Path("golden")
    answers = answering(golden.model)
    try:
        computed = answers.compute(golden)
    except KeyError as error:
        raise GoldenError(f"{path}: {answers.__name__} asks for {error}, which the file does not have") from error
    rows = []
    for name, mark in golden.outputs.items():
        if name not in computed:
            rows.append(Row(path, name, float("inf"), False, "the plugin does not give it"))
            continue
        array = np.asarray(computed[name])
        error = mark.error(array)
        note = "" if array.shape == mark.shape else f"shape {array.shape}, expected {mark.shape}"
        ok = bool(np.isfinite(error)) and error <= tolerance
        if not ok and not note and array.dtype.kind in "bui":
            # Where two scores are all but equal, rounding decides between labels, and the norm counts how far apart the
            # numbers of the labels are.
            others, kept = mark.differing(array), mark.values.size
            ok, note = others <= FLIPS * kept, f"{others} of {kept} labels differ"
        rows.append(Row(path, name, error, ok, note))
    return rows


def verify_file(path: str | Path, tolerance: float = TOLERANCE) -> list[Row]:
    """Like :func:`verify`, from a path. Raises :class:`GoldenError`."""
    return verify(Golden.read(path), tolerance)


def answered(
    golden: Golden, answers: Mapping[str, Callable[[Golden], Mapping[str, NDArray[Any]]]], owner: str
) -> Mapping[str, NDArray[Any]]:
    """What the first of ``answers`` gives whose word is in the file's ``entry``, computed without gradients.

    Raises
    ------
    GoldenError
        ``owner`` has no answer to the file.
    """
    import torch

    entry = str(golden.meta.get("entry", ""))
    with torch.no_grad():
        for word, answer in answers.items():
            if word in entry:
                return answer(golden)
    raise GoldenError(f"{golden.path}: is of '{entry}', {owner} has {', '.join(answers)}")


def rows_of(paths: Iterable[Path], tolerance: float) -> Iterator[Row]:
    """Rows of all files; a file that cannot be verified is one failed row and does not stop the others."""
    for path in paths:
        try:
            yield from verify_file(path, tolerance)
        except OmlabError as error:
            yield Row(path, "-", float("inf"), False, str(error))
        except Exception as error:  # a plugin's defect is that file's failure
            yield Row(path, "-", float("inf"), False, f"{type(error).__name__}: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """``tools/golden FILE...``: a line an output; 1 if one fails, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="tools/golden", description="Verify golden files of any installed plugin.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="greatest relative error (1e-4)")
    parsed = parser.parse_args(arguments)
    failed = count = 0
    for row in rows_of(parsed.files, parsed.tolerance):
        count += 1
        failed += not row.ok
        note = f"  {row.note}" if row.note else ""
        print(f"{row.file.name}  {row.output}  {row.error:.3g}  {'ok' if row.ok else 'FAILED'}{note}", flush=True)  # noqa: T201
    print(f"{count - failed} ok, {failed} failed")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
