"""Running models: one folder a case, one row a case, exit codes, resuming, and one error for each bad input."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

import omlab
from omlab.cli.main import main
from support import SEGMENTER, SEGMENTER_MANIFEST


@pytest.fixture
def thresholder(install_plugin):
    return install_plugin("thresholder", code=SEGMENTER, manifest=SEGMENTER_MANIFEST)


def _scan(path, *, shape=(20, 24, 16), affine=None, dtype=np.int16, values=None):
    if values is None:
        values = np.zeros(shape, dtype)
        values[5:14, 6:18, 4:12] = 400
    affine = np.diag([-1.0, 1.5, 2.0, 1.0]) if affine is None else affine
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


def _run(capsys, *arguments):
    code = main(["run", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err


def test_a_case_from_file_to_files(thresholder, tmp_path, capsys):
    scan = _scan(tmp_path / "head scan.nii.gz")
    code, rows, _ = _run(capsys, "thresholder", scan, "-o", tmp_path / "out")
    assert code == 0
    (row,) = rows["cases"]
    folder = tmp_path / "out" / "head_scan"
    assert row["status"] == "done"
    assert {p.name for p in folder.iterdir()} == {"segmentation.nii.gz", "overview.png", "result.json"}
    mask, source = nibabel.load(folder / "segmentation.nii.gz"), nibabel.load(scan)
    assert np.allclose(mask.affine, source.affine)
    assert np.array_equal(np.asarray(mask.dataobj) > 0, nibabel_expected(source))
    record = json.loads((folder / "result.json").read_text())
    assert record["engines"]["net"]["engine"]["backend"] in {"openvino", "onnxruntime", "torch"}
    assert record["engines"]["net"]["parity"]
    assert set(record["stages"]) == {"read", "prepare", "network", "restore", "write"}
    assert record["options"] == {"level": 100.0}
    assert record["result"]["structures"][0]["name"] == "bright"
    with Picture.open(folder / "overview.png") as picture:
        assert picture.width > 300


def nibabel_expected(image):
    """The thresholder's answer computed without omlab: a box filter of the bright voxels."""
    from scipy.ndimage import uniform_filter

    bright = (np.asarray(image.dataobj) > 100).astype(float)
    return uniform_filter(bright, 3, mode="constant") - 0.5 > 1e-6


def test_the_api_gives_the_same_typed_result(thresholder, tmp_path):
    scan = _scan(tmp_path / "scan.nii.gz")
    model = omlab.load("thresholder")
    result = model(scan)
    assert isinstance(result, omlab.Segmentation)
    assert result.mask("bright").sum() == nibabel_expected(nibabel.load(scan)).sum()
    assert model(omlab.read(scan), level=500.0).labels.sum() == 0
    with pytest.raises(omlab.OmlabError, match=r"no option 'levl'.*'level'"):
        model(scan, levl=3)
    with pytest.raises(omlab.OmlabError, match="takes float, found 'high'"):
        model(scan, level="high")


def test_one_bad_case_leaves_the_others(thresholder, tmp_path, capsys):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii.gz", "crash.nii.gz"):
        _scan(folder / name)
    (folder / "c.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:200])
    (folder / "notes.txt").write_text("no scan")
    inputs = [folder / n for n in ("a.nii.gz", "c.nii.gz", "crash.nii.gz", "b.nii.gz", "notes.txt")]
    code, rows, _ = _run(capsys, "thresholder", *inputs, "-o", tmp_path / "out")
    assert code == 1
    status = {row["name"]: row["status"] for row in rows["cases"]}
    assert status == {"a": "done", "c": "failed", "crash": "failed", "b": "done", "notes": "failed"}
    with open(tmp_path / "out" / "cases.csv", encoding="utf-8", newline="") as file:
        table = {row["case"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in table.items()} == status
    assert float(table["a"]["volume_ml(bright)"]) > 0
    assert table["crash"]["cause"].endswith("a defect of the plugin")
    causes = {row["name"]: row.get("cause", "") for row in rows["cases"]}
    assert "cut short" in causes["c"]
    assert "ZeroDivisionError: a defect of the plugin" in causes["crash"]
    assert causes["notes"] == "notes.txt: is a text file, expected NIfTI, DICOM, NRRD or MetaImage"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a", "b", "cases.csv"}


def test_folders_and_patterns_and_equal_names(thresholder, tmp_path, capsys):
    for part in ("one", "two"):
        (tmp_path / "in" / part).mkdir(parents=True)
        _scan(tmp_path / "in" / part / "scan.nii.gz")
    code, rows, _ = _run(capsys, "thresholder", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 0
    assert [row["name"] for row in rows["cases"]] == ["scan", "scan-2"]
    code, rows, _ = _run(capsys, "thresholder", str(tmp_path / "in" / "*" / "*.nii.gz"), "-o", tmp_path / "out2")
    assert code == 0
    assert len(rows["cases"]) == 2
    code, rows, _ = _run(capsys, "thresholder", str(tmp_path / "*.none"), "-o", tmp_path / "out3")
    assert code == 1
    assert "no file fits" in rows["cases"][0]["cause"]


def test_resume_skips_what_is_whole_and_only_that(thresholder, tmp_path, capsys):
    scan, out = _scan(tmp_path / "scan.nii.gz"), tmp_path / "out"

    def status(*more):
        return _run(capsys, "thresholder", scan, "-o", out, "--resume", *more)[1]["cases"][0]["status"]

    assert status() == "done"
    assert status() == "skipped"
    assert status("--level", "50") == "done"  # another option, another result
    assert status("--level", "50") == "skipped"
    (out / "scan" / "segmentation.nii.gz").write_bytes(b"cut")
    assert status("--level", "50") == "done"
    (out / "scan" / "result.json").unlink()
    assert status("--level", "50") == "done"
    _scan(scan, shape=(22, 24, 16))
    assert status("--level", "50") == "done"
    assert status("--level", "50", "--format", "npz") == "done"


def test_wrong_usage_is_2(thresholder, tmp_path, capsys):
    scan = _scan(tmp_path / "scan.nii.gz")
    for arguments, message in (
        (["thresholdr", scan], "Did you mean: thresholder"),
        (["thresholder", scan, "--engine", "opnvino"], "openvino"),
        (["thresholder", scan, "--level", "high"], "not a valid float"),
        (["thresholder", scan, "--nothing"], "No such option"),
        (["thresholder"], "Missing argument"),
        (["thresholder", scan, "--variant", "none"], "has no variant 'none'"),
    ):
        code = main(["run", *map(str, arguments), "-o", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert code == 2, error
        assert message in error
        assert "Traceback" not in error
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def _bad(tmp_path):
    base = np.zeros((8, 9, 10), np.float32)
    yield "missing", tmp_path / "none.nii.gz", "does not exist"
    (tmp_path / "empty.nii").write_bytes(b"")
    yield "empty", tmp_path / "empty.nii", "is empty"
    whole = gzip.decompress(_scan(tmp_path / "whole.nii.gz").read_bytes())
    (tmp_path / "short.nii").write_bytes(whole[:2000])
    yield "truncated", tmp_path / "short.nii", "cut short, 1648 of"
    (tmp_path / "short.nii.gz").write_bytes((tmp_path / "whole.nii.gz").read_bytes()[:-20])
    yield "truncated gzip", tmp_path / "short.nii.gz", "cut short"
    damaged = bytearray((tmp_path / "whole.nii.gz").read_bytes())
    damaged[-6] ^= 0xFF  # the checksum at the end
    (tmp_path / "crc.nii.gz").write_bytes(bytes(damaged))
    yield "wrong checksum", tmp_path / "crc.nii.gz", "damaged"
    (tmp_path / "zip.nii.gz").write_bytes(gzip.compress(b"words, not voxels" * 100))
    yield "not NIfTI", tmp_path / "zip.nii.gz", "what is inside is no NIfTI"
    Picture.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    yield (
        "an image for a volume model",
        tmp_path / "photo.png",
        "is a 2D image, expected NIfTI, DICOM, NRRD or MetaImage",
    )
    yield "4D", _scan(tmp_path / "4d.nii.gz", values=np.zeros((4, 5, 6, 7), np.int16)), "Choose one of its 7 volumes"
    nan = base.copy()
    nan[1, 2, 3], nan[2, 2, 2] = np.nan, np.inf
    yield "NaN", _scan(tmp_path / "nan.nii.gz", values=nan), "2 of 720 voxels are NaN or infinite"
    yield "singular", _with_affine(tmp_path / "sing.nii", np.diag([1.0, 1, 0, 1])), "its spacing is 1 x 1 x 0 mm"
    flat = np.eye(4)
    flat[:3, 1] = flat[:3, 0]
    yield "parallel axes", _with_affine(tmp_path / "par.nii", flat), "singular"
    yield "absurd spacing", _with_affine(tmp_path / "far.nii", np.diag([5e4, 1, 1, 1])), "its spacing is 50000 x 1 x 1"
    bad = np.eye(4)
    bad[0, 3] = np.nan
    yield "NaN affine", _with_affine(tmp_path / "nanaff.nii", bad), "not finite"
    rgb = np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    yield "colour", _scan(tmp_path / "rgb.nii.gz", values=rgb), "datatype 128"
    yield "folder without cases", _empty_folder(tmp_path), "holds no file that can be a case"


def _with_affine(path, affine):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.header["sform_code"] = 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = affine[row]
    with open(path, "wb") as file:
        image.header["magic"] = b"n+1"
        image.header["vox_offset"] = 352
        file.write(image.header.binaryblock + b"\0" * 4 + np.zeros((4, 5, 6), np.int16).tobytes())
    return path


def _empty_folder(tmp_path):
    (tmp_path / "nothing").mkdir()
    return tmp_path / "nothing"


def test_every_bad_input_is_one_clear_line(thresholder, tmp_path, capsys):
    for what, path, message in _bad(tmp_path):
        out = tmp_path / "out"
        code = main(["run", "thresholder", str(path), "-o", str(out)])
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if "(once)" not in line]
        assert code == 1, (what, error)
        assert len(lines) == 1, (what, error)
        assert message in lines[0], (what, error)
        assert not list(out.rglob("*")), what


def test_nonfinite_voxels_can_be_taken_as_zero(thresholder, tmp_path, capsys):
    values = np.full((8, 9, 10), 300, np.float32)
    values[0, 0, 0] = np.nan
    scan = _scan(tmp_path / "nan.nii.gz", values=values)
    code, rows, _ = _run(capsys, "thresholder", scan, "-o", tmp_path / "out", "--nonfinite", "zero")
    assert code == 0
    assert rows["cases"][0]["warnings"] == ["1 voxels are NaN or infinite and were taken as 0"]


def test_one_volume_of_a_4d_file(thresholder, tmp_path, capsys):
    values = np.zeros((12, 12, 12, 3), np.int16)
    values[2:9, 2:9, 2:9, 1] = 400
    scan = _scan(tmp_path / "4d.nii.gz", values=values)
    code, rows, _ = _run(capsys, "thresholder", scan, "-o", tmp_path / "out", "--frame", "1")
    assert code == 0
    assert "bright" in rows["cases"][0]["headline"]
    code, rows, _ = _run(capsys, "thresholder", scan, "-o", tmp_path / "out", "--frame", "3")
    assert "has no volume 3" in rows["cases"][0]["cause"]


def test_output_folders_that_cannot_be_written(thresholder, tmp_path, capsys):
    scan = _scan(tmp_path / "scan.nii.gz")
    (tmp_path / "file").write_text("in the way")
    assert main(["run", "thresholder", str(scan), "-o", str(tmp_path / "file")]) == 1
    assert "is a file, a folder was expected" in capsys.readouterr().err
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        assert main(["run", "thresholder", str(scan), "-o", str(locked / "out")]) == 1
        assert "cannot be written" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_file(thresholder, tmp_path, capsys, monkeypatch):
    scan = _scan(tmp_path / "scan.nii.gz")
    real = os.fsync

    def full(handle):
        raise OSError(28, "No space left on device")

    omlab.load("thresholder")(scan)  # engines are built while there is space
    monkeypatch.setattr(os, "fsync", full)
    code, rows, _ = _run(capsys, "thresholder", scan, "-o", tmp_path / "out")
    monkeypatch.setattr(os, "fsync", real)
    assert code == 1
    assert "No space left on device" in rows["cases"][0]["cause"]
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_a_damaged_engine_is_rebuilt(thresholder, tmp_path, capsys, own_home):
    scan = _scan(tmp_path / "scan.nii.gz")
    assert _run(capsys, "thresholder", scan, "-o", tmp_path / "out")[0] == 0
    files = [p for p in (own_home / "engines").rglob("*") if p.is_file() and p.suffix in {".onnx", ".blob", ".json"}]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert _run(capsys, "thresholder", scan, "-o", tmp_path / "out")[0] == 0


def test_a_second_run_needs_no_torch(thresholder, tmp_path):
    scan = _scan(tmp_path / "scan.nii.gz")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from omlab.cli.main import main\n"
        "code = main(['run', 'thresholder', sys.argv[2], '-o', sys.argv[3], '-q'])\n"
        "heavy = {'torch', 'onnx', 'omlab_sdk.export', 'matplotlib', 'scipy', 'nibabel'}\n"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "site"), str(scan), str(tmp_path / "out")]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_ctrl_c_leaves_no_half_written_file(thresholder, tmp_path):
    for number in range(40):
        _scan(tmp_path / "in" / f"{number:02}.nii.gz") if (tmp_path / "in").mkdir(exist_ok=True) is None else None
    command = [
        sys.executable, "-c",
        "import sys; sys.path.insert(0, sys.argv[1]); from omlab.cli.main import entry; del sys.argv[0]; entry()",
        str(tmp_path / "site"), "run", "thresholder", str(tmp_path / "in"), "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and len(list((tmp_path / "out").glob("*/result.json"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (0, 130), error  # 0 if it was through already
    assert "Traceback" not in error
    for folder in (tmp_path / "out").iterdir():
        for path in folder.iterdir():
            assert not path.name.startswith("."), path
            if path.suffix == ".gz":
                nibabel.load(path).get_fdata()
            if path.suffix == ".json":
                json.loads(path.read_text())


def test_cases_that_a_model_answers_together(thresholder, tmp_path, capsys, monkeypatch):
    """Groups are as large as the model says; what cannot be read, and what fails among others, is told by itself."""
    from omlab.model import Model

    sizes = []
    plain = Model.predict_many

    def predict_many(self, cases, context):
        sizes.append(len(cases))
        return plain(self, cases, context)

    monkeypatch.setattr(Model, "together", lambda self, options: 2)
    monkeypatch.setattr(Model, "predict_many", predict_many)
    inputs = [_scan(tmp_path / f"{name}.nii.gz") for name in ("a", "b", "crash", "c", "d")]
    inputs.insert(1, tmp_path / "none.nii.gz")
    code, rows, _ = _run(capsys, "thresholder", *inputs, "-o", tmp_path / "out")
    assert code == 1
    status = {row["name"]: row["status"] for row in rows["cases"]}
    assert list(status) == ["a", "none", "b", "crash", "c", "d"]
    assert {name for name, found in status.items() if found == "failed"} == {"none", "crash"}
    assert (tmp_path / "out" / "c" / "segmentation.nii.gz").is_file()
    assert sizes and max(sizes) == 2
    again = _run(capsys, "thresholder", *inputs, "-o", tmp_path / "out", "--resume")[1]["cases"]
    assert [row["status"] for row in again] == ["skipped", "failed", "skipped", "failed", "skipped", "skipped"]
