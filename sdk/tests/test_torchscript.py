"""Tensors out of TorchScript archives, with none of their code run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from omlab.errors import WeightsError  # noqa: E402
from omlab_sdk.torchscript import read_torchscript  # noqa: E402


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Sequential(torch.nn.Linear(4, 2).half())
    )
    torch.manual_seed(0)
    network[1].running_mean.normal_()
    network[0].weight.data = network[0].weight.data.permute(0, 1, 3, 2)  # not contiguous
    path = tmp_path / "network.pt"
    torch.jit.script(network.eval()).save(path)
    return path


def rewritten(source: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """A copy of an archive with members replaced, or left out where the new content is ``None``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = changes.get(name.partition("/")[2], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def test_equal_to_what_torch_loads(archive: Path) -> None:
    found, expected = read_torchscript(archive), torch.jit.load(archive).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].is_contiguous()
        assert torch.equal(found[name], tensor)


def test_a_traced_module_too(tmp_path: Path) -> None:
    network = torch.nn.Linear(5, 3).eval()
    torch.jit.trace(network, torch.zeros(1, 5)).save(tmp_path / "traced.pt")
    found = read_torchscript(tmp_path / "traced.pt")
    assert torch.equal(found["weight"], network.weight)
    assert torch.equal(found["bias"], network.bias)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.pt does not exist"):
        read_torchscript(tmp_path / "nothing.pt")


@pytest.mark.parametrize("content", [b"", b"hello", os.urandom(4096)])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.pt is no whole TorchScript archive"):
        read_torchscript(path)


def test_truncated(archive: Path) -> None:
    for part in (0.3, 0.9, 0.999):
        cut = archive.with_name("cut.pt")
        content = archive.read_bytes()
        cut.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(WeightsError, match=r"cut\.pt"):
            read_torchscript(cut)


def test_flipped_bytes_are_noticed(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        at = next(info.header_offset for info in opened.infolist() if info.filename.endswith("data/0"))
    content[at + 130] ^= 0xFF
    damaged = archive.with_name("damaged.pt")
    damaged.write_bytes(content)
    with pytest.raises(WeightsError, match=r"damaged\.pt"):
        read_torchscript(damaged)


def test_a_checkpoint_is_told_apart(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "checkpoint.pt")
    with pytest.raises(WeightsError, match=r"is a checkpoint of torch\.save.*omlab_sdk\.checkpoints"):
        read_torchscript(tmp_path / "checkpoint.pt")


def test_another_zip_is_told_apart(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match="has no data.pkl"):
        read_torchscript(tmp_path / "other.zip")


class _Touch:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_else_is_called(archive: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    evil = rewritten(archive, tmp_path / "evil.pt", {"data.pkl": pickle.dumps(_Touch(trap), protocol=2)})
    with pytest.raises(WeightsError, match=r"names '\w+\.mkdir', which is not needed to rebuild tensors"):
        read_torchscript(evil)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__"])
def test_builtins_are_refused(archive: Path, tmp_path: Path, name: str) -> None:
    evil = rewritten(archive, tmp_path / "evil.pt", {"data.pkl": f"cbuiltins\n{name}\n.".encode()})
    with pytest.raises(WeightsError, match=rf"names 'builtins\.{name}'"):
        read_torchscript(evil)


def test_missing_and_short_storages(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="the storage 'network/data/0' is missing"):
        read_torchscript(rewritten(archive, tmp_path / "a.pt", {"data/0": None}))
    with pytest.raises(WeightsError, match=r"'network/data/0' has 8 bytes, \d+ numbers of float32 were expected"):
        read_torchscript(rewritten(archive, tmp_path / "b.pt", {"data/0": bytes(8)}))


def test_a_tensor_outside_its_storage(archive: Path, tmp_path: Path) -> None:
    class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
        def persistent_id(self, value: Any) -> Any:
            return value if isinstance(value, tuple) and value[:1] == ("storage",) else None

    storage = ("storage", torch.FloatStorage, "0", "cpu", 4)
    for shape, stride, offset in (((5,), (1,), 0), ((2,), (1,), 3), ((2, 2), (-1, 1), 0), ((1,), (1,), -1)):

        class Tensor:
            def __reduce__(self, size: Any = (offset, shape, stride)) -> Any:
                return torch._utils._rebuild_tensor_v2, (storage, *size, False, collections.OrderedDict())

        stream = io.BytesIO()
        Pickler(stream, protocol=2).dump(Tensor())
        evil = rewritten(archive, tmp_path / "out.pt", {"data.pkl": stream.getvalue(), "data/0": bytes(16)})
        with pytest.raises(WeightsError, match="lies outside its storage"):
            read_torchscript(evil)
