"""The name-seeded rule, golden files, and what the tool says of files that are none."""

from __future__ import annotations

import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from omlab_sdk import golden as goldens  # noqa: E402
from omlab_sdk.golden import Fingerprint, Golden, GoldenError, main, seed_module, u, weight  # noqa: E402


def test_u_is_what_the_rule_gives_by_hand() -> None:
    import hashlib

    key = int.from_bytes(hashlib.sha256(b"blocks.0.attn.qkv.weight").digest()[:8], "little")
    raw = np.random.Philox(key=key).random_raw(6)
    expected = [(int(r) >> 40) / 2**23 - 1 for r in raw]
    np.testing.assert_array_equal(u("blocks.0.attn.qkv.weight", (2, 3)).ravel(), np.float32(expected))


@pytest.mark.parametrize(
    ("name", "shape", "centre", "reach"),
    [
        ("a.weight", (4, 3, 5), 0.0, np.sqrt(3 / 15)),
        ("a.weight", (4000,), 1.0, 0.1),
        ("a.gamma", (4000,), 1.0, 0.1),
        ("a.bias", (4000,), 0.0, 0.1),
        ("a.running_mean", (4000,), 0.0, 0.1),
        ("a.running_var", (4000,), 1.5, 0.5),
    ],
)
def test_tensors_by_the_end_of_their_names(name: str, shape: tuple[int, ...], centre: float, reach: float) -> None:
    values = weight(name, shape)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, centre + reach * u(name, shape), rtol=1e-6, atol=1e-7)
    assert np.abs(values - centre).max() <= reach * 1.0001


def test_integers_and_kept_entries_stay() -> None:
    module = torch.nn.BatchNorm1d(3)
    module.bias.data.fill_(7.0)
    seed_module(module, kept=["bias"])
    assert module.bias.tolist() == [7.0] * 3
    assert int(module.num_batches_tracked) == 0
    np.testing.assert_array_equal(module.running_var.numpy(), weight("running_var", (3,)))


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin module that answers for the model 'doubler', and a golden file of it."""
    code = """
        from types import SimpleNamespace
        GOLDENS = ("doubler",)
        def compute(golden):
            image = golden.input("image")
            return {"twice": image * golden.kwargs["by"], "zeros": image * 0}
    """
    (tmp_path / "doubler_goldens.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    module = importlib.import_module("doubler_goldens")
    monkeypatch.setattr(goldens, "answering", lambda model: module)
    return tmp_path


META = {
    "model": "doubler", "entry": "Doubler(by=2)", "kwargs": {"by": 2},
    "inputs": {"image": {"shape": [50, 40], "scale": 3.0, "offset": 1.0}},
}  # fmt: skip


def _right() -> dict[str, np.ndarray]:
    image = 1 + 3 * u("input:image", (50, 40))
    return {"twice": image * 2, "zeros": image * 0}


def test_round_trip_and_verification(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = answered / "doubler.npz"
    Golden.make(META, _right()).write(path)
    assert main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("doubler.npz  twice  ")
    assert lines[0].endswith("ok")
    assert lines[-1] == "2 ok, 0 failed"


@pytest.mark.parametrize("wrong", ["value", "shape", "nan", "missing"])
def test_what_differs_fails(answered: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = _right()
    if wrong == "value":
        outputs["twice"] = outputs["twice"] * 1.001
    elif wrong == "shape":
        outputs["twice"] = outputs["twice"].T
    elif wrong == "nan":
        outputs["zeros"] = outputs["zeros"] + 1e-3  # the reference is not zero, ours is
    else:
        outputs["more"] = np.ones(3)
    path = answered / "doubler.npz"
    Golden.make(META, outputs).write(path)
    assert main([str(path)]) == 1
    assert "1 failed" in capsys.readouterr().out


def test_not_finite_is_never_right() -> None:
    mark = Fingerprint.of(np.ones(10))
    assert mark.error(np.ones(10)) == 0
    for bad in (np.nan, np.inf):
        values = np.ones(10)
        values[3] = bad
        assert mark.error(values) == np.inf


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_files_that_are_none(answered: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = answered / "broken.npz"
    path.write_bytes(content)
    good = answered / "good.npz"
    Golden.make(META, _right()).write(good)
    assert main([str(path), str(good), str(answered / "none.npz")]) == 1
    assert "2 ok, 2 failed" in capsys.readouterr().out


def test_an_archive_without_meta(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", values=np.ones(3))
    with pytest.raises(GoldenError, match="is no golden file"):
        Golden.read(tmp_path / "plain.npz")


def test_nobody_answers() -> None:
    with pytest.raises(GoldenError, match="no installed plugin answers for golden files of 'nosuch'"):
        goldens.answering("nosuch")


@pytest.mark.parametrize(("others", "code"), [(2, 0), (3, 1)])
def test_single_labels_may_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One in a thousand labels of a map, however far apart the numbers are; numbers that are no labels may not."""
    found = np.arange(2000) % 105
    upstream = found.copy()
    upstream[:others] = 104
    answers = SimpleNamespace(compute=lambda golden: {"map": found, "scores": found.astype(np.float32)})
    monkeypatch.setattr(goldens, "answering", lambda model: answers)
    path = tmp_path / "labels.npz"
    Golden.make({"model": "labeller"}, {"map": upstream}).write(path)
    assert main([str(path)]) == code
    assert f"{others} of 2000 labels differ" in capsys.readouterr().out
    Golden.make({"model": "labeller"}, {"scores": upstream}).write(path)
    assert main([str(path)]) == 1
