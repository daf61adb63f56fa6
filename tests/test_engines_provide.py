"""Engines end to end: provided, stored, judged, refused."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import attrs
import numpy as np
import pytest

from engine_doubles import Embedder, Exporter, Segmenter, ask, example, manifests

pytest.importorskip("torch", reason="making an engine needs torch")
pytest.importorskip("onnxscript", reason="making an engine needs onnxscript")

from omlab.engines import build_for, hardware, provide, tune
from omlab.engines.base import Target
from omlab.engines.openvino import OpenVino
from omlab.engines.store import Store, clear, entries
from omlab.errors import EngineError, UnknownName, UsageError
from omlab.graphs import Tolerance
from omlab.vocabulary import Precision

CPU_ENGINES = [("onnxruntime", "float32"), ("openvino", "float32"), ("torch", "float32")]


def reference_of(model, inputs):
    import torch

    network = model.network(model.graphs(None)[0], None, {}).eval()
    with torch.inference_mode():
        return network(*(torch.from_numpy(array) for array in inputs.values())).numpy()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store in which all engines of the segmenter are."""
    root = tmp_path_factory.mktemp("store")
    for engine, precision in CPU_ENGINES:
        provide(**ask(Segmenter(), root, Exporter(), engine=engine, precision=precision, device="cpu"))
    return root


@pytest.mark.parametrize(("engine", "precision"), CPU_ENGINES)
@pytest.mark.parametrize("kind", [Segmenter, Embedder])
def test_each_backend_is_admitted_and_agrees(kind, engine, precision, tmp_path):
    pytest.importorskip(engine)
    model = kind()
    provided = provide(**ask(model, tmp_path, Exporter(), engine=engine, precision=precision, device="cpu"))
    assert provided.parity.admitted
    assert provided.engine.info.backend == engine
    assert provided.engine.info.precision is Precision(precision)
    inputs = example(model)
    found = provided.engine(inputs)
    (name,) = found
    np.testing.assert_allclose(found[name], reference_of(model, inputs), rtol=1e-4, atol=1e-5)
    again = provided.engine(inputs)
    assert not np.shares_memory(found[name], again[name])
    found[name][:] = 0  # a caller's array is its own
    np.testing.assert_allclose(provided.engine(inputs)[name], again[name])


def test_other_sizes_of_a_symbolic_dimension(tmp_path):
    for engine in ("onnxruntime", "openvino"):
        model = Embedder()
        provided = provide(**ask(model, tmp_path, Exporter(), engine=engine, precision="float32"))
        for count in (1, 5, 3):
            inputs = {"vector": np.random.default_rng(count).standard_normal((count, 16)).astype(np.float32)}
            np.testing.assert_allclose(
                provided.engine(inputs)["embedding"], reference_of(model, inputs), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"vektor": np.zeros((2, 16), np.float32)}, "takes the inputs vector, found vektor"),
        ({"vector": np.zeros((2, 16), np.float64)}, "must be float32, found float64"),
        ({"vector": np.zeros((2, 15), np.float32)}, "must have shape batchx16, found 2x15"),
        ({"vector": np.zeros(16, np.float32)}, "must have shape batchx16, found 16"),
        ({"vector": np.zeros((9, 16), np.float32)}, "'batch' must be 1 to 8, found 9"),
        ({"vector": [[0.0] * 16]}, "must be a NumPy array, found list"),
    ],
)
def test_wrong_inputs_are_named(inputs, message, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "inputs-store"
    provided = provide(**ask(Embedder(), root, Exporter(), engine="onnxruntime"))
    with pytest.raises(EngineError, match=message):
        provided.engine(inputs)


def test_inputs_that_are_views_and_read_only_are_taken(tmp_path):
    model = Embedder()
    turned = np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32).T
    turned.flags.writeable = False
    for engine, precision in CPU_ENGINES:
        provided = provide(**ask(model, tmp_path, Exporter(), engine=engine, precision=precision, device="cpu"))
        expected = reference_of(model, {"vector": np.array(turned)})
        np.testing.assert_allclose(provided.engine({"vector": turned})["embedding"], expected, rtol=1e-4, atol=1e-5)


def test_auto_says_why_the_others_do_not_run(filled):
    provided = provide(**ask(Segmenter(), filled, Exporter()))
    data = provided.as_json()
    ran = (data["engine"]["backend"], data["engine"]["precision"])
    others = {(t["backend"], t["precision"]) for t in data["tried"] if t["device"] in ("cpu", "")}
    assert ran not in others
    assert {("onnxruntime", "float32"), ("openvino", "float32"), ("torch", "float32")} <= others | {ran}
    assert all(t["reason"] for t in data["tried"])
    if not hardware.gpus():
        reasons = {t["backend"]: t["reason"] for t in data["tried"]}
        assert reasons["tensorrt"] == "no NVIDIA GPU here" or "not installed" in reasons["tensorrt"]


def test_order_of_what_was_never_tuned():
    expected = ["openvino float32", "onnxruntime float32", "torch float32"]
    from engine_doubles import backends
    from omlab.engines.choice import Wish, candidates

    model = Segmenter()
    found, _ = candidates(backends(), model.graphs(None)[0], Wish(device="cpu"))
    order = [c.tried("").label for c in found]
    assert [label for label in order if label in expected] == expected
    if hardware.cpu().bfloat16:
        ahead = order.index("openvino bfloat16") < order.index("openvino float32")
        assert ahead is hardware.cpu().fast_bfloat16


def test_unknown_names(tmp_path):
    with pytest.raises(UnknownName, match=r"no engine 'openvno'\. Did you mean: openvino"):
        provide(**ask(Segmenter(), tmp_path, Exporter(), engine="openvno"))
    with pytest.raises(UsageError, match="no precision 'float31'"):
        provide(**ask(Segmenter(), tmp_path, Exporter(), precision="float31"))
    with pytest.raises(UsageError, match="no device 'tpu'"):
        provide(**ask(Segmenter(), tmp_path, Exporter(), device="tpu"))


def test_a_pinned_engine_is_not_replaced(tmp_path):
    with pytest.raises(EngineError) as caught:
        provide(**ask(Segmenter(), tmp_path, Exporter(), engine="onnxruntime", precision="bfloat16"))
    assert "with engine onnxruntime, precision bfloat16" in str(caught.value)
    assert "onnxruntime: it offers float32 on cpu here" in str(caught.value)
    if not hardware.gpus():
        with pytest.raises(EngineError, match="no NVIDIA GPU here"):
            provide(**ask(Segmenter(), tmp_path, Exporter(), engine="torch", device="cuda"))


def test_no_bfloat16_without_the_instructions(monkeypatch, tmp_path):
    old = attrs.evolve(hardware.cpu(), flags=frozenset({"avx2"}))
    monkeypatch.setattr(hardware, "cpu", lambda: old)
    provided = provide(**ask(Segmenter(), tmp_path, Exporter(), names=("openvino",)))
    assert provided.engine.info.precision is Precision.FLOAT32
    (refused,) = [t for t in provided.tried if t.precision == "bfloat16"]
    assert "no bfloat16 arithmetic" in refused.reason


@pytest.mark.skipif(not hardware.cpu().bfloat16, reason="this processor has no bfloat16 arithmetic")
def test_bfloat16_that_does_not_agree_falls_to_float32(monkeypatch, tmp_path):
    fast = attrs.evolve(hardware.cpu(), flags=hardware.cpu().flags | {"amx_bf16"})
    monkeypatch.setattr(hardware, "cpu", lambda: fast)
    model = Embedder()
    strict = attrs.evolve(model.graphs(None)[0], tolerances={Precision.BFLOAT16: Tolerance(cosine=1.0, relative=1e-9)})
    provided = provide(**ask(model, tmp_path, Exporter(), names=("openvino",), graph=strict))
    assert provided.engine.info.precision is Precision.FLOAT32
    (refused,) = [t for t in provided.tried if t.precision == "bfloat16"]
    assert "relative" in refused.reason and "1e-09 is admitted" in refused.reason
    # The tolerance is part of no key: with a wider one the same figures are judged again.
    wide = attrs.evolve(strict, tolerances={Precision.BFLOAT16: Tolerance(relative=0.05)})
    provided = provide(**ask(model, tmp_path, Exporter(), names=("openvino",), graph=wide))
    assert provided.engine.info.precision is Precision.BFLOAT16
    assert 1e-6 < provided.parity.outputs[0].relative < 0.05


def test_a_wrong_engine_is_rejected_kept_and_remembered(tmp_path):
    model, wrong = Segmenter(), Exporter(scale=-2.0)
    provided = provide(**ask(model, tmp_path, wrong, names=("onnxruntime", "torch")))
    assert provided.engine.info.backend == "torch"
    assert provided.parity.is_reference
    (refused,) = [t for t in provided.tried if t.backend == "onnxruntime" and t.device == "cpu"]
    assert "flips_ppm" in refused.reason and "most at [0, " in refused.reason
    (rejected,) = [e for e in entries(tmp_path) if e.state == "rejected"]
    assert rejected.parity["outputs"][0]["flips_ppm"] > 100
    with np.load(rejected.folder / "tensors.npz") as tensors:
        assert set(tensors) == {"input/image", "reference/scores", "engine/scores"}
        worst = tuple(rejected.parity["outputs"][0]["deviation"]["index"])
        gap = np.abs(tensors["engine/scores"] - tensors["reference/scores"])
        assert gap[worst] == gap.max() > 0
    made = rejected.made, rejected.folder.stat().st_mtime_ns
    provide(**ask(model, tmp_path, wrong, names=("onnxruntime", "torch")))
    (again,) = [e for e in entries(tmp_path) if e.state == "rejected"]
    assert (again.made, again.folder.stat().st_mtime_ns) == made
    assert wrong.exports == 1


def test_nothing_here_and_nothing_to_make_it_with(tmp_path):
    with pytest.raises(EngineError) as caught:
        provide(**ask(Segmenter(), tmp_path, None, names=("onnxruntime", "openvino")))
    assert caught.value.remedy == "Install it once with: pip install 'omlab-segmenter[convert]'"


def test_a_network_that_gives_another_shape_than_declared(tmp_path):
    model = Segmenter()
    (graph,) = model.graphs(None)
    wrong = attrs.evolve(graph, outputs=(attrs.evolve(graph.outputs[0], shape=(1, 2, 12, 10, 8)),))
    with pytest.raises(
        EngineError, match="gives output 'scores' as float32 1x3x12x10x8, float32 1x2x12x10x8 is declared"
    ):
        provide(**ask(model, tmp_path, Exporter(), graph=wrong, engine="onnxruntime"))


def test_an_exporter_that_fails_leaves_torch(tmp_path):
    class Broken(Exporter):
        def export(self, network, graph, path):
            self.exports += 1
            raise ValueError("no such operator\nlong story")

    broken = Broken()
    provided = provide(**ask(Segmenter(), tmp_path, broken, device="cpu"))
    assert provided.engine.info.backend == "torch"
    reasons = {t.backend: t.reason for t in provided.tried if t.precision == "float32"}
    assert reasons["openvino"] == reasons["onnxruntime"]
    assert reasons["openvino"].endswith("cannot be exported to ONNX: ValueError: no such operator")
    assert broken.exports == 1


def engine_folder(root, backend):
    (entry,) = [e for e in entries(root) if e.backend == backend]
    return entry.folder


def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def alter(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
@pytest.mark.parametrize(
    ("backend", "name"), [("openvino", "engine.blob"), ("onnx", "model.onnx"), ("reference", "reference.npz")]
)
def test_a_damaged_file_is_made_again(damage, backend, name, tmp_path):
    model, exporter = Segmenter(), Exporter()
    wish = {"engine": "onnxruntime" if backend == "onnx" else "openvino", "precision": "float32"}
    provide(**ask(model, tmp_path, exporter, **wish))
    path = engine_folder(tmp_path, backend) / name
    before = path.read_bytes()
    damage(path)
    if backend == "reference":  # asked for when the next engine is judged
        wish["engine"] = "onnxruntime"
    provided = provide(**ask(model, tmp_path, exporter, **wish))
    inputs = example(model)
    np.testing.assert_allclose(provided.engine(inputs)["scores"], reference_of(model, inputs), rtol=1e-4, atol=1e-5)
    assert path.stat().st_size == len(before) or backend != "reference"
    assert Store(tmp_path).find(next(e.key for e in entries(tmp_path) if e.backend == backend)) is not None
    assert exporter.exports == (2 if backend == "onnx" else 1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "key": {}}'])
def test_a_manifest_that_is_no_manifest_is_made_again(text, tmp_path):
    model = Segmenter()
    wish = {"engine": "openvino", "precision": "float32"}
    provide(**ask(model, tmp_path, Exporter(), **wish))
    folder = engine_folder(tmp_path, "openvino")
    (folder / "manifest.json").write_text(text)
    assert provide(**ask(model, tmp_path, Exporter(), **wish)).parity.admitted
    assert '"admitted"' in (folder / "manifest.json").read_text()


def test_what_a_killed_process_left_is_swept(tmp_path):
    model = Segmenter()
    wish = {"engine": "openvino", "precision": "float32"}
    provide(**ask(model, tmp_path, Exporter(), **wish))
    folder = engine_folder(tmp_path, "openvino")
    leftover = folder.with_name(f".{folder.name}.dead")
    folder.rename(leftover)
    assert "openvino" not in {e.backend for e in entries(tmp_path)}
    provide(**ask(model, tmp_path, Exporter(), **wish))
    assert folder.is_dir() and not leftover.exists()


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from engine_doubles import Segmenter, Exporter, ask, example
from omlab.engines import provide
"""


def run(code, root, *, wait=True):
    script = SCRIPT + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(root)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_second_time_needs_no_torch_and_says_nothing(engine, filled):
    out, err = run(
        f"""
        class Untouched(Segmenter):
            def network(self, *args):
                raise SystemExit("the network was built")
            def examples(self, *args):
                raise SystemExit("examples were made")
        def exporter():
            raise SystemExit("the exporter was asked for")
        model = Untouched()
        inputs = {{"image": np.zeros((1, 1, 12, 10, 8), np.float32)}}
        provided = provide(**ask(model, Path(sys.argv[1]), exporter, engine={engine!r}, precision="float32"))
        assert provided.engine(inputs)["scores"].shape == (1, 3, 12, 10, 8)
        assert provided.parity.admitted and provided.parity.outputs[0].dice is not None
        heavy = {{"torch", "onnx", "onnxscript", "omlab_sdk"}} & set(sys.modules)
        assert not heavy, heavy
        """,
        filled,
    )
    assert (out, err) == ("", "")


def test_two_processes_build_once(tmp_path):
    code = """
        import time
        class Counting(Exporter):
            def export(self, *args):
                open(Path(sys.argv[1]) / f"export-{time.time_ns()}", "w").close()
                time.sleep(1)
                super().export(*args)
        provided = provide(**ask(Segmenter(), Path(sys.argv[1]), Counting(), engine="openvino", precision="float32"))
        print(provided.parity.summary())
    """
    both = [run(code, tmp_path, wait=False) for _ in range(2)]
    results = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0].splitlines()[-1] == results[1][0].splitlines()[-1]
    assert len(list(tmp_path.glob("export-*"))) == 1
    assert len([m for m in manifests(tmp_path) if m["key"]["backend"] == "openvino"]) == 1


def test_listing_and_clearing(filled, tmp_path):
    provide(**ask(Segmenter(), tmp_path, Exporter(), engine="onnxruntime"))
    provide(**ask(Embedder(), tmp_path, Exporter(), engine="openvino", precision="float32"))
    tune(**ask(Embedder(), tmp_path, Exporter(), names=("onnxruntime",), rounds=1))
    assert {(e.model, e.backend) for e in entries(tmp_path)} >= {
        ("segmenter", "onnx"), ("segmenter", "reference"), ("segmenter", "onnxruntime"), ("embedder", "openvino"),
    }  # fmt: skip
    whole = sum(e.size for e in entries(tmp_path))
    assert whole > 0 and all(e.as_json()["model"] == e.model for e in entries(tmp_path))
    assert 0 < clear(tmp_path, model="segmenter") < whole + 50_000
    assert {e.model for e in entries(tmp_path)} == {"embedder"}
    assert "embedder" in (tmp_path / "choices.json").read_text()
    assert clear(tmp_path) > 0
    assert entries(tmp_path) == []
    assert "embedder" not in (tmp_path / "choices.json").read_text()
    assert clear(tmp_path / "nowhere") == 0


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(EngineError, match=r"engine store .*file cannot be written.*OMLAB_HOME"):
        provide(**ask(Segmenter(), blocked, Exporter(), engine="openvino"))


def test_tune_measures_remembers_and_is_obeyed(tmp_path):
    model = Embedder()
    rows = tune(**ask(model, tmp_path, Exporter(), rounds=3))
    measured = [row for row in rows if row.milliseconds is not None]
    assert {"onnxruntime", "openvino", "torch"} <= {row.backend for row in measured}
    assert [row.milliseconds for row in measured] == sorted(row.milliseconds for row in measured)
    assert [row.chosen for row in rows] == [True] + [False] * (len(rows) - 1)
    assert all(len(row.cells()) == 5 and all(row.cells()) for row in rows)
    assert all(row.reason and not row.admitted for row in rows if row.milliseconds is None)
    assert all(row.admitted for row in measured)
    chosen = rows[0]
    info = provide(**ask(model, tmp_path, Exporter())).engine.info
    assert (info.backend, info.precision) == (chosen.backend, chosen.precision)


def test_a_remembered_choice_comes_first_wherever_it_ranks(tmp_path):
    from omlab.engines import choice

    model = Embedder()
    choice.remember(tmp_path, "embedder", "base", "net", choice.Choice("torch", "float32", "cpu", "eager", 1.0))
    provided = provide(**ask(model, tmp_path, Exporter()))
    assert provided.engine.info.backend == "torch"
    assert any("measured slower here" in t.reason for t in provided.tried)
    assert provide(**ask(model, tmp_path, Exporter(), engine="onnxruntime")).engine.info.backend == "onnxruntime"
    (tmp_path / "choices.json").write_text("{")
    assert provide(**ask(model, tmp_path, Exporter())).engine.info.backend == "openvino"


def test_a_pinned_tune_remembers_nothing(tmp_path):
    rows = tune(**ask(Embedder(), tmp_path, Exporter(), engine="torch", rounds=1))
    assert rows[0].backend == "torch" and not rows[0].chosen
    assert not (tmp_path / "choices.json").exists()


@pytest.mark.parametrize("kind", [Segmenter, Embedder])
def test_tensorrt_rtx_builds_ahead_of_time_and_says_why_it_cannot_load(kind, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from importlib.util import find_spec

    if find_spec("tensorrt") is not None:
        pytest.skip("full tensorrt is installed and builds for the GPU at hand only")
    model = kind()
    arguments = ask(model, tmp_path, Exporter())
    built = build_for(**arguments, capabilities=["8.9", "sm_120"])
    assert [e.device for e in built] == ["sm_89", "sm_120"]
    assert all(e.state == "unproven" and e.size > 1000 for e in built)
    again = build_for(**arguments, capabilities=["8.9"])
    assert again[0].made == built[0].made and again[0].folder == built[0].folder
    (backend,) = [b for b in arguments["backends"] if b.card.name == "tensorrt"]
    if not hardware.gpus():
        with pytest.raises(EngineError, match="is built for sm_89 and there is no NVIDIA GPU here"):
            target = Target(Precision.FLOAT32, "sm_89", "tensorrt_rtx")
            backend.load(arguments["graph"], tmp_path / "none", built[0].folder, target)
        with pytest.raises(EngineError, match="tensorrt float32 cuda: no NVIDIA GPU here"):
            provide(**ask(model, tmp_path, Exporter(), engine="tensorrt"))
    with pytest.raises(EngineError, match="cannot build for 'sm_90'"):
        build_for(**arguments, capabilities=["9.0"])
    with pytest.raises(UsageError, match="'fast' is no compute capability"):
        build_for(**arguments, capabilities=["fast"])


def test_an_artefact_that_verifies_but_does_not_load_is_made_again(monkeypatch, tmp_path):
    wish = {"engine": "openvino", "precision": "float32"}
    provide(**ask(Segmenter(), tmp_path, Exporter(), **wish))
    real, calls = OpenVino.load, []

    def stubborn(self, graph, onnx, folder, target, *, threads=None):
        calls.append(folder.name)
        if len(calls) <= 2:  # as it lies there, before and under the lock
            raise EngineError("another build of the library wrote this")
        return real(self, graph, onnx, folder, target, threads=threads)

    monkeypatch.setattr(OpenVino, "load", stubborn)
    assert provide(**ask(Segmenter(), tmp_path, Exporter(), **wish)).parity.admitted
    kept = engine_folder(tmp_path, "openvino").name
    assert calls[:2] == [kept, kept] and calls[2].startswith(f".{kept}.")


def test_keys_differ_with_weights_graph_and_threads_do_not_matter(tmp_path):
    model = Segmenter()
    wish = {"engine": "openvino", "precision": "float32"}
    provide(**ask(model, tmp_path, Exporter(), threads=1, **wish))
    one = provide(**ask(model, tmp_path, Exporter(), threads=2, **wish))
    assert one.engine.info.threads == 2
    count = len(entries(tmp_path))
    provide(**ask(model, tmp_path, Exporter(), **{**wish, "weights_digest": "1" * 64}))
    assert len(entries(tmp_path)) == 2 * count
    changed = attrs.evolve(model.graphs(None)[0], config={"width": 4})
    provide(**ask(model, tmp_path, Exporter(), **{**wish, "graph": changed}))
    assert len(entries(tmp_path)) == 3 * count


class TestWithGpu:
    """What is offered and kept where the driver names a GPU; nothing here runs on one."""

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch):
        if hardware.gpus():
            pytest.skip("there is a real GPU here")
        monkeypatch.setattr(hardware, "gpus", lambda: (hardware.Gpu("NVIDIA Test", (8, 9)),))

    def test_tensorrt_comes_first_and_a_missing_cuda_build_is_named(self):
        pytest.importorskip("tensorrt_rtx")
        from engine_doubles import backends
        from omlab.engines.choice import Wish, candidates

        found, tried = candidates(backends(), Segmenter().graphs(None)[0], Wish())
        assert found[0].name == "tensorrt"
        reasons = {(t.backend, t.device): t.reason for t in tried}
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            assert reasons["onnxruntime", "cuda"].startswith("the installed onnxruntime has no ")
            assert [c.target.device for c in found if c.name == "onnxruntime"] == ["cpu"]

    def test_an_engine_built_elsewhere_is_found_and_survives_a_gpu_that_does_not_answer(self, tmp_path):
        pytest.importorskip("tensorrt_rtx")
        pytest.importorskip("cuda.bindings")
        exporter = Exporter()
        (built,) = build_for(**ask(Segmenter(), tmp_path, exporter), capabilities=["8.9"])
        provided = provide(**ask(Segmenter(), tmp_path, exporter))
        assert provided.engine.info.device == "cpu"
        (refused,) = [t for t in provided.tried if t.backend == "tensorrt"]
        assert "driver" in refused.reason
        (kept,) = [e for e in entries(tmp_path) if e.backend == "tensorrt"]
        assert (kept.folder, kept.made, kept.state) == (built.folder, built.made, "unproven")

    def test_it_is_judged_where_it_is_loaded(self, monkeypatch, tmp_path):
        pytest.importorskip("tensorrt_rtx")
        from omlab.engines.base import EngineInfo
        from omlab.engines.tensorrt import TensorRt

        model = Segmenter()
        build_for(**ask(model, tmp_path, Exporter()), capabilities=["8.9"])
        for offset, admitted in ((5.0, False), (0.0, True)):

            class Double:
                info = EngineInfo("tensorrt", "1", Precision.FLOAT32, "cuda")

                def __call__(self, inputs, offset=offset):
                    scores = reference_of(model, inputs)
                    scores[:, 0] += offset
                    return {"scores": scores}

            monkeypatch.setattr(TensorRt, "load", lambda *args, double=Double, **more: double())
            if admitted:
                clear(tmp_path)
                build_for(**ask(model, tmp_path, Exporter()), capabilities=["8.9"])
                assert provide(**ask(model, tmp_path, Exporter(), engine="tensorrt")).parity.admitted
                (entry,) = [e for e in entries(tmp_path) if e.backend == "tensorrt"]
                assert entry.state == "admitted" and entry.parity["outputs"][0]["flips_ppm"] == 0
            else:
                with pytest.raises(EngineError, match="flips_ppm"):
                    provide(**ask(model, tmp_path, Exporter(), engine="tensorrt"))
                assert [e.state for e in entries(tmp_path) if e.backend == "tensorrt"] == ["rejected"]


def test_what_fails_for_want_of_memory_is_not_held_against_an_engine(monkeypatch, tmp_path):
    wish = {"engine": "openvino", "precision": "float32"}
    real = OpenVino.build
    for text, remembered in (("std::bad_alloc", False), ("no such operation", True)):

        def broken(*args, text=text, **more):
            raise EngineError(text)

        monkeypatch.setattr(OpenVino, "build", broken)
        with pytest.raises(EngineError, match=text):
            provide(**ask(Segmenter(), tmp_path, Exporter(), **wish))
        monkeypatch.setattr(OpenVino, "build", real)
        if remembered:
            with pytest.raises(EngineError, match=text):
                provide(**ask(Segmenter(), tmp_path, Exporter(), **wish))
        else:
            assert provide(**ask(Segmenter(), tmp_path, Exporter(), **wish)).parity.admitted
            clear(tmp_path)
