"""Reading GGUF files that are written here from the format's definition."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from omlab.errors import WeightsError
from omlab_smollm2.gguf import Gguf, llama_names, rotary_order


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(tensors: dict[str, tuple[int, tuple[int, ...], bytes]], *, version: int = 3) -> bytes:
    """A file with a fact of every kind; ``tensors``: name -> (kind, shape with the slowest first, bytes)."""
    facts = [
        text("n") + struct.pack("<II", 4, 7), text("ratio") + struct.pack("<If", 6, 0.5),
        text("yes") + struct.pack("<I?", 7, True), text("name") + struct.pack("<I", 8) + text("ä"),
        text("list") + struct.pack("<IIQ", 9, 5, 2) + struct.pack("<ii", -1, 2),
    ]  # fmt: skip
    described, content = b"", b""
    for name, (kind, shape, raw) in tensors.items():
        content += b"\0" * (-len(content) % 32)
        described += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        described += struct.pack("<IQ", kind, len(content))
        content += raw
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(facts)) + b"".join(facts) + described
    return head + b"\0" * (-len(head) % 32) + content


def test_facts_and_blocks(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    plain = random.standard_normal((3, 4)).astype("<f4")
    codes = random.integers(0, 16, (2, 2, 32)).astype(np.uint8)
    scale, least = np.float16([[0.5, 0.25], [1, 2]]), np.float16([[-1, 0], [3, -4]])
    q4 = b"".join(
        struct.pack("<ee", scale[i, j], least[i, j]) + (codes[i, j, :16] | codes[i, j, 16:] << 4).tobytes()
        for i in range(2)
        for j in range(2)
    )
    signed = random.integers(-127, 128, (1, 32)).astype(np.int8)
    path = tmp_path / "x.gguf"
    path.write_bytes(
        gguf(
            {
                "plain": (0, (3, 4), plain.tobytes()), "half": (1, (2,), np.float16([1, 2]).tobytes()),
                "four": (3, (2, 64), q4), "eight": (8, (1, 32), struct.pack("<e", 0.5) + signed.tobytes()),
                "new": (99, (1,), b"1"),
            }
        )
    )  # fmt: skip
    file = Gguf(path)
    assert file.facts == {"n": 7, "ratio": 0.5, "yes": True, "name": "ä", "list": [-1, 2]}
    assert file.names == ("plain", "half", "four", "eight", "new")
    assert np.array_equal(file.tensor("plain"), plain) and file.tensor("half").tolist() == [1, 2]
    expected = scale[..., None].astype(np.float32) * codes + least[..., None].astype(np.float32)
    assert np.array_equal(file.tensor("four"), expected.reshape(2, 64))
    assert np.array_equal(file.tensor("eight"), 0.5 * signed.astype(np.float32))
    with pytest.raises(WeightsError, match="block format 99"):
        file.tensor("new")
    with pytest.raises(WeightsError, match="no tensor 'absent'"):
        file.tensor("absent")


def test_what_is_no_such_file_is_told(tmp_path: Path) -> None:
    whole = gguf({"plain": (0, (64,), np.zeros(64, "<f4").tobytes())})
    path = tmp_path / "x.gguf"
    for content, says in (
        (b"PK\3\4" + whole, "does not begin with GGUF"), (gguf({}, version=2), "of version 2"),
        (whole[:60], "is damaged or no GGUF file"), (b"", "is damaged"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=says):
            Gguf(path)
    path.write_bytes(whole[:-4])
    with pytest.raises(WeightsError, match="cut short within 'plain'"):
        Gguf(path).tensor("plain")
    with pytest.raises(WeightsError, match="absent.gguf"):
        Gguf(tmp_path / "absent.gguf")


def test_rows_of_heads_go_from_pairs_to_halves() -> None:
    pairs = np.arange(2 * 6, dtype=np.float32)[:, None].repeat(3, axis=1)  # two heads of six rows
    assert rotary_order(pairs, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert len(llama_names(30)) == 272
