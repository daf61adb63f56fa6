"""Nothing is sent anywhere by the libraries that compute."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

#: What a process does, and what processes forked from it do: each name that it looks up and each place it calls.
WATCH = """
    import os, sys
    told = os.open({told!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def watch(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
            os.write(told, (event + "\\n").encode())
    sys.addaudithook(watch)
"""
ENGINES = ("torch", "onnxruntime", "openvino")
COMPUTE = """
    import time
    from pathlib import Path
    from engine_doubles import Embedder, Exporter, ask, example
    from omlab.engines import provide
    model = Embedder()
    for engine in {engines!r}:
        os.write(told, (engine + "\\n").encode())
        found = provide(**ask(model, Path({home!r}), Exporter(), engine=engine, precision="float32", device="cpu"))
        found.engine(example(model))
        time.sleep(1)  # what reports does so from a thread
"""


def _calls(code: str, tmp_path: Path) -> tuple[list[str], list[str]]:
    """Calls that a fresh user's process makes, and what it leaves in their home."""
    told, home = tmp_path / "told", tmp_path / "home"
    home.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")
    } | {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parent)}
    code = textwrap.dedent(WATCH.format(told=str(told))) + textwrap.dedent(code)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
    return told.read_text().splitlines(), sorted(path.name for path in home.iterdir())


def test_engines_call_nobody(tmp_path: Path) -> None:
    for module in (*ENGINES, "onnxscript"):
        pytest.importorskip(module)
    calls, left = _calls(COMPUTE.format(home=str(tmp_path / "engines"), engines=ENGINES), tmp_path)
    assert calls == [*ENGINES]
    assert "intel" not in left


def test_a_call_is_seen(tmp_path: Path) -> None:
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass\n"
    assert _calls(code, tmp_path)[0] == ["socket.getaddrinfo", "socket.connect"]
