"""Prompts: the JSON schema, the command line, coordinates on the grid of a case, masks, and what is refused."""

from __future__ import annotations

import json

import attrs
import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

import omlab
from omlab.cases import Image, Volume
from omlab.cases.types import Source
from omlab.cli.main import main
from omlab.errors import InputError, UsageError
from omlab.geometry import Geometry
from omlab.prompts import (
    Box,
    Object,
    Point,
    Prompts,
    coerce,
    from_json,
    make,
    of_arguments,
    parse_box,
    parse_point,
    read,
    stamp,
)
from omlab.vocabulary import Prompt
from support import MODEL_TABLE

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 1.5, 0, -50], [0, 0, 3.0, 10], [0, 0, 0, 1]])


@pytest.fixture
def picture():
    return Image(name="slice.png", pixels=np.zeros((60, 80), np.uint8))


@pytest.fixture
def volume():
    return Volume(name="scan.nii.gz", voxels=np.zeros((40, 50, 20), np.int16), geometry=Geometry((40, 50, 20), AFFINE))


# --- the schema -------------------------------------------------------------------------------------------------------


def test_json_and_back() -> None:
    table = {
        "objects": [
            {"label": "liver", "points": [[12, 8], [3, 4]], "point-labels": [1, 0], "boxes": [[1, 2, 9, 12]]},
            {"label": "tumour", "text": "the tumour", "space": "lps-mm", "points": [[1.5, 2, 3]]},
        ],
        "cases": {"scan-7": [{"label": "spleen", "points": [[21, 8]]}]},
    }
    prompts = from_json(table)
    assert prompts.kinds == {Prompt.POINT, Prompt.BOX, Prompt.TEXT}
    assert prompts.labels == ("liver", "tumour")
    liver = prompts.objects[0]
    assert liver.points == (Point((12, 8)), Point((3, 4), positive=False))
    assert liver.boxes == (Box((1, 2), (9, 12)),)
    assert from_json(json.loads(json.dumps(prompts.as_json()))).as_json() == prompts.as_json()


def test_a_list_is_enough_and_space_is_inherited() -> None:
    assert from_json([{"points": [[1, 2]]}]).objects[0].label == "object"
    prompts = from_json(
        {"space": "ras-mm", "objects": [{"points": [[1, 2, 3]]}, {"space": "grid", "points": [[1, 2, 3]]}]}
    )
    assert [item.space for item in prompts.objects] == ["ras-mm", "grid"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "holds no object"),
        (3, "expected an object with 'objects', found 3"),
        ({"object": []}, "unknown entry 'object'. Did you mean 'objects'?"),
        ([{"label": "x"}], r"objects\[0\]: has no points, boxes, mask or text"),
        ([{"point": [[1, 2]]}], "unknown entry 'point'. Did you mean 'points'?"),
        ([{"points": [1, 2]}], r"points\[0\]: expected 2 numbers for a picture or 3 for a volume, found 1"),
        ([{"points": [[1, 2, 3, 4]]}], r"points\[0\]: expected 2 numbers"),
        ([{"points": [[1, float("nan")]]}], r"points\[0\]"),
        ([{"points": [[1, True]]}], r"points\[0\]"),
        ([{"points": [[1, 2]], "point-labels": [1, 0]}], "has 1 points and 2 point-labels"),
        ([{"points": [[1, 2]], "point-labels": [2]}], "'point-labels' are 0 or 1"),
        ([{"boxes": [[1, 2, 3]]}], r"boxes\[0\]: expected 4 numbers for a picture or 6 for a volume"),
        ([{"boxes": [[9, 2, 3, 8]]}], "second corner must lie beyond the first along x, found 9 and 3"),
        ([{"boxes": [[1, 8, 3, 8]]}], "beyond the first along y, found 8 and 8"),
        ([{"boxes": [[1, 2, 9, 4, 5, 8]]}], "along k, found 9 and 8"),
        ([{"label": " ", "points": [[1, 2]]}], "'label' is a text that is not empty"),
        ([{"text": 3}], "'text' is a text"),
        ([{"mask": 3}], "'mask' is a file or"),
        ([{"mask": {"file": "m.png", "value": 0}}], "'mask' is a file or"),
        ([{"mask": {"file": "m.png", "valu": 1}}], "unknown entry 'valu'. Did you mean 'value'?"),
        ([{"space": "mm", "points": [[1, 2]]}], "'space' is one of grid, ras-mm, lps-mm, um, found 'mm'"),
        ({"cases": {"a": 3}}, "cases 'a': expected a list of objects, found 3"),
        ({"cases": []}, "'cases' maps names to lists of objects"),
        ({"objects": [3]}, r"objects\[0\]: expected an object, found 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(table, message) -> None:
    with pytest.raises(InputError, match=message):
        from_json(table)


def test_files_that_are_no_prompts(tmp_path) -> None:
    for name, content, message in (
        ("a.json", b"{", "is no JSON, line 1"), ("b.json", b"\xff\xfe", "cannot be read"), ("c.json", b"3", "found 3"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)
    with pytest.raises(InputError, match="does not exist, a prompt file was expected"):
        read(tmp_path / "none.json")


def test_python_values() -> None:
    prompts = make(point=(3, 4), points=np.array([[5, 6]]), labels=(1, 0), box=np.array([1, 2, 30, 40]), label="x")
    assert prompts.as_json()["objects"] == [
        {"label": "x", "points": [[3, 4], [5, 6]], "point-labels": [1, 0], "boxes": [[1, 2, 30, 40]]}
    ]
    assert make(point=(3, 4), labels=0).objects[0].points == (Point((3, 4), positive=False),)
    for arguments, message in (
        ({}, "the prompt is empty"),
        ({"box": (9, 2, 3, 8)}, "along x"),
        ({"box": (1, 2, 3)}, "expected 4 numbers"),
        ({"point": (1,)}, "expected 2 numbers"),
        ({"point": "ab"}, "expected 2 numbers"),
        ({"point": (1, 2), "labels": (1, 1)}, "has 1 points and 2 point-labels"),
    ):
        with pytest.raises(UsageError, match=message):
            make(**arguments)


def test_coerce_takes_what_callers_have(tmp_path) -> None:
    (tmp_path / "p.json").write_text('[{"points": [[1, 2]], "mask": "m.png"}]')
    found = coerce(str(tmp_path / "p.json"))
    assert found.objects[0].mask.path == tmp_path / "m.png"  # relative to the JSON file
    assert coerce(found) is found
    assert coerce(None) is None
    assert coerce({"objects": [{"points": [[1, 2]]}]}).kinds == {Prompt.POINT}
    with pytest.raises(UsageError, match="found int"):
        coerce(3)


def test_words_of_the_command_line(tmp_path) -> None:
    assert parse_point("12,8.5") == Point((12, 8.5))
    assert parse_point("-1,2,3:0") == Point((-1, 2, 3), positive=False)
    assert parse_box("1,2,30,40") == Box((1, 2), (30, 40))
    for text in ("12", "1,2,3,4", "1,2:2", "1,x", "", "1,2:", "nan,1"):
        with pytest.raises(UsageError, match="is no point. Write x,y"):
            parse_point(text)
    for text in ("1,2,3", "1,2,3,4,5", "a,b,c,d"):
        with pytest.raises(UsageError, match="is no box"):
            parse_box(text)
    with pytest.raises(UsageError, match="along x, found 9 and 3. A box is x0,y0,x1,y1, not a corner with width"):
        parse_box("9,2,3,8")
    (tmp_path / "p.json").write_text('[{"label": "object", "boxes": [[1, 2, 3, 4]]}, {"label": "b", "text": "b"}]')
    found = of_arguments(["1,2", "3,4:0"], [], [], [tmp_path / "p.json"])
    assert [item.label for item in found.objects] == ["object", "b"]  # the nameless ones are one object
    assert (len(found.objects[0].points), len(found.objects[0].boxes)) == (2, 1)
    assert of_arguments() is None
    with pytest.raises(UsageError, match="--mask is given 2 times"):
        of_arguments(masks=["a.png", "b.png"])


# --- on a case --------------------------------------------------------------------------------------------------------


def test_pixels_of_a_picture(picture) -> None:
    item = make(points=[(0, 0), (79, 59)], box=(10, 20, 80, 60)).on(picture).objects[0]
    assert [p.at for p in item.points] == [(0, 0), (79, 59)]
    assert item.boxes == (Box((10, 20), (80, 60)),)
    cut = make(box=(-5, 20, 100, 30)).on(picture).objects[0]
    assert cut.boxes == (Box((0, 20), (80, 30)),)  # what reaches over the edge is cut


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"point": (80, 5)}, r"slice.png: the point \(80, 5\) of 'object' lies outside of the 80 x 60 pixels"),
        ({"point": (5, -1)}, "outside of the 80 x 60 pixels"),
        ({"box": (90, 5, 99, 9)}, r"the box \(90, 5\) to \(99, 9\) of 'object' lies outside"),
        ({"box": (-9, 5, -2, 9)}, "lies outside"),
        ({"box": (-9, 5, 0, 9)}, "lies outside"),
        ({"point": (5, 5, 5)}, r"has 3 coordinates \(5, 5, 5\), 2 were expected \(x, y\)"),
        ({"box": (1, 1, 1, 5, 5, 5)}, "has 3 coordinates"),
        ({"point": (5, 5, 5), "space": "ras-mm"}, "is a picture, prompts in millimetres .* need a volume"),
    ],
)
def test_what_does_not_lie_in_a_picture(picture, prompt, message) -> None:
    with pytest.raises(InputError, match=message):
        make(**prompt).on(picture)


def test_voxels_and_millimetres_of_a_volume(volume) -> None:
    voxel = np.array([10.0, 20, 5])
    ras = AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]
    lps = ras * [-1, -1, 1]
    for place, space in ((voxel, "grid"), (ras, "ras-mm"), (lps, "lps-mm")):
        assert np.allclose(make(point=place, space=space).on(volume).objects[0].points[0].at, voxel)
    corners = AFFINE[:3, :3] @ np.array([[4.0, 9], [6, 8], [2, 3]]) + AFFINE[:3, 3:]
    box = make(box=[*corners[:, 0], *corners[:, 1]], space="ras-mm").on(volume).objects[0].boxes[0]
    assert np.allclose([box.low, box.high], [[4, 6, 2], [9, 8, 3]])  # x runs the other way in the file
    flat = make(box=(4, 6, 2, 9, 8, 2)).on(volume).objects[0].boxes[0]  # a box in one slice
    assert flat == Box((4, 6, 2), (9, 8, 2))
    with pytest.raises(InputError, match=r"lies outside of the 40 x 50 x 20 voxels"):
        make(point=(10, 20, 20)).on(volume)
    with pytest.raises(InputError, match=r"\[given as 500, 0, 0 mm\] of 'object' lies outside"):
        make(point=(500, 0, 0), space="lps-mm").on(volume)
    with pytest.raises(InputError, match=r"2 coordinates \(5, 5\), 3 were expected \(i, j, k\)"):
        make(point=(5, 5)).on(volume)


def test_masks(picture, volume, tmp_path) -> None:
    values = np.zeros((60, 80), np.uint8)
    values[10:20, 10:30], values[30:40, 5:9] = 1, 2
    Picture.fromarray(values).save(tmp_path / "m.png")
    one = from_json([{"mask": {"file": "m.png", "value": 2}}], folder=tmp_path).on(picture).objects[0].mask.array
    assert np.array_equal(one, values == 2)
    every = make(mask=tmp_path / "m.png").on(picture).objects[0].mask.array
    assert np.array_equal(every, values > 0)
    assert np.array_equal(make(mask=values).on(picture).objects[0].mask.array, values > 0)
    Picture.fromarray(values[:, :50]).save(tmp_path / "small.png")
    for mask, message in (
        (tmp_path / "small.png", "small.png, the mask of 'object', has the shape 60 x 50, the case has 60 x 80"),
        (tmp_path / "none.png", "does not exist, the mask of 'object' was expected there"),
        (np.zeros((60, 80)), "the mask of 'object' is empty"),
        (np.zeros((60, 80, 3)), "has the shape 60 x 80 x 3"),
    ):
        with pytest.raises(InputError, match=message):
            make(mask=mask).on(picture)
    with pytest.raises(InputError, match="is empty: no pixel of value 7"):
        from_json([{"mask": {"file": "m.png", "value": 7}}], folder=tmp_path).on(picture)
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    nibabel.Nifti1Image(np.ones((40, 50, 20), np.uint8), shifted).to_filename(tmp_path / "m.nii.gz")
    with pytest.raises(InputError, match="lies elsewhere in the patient. Resample it onto the case"):
        make(mask=tmp_path / "m.nii.gz").on(volume)


def test_objects_of_single_cases(picture, tmp_path) -> None:
    prompts = from_json({"cases": {"slice": [{"label": "a", "points": [[1, 2]]}], "b": [{"points": [[3, 4]]}]}})
    assert prompts.on(picture).labels == ("a",)
    other = Image(name="x", pixels=np.zeros((9, 9), np.uint8), source=Source(path=tmp_path / "b.png"))
    assert prompts.on(other).objects[0].points == (Point((3, 4)),)
    third = Image(name="c", pixels=np.zeros((9, 9), np.uint8))
    with pytest.raises(InputError, match="c: the prompts have no object for it. They have cases: slice, b"):
        prompts.on(third)


def test_a_model_refuses_kinds_that_it_does_not_take() -> None:
    prompts = make(box=(1, 2, 3, 4))
    prompts.demand([Prompt.BOX], "m")
    with pytest.raises(UsageError, match="'m' takes no box as a prompt. It takes point, text"):
        prompts.demand([Prompt.POINT, Prompt.TEXT], "m")
    with pytest.raises(UsageError, match="It takes no prompts at all"):
        prompts.demand([], "m")


def test_a_stamp_changes_with_the_prompts_and_their_files(tmp_path) -> None:
    (tmp_path / "m.png").write_bytes(b"one")
    first = stamp(make(point=(1, 2), mask=tmp_path / "m.png"))
    assert first == stamp(make(point=(1, 2), mask=tmp_path / "m.png"))
    assert first != stamp(make(point=(1, 3), mask=tmp_path / "m.png"))
    (tmp_path / "m.png").write_bytes(b"two")
    assert first != stamp(make(point=(1, 2), mask=tmp_path / "m.png"))
    assert stamp(make(mask=np.eye(3))) != stamp(make(mask=np.ones((3, 3))))


# --- through the platform ---------------------------------------------------------------------------------------------

POINTER = """
import attrs
import numpy as np
from omlab import Label, Model, Segmentation, hookimpl

class Session:
    def __init__(self, case):
        self.case = case
    def answer(self, context):
        labels = np.zeros(self.case.pixels.shape[:2], np.uint8)
        for value, item in enumerate(context.prompts.objects, 1):
            for point in item.points:
                labels[int(point.at[1]), int(point.at[0])] = value if point.positive else 0
            if item.mask is not None:
                labels[item.mask.array] = value
        names = [item.label for item in context.prompts.objects]
        return Segmentation(labels=labels * (context.options["size"] > 0),
                            structures=[Label(value=v, name=n) for v, n in enumerate(names, 1)])

class Pointer(Model):
    looked = 0
    def graphs(self, variant):
        return ()
    def open(self, case, context):
        Pointer.looked += 1
        return Session(case)
    def predict(self, case, context):
        return self.open(case, context).answer(context)

@hookimpl
def omlab_model(card):
    return Pointer(card)
"""
POINTER_MANIFEST = ("api = 1\n" + MODEL_TABLE.format(name="pointer")).replace(
    'inputs = ["volume"]', 'inputs = ["image"]'
) + 'prompts = ["point", "mask"]\noptions = [{ name = "size", type = "int", default = 1, help = "Size." }]\n'


@pytest.fixture
def pointer(install_plugin):
    return install_plugin("pointer", code=POINTER, manifest=POINTER_MANIFEST)


def _picture(path, shape=(30, 40)):
    Picture.fromarray(np.full(shape, 90, np.uint8)).save(path)
    return path


def test_prompts_of_the_command_line_reach_the_model(pointer, tmp_path, capsys) -> None:
    image, out = _picture(tmp_path / "a.png"), tmp_path / "out"
    arguments = ["run", "pointer", str(image), "-o", str(out), "--resume", "--json"]

    def row(*more):
        assert main([*arguments, *map(str, more)]) == 0
        return json.loads(capsys.readouterr().out)["cases"][0]

    assert row("--point", "3,4", "--point", "5,6", "--point", "5,6:0")["headline"] == "object 1 px"
    record = json.loads((out / "a" / "result.json").read_text())
    assert record["prompts"]["objects"] == [
        {"label": "object", "points": [[3, 4], [5, 6], [5, 6]], "point-labels": [1, 1, 0]}
    ]
    assert row("--point", "3,4", "--point", "5,6", "--point", "5,6:0")["status"] == "skipped"
    assert row("--point", "3,5")["status"] == "done"  # another prompt, another result
    mask = np.zeros((30, 40), np.uint8)
    mask[3:6, 3:9] = 255
    Picture.fromarray(mask).save(tmp_path / "m.png")
    assert row("--mask", tmp_path / "m.png")["headline"] == "object 18 px"
    assert row("--mask", tmp_path / "m.png")["status"] == "skipped"
    mask[6] = 255
    Picture.fromarray(mask).save(tmp_path / "m.png")
    assert row("--mask", tmp_path / "m.png")["status"] == "done"  # the file of the mask has changed


def test_a_prompt_file_for_many_cases(pointer, tmp_path, capsys) -> None:
    images = [_picture(tmp_path / f"{name}.png") for name in "abc"]
    table = {"cases": {"a": [{"label": "x", "points": [[3, 4]]}], "b.png": [{"label": "y", "points": [[99, 4]]}]}}
    (tmp_path / "p.json").write_text(json.dumps(table))
    arguments = ["run", "pointer", *map(str, images), "--prompts", str(tmp_path / "p.json"), "--json", "--resume"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 1
    a, b, c = json.loads(capsys.readouterr().out)["cases"]
    assert (a["status"], a["headline"]) == ("done", "x 1 px")
    assert "the point (99, 4) of 'y' lies outside of the 40 x 30 pixels" in b["cause"]
    assert "the prompts have no object for it" in c["cause"]
    table["cases"]["b.png"] = [{"label": "y", "points": [[9, 4]]}]
    (tmp_path / "p.json").write_text(json.dumps(table))
    main([*arguments, "-o", str(tmp_path / "out")])
    a, b, c = json.loads(capsys.readouterr().out)["cases"]
    assert (a["status"], b["status"], c["status"]) == ("skipped", "done", "failed")  # a's prompts are what they were


def test_a_box_that_is_none_fails_its_case_alone(pointer, tmp_path, capsys) -> None:
    images = [_picture(tmp_path / f"{name}.png") for name in "ab"]
    good, reversed_box = {"points": [[3, 4]]}, {"boxes": [[9, 4, 3, 8]]}
    for others in ([], [good]):
        table = {"objects": others, "cases": {"a": [good], "b": [reversed_box]}}
        (tmp_path / "p.json").write_text(json.dumps(table))
        arguments = ["run", "pointer", *map(str, images), "--prompts", str(tmp_path / "p.json"), "--json"]
        assert main([*arguments, "-o", str(tmp_path / "out")]) == 1
        rows = json.loads(capsys.readouterr().out)["cases"]
        assert [row["status"] for row in rows] == ["done", "failed"]
        assert "cases 'b'[0]: boxes[0]: its second corner must lie beyond the first along x" in rows[1]["cause"]
    joined = from_json({"cases": {"a": [good], "b": [reversed_box]}}).joined(make(point=(1, 2)))
    with pytest.raises(InputError, match="beyond the first along x"):
        joined.for_case("b.png", "b")
    assert len(joined.for_case("a").objects) == 2


def test_prompts_that_fit_no_case_are_wrong_usage(pointer, install_plugin, tmp_path, capsys) -> None:
    install_plugin("deaf", code=POINTER, manifest=POINTER_MANIFEST.replace('"pointer"', '"deaf"').replace(
        'prompts = ["point", "mask"]\n', ""))  # fmt: skip
    image = _picture(tmp_path / "a.png")
    for arguments, code, message in (
        (["pointer", image, "--box", "1,2,3,4"], 2, "'pointer' takes no --box. It takes --point, --mask"),
        (["deaf", image, "--point", "1,2"], 2, "'deaf' takes no --point. It takes no prompts: leave it out"),
        (["pointer", image, "--point", "1"], 2, "'1' is no point"),
        (["pointer", image, "--prompts", tmp_path / "none.json"], 1, "does not exist, a prompt file was expected"),
    ):
        assert main(["run", *map(str, arguments), "-o", str(tmp_path / "out")]) == code
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    for name, shown in (("pointer", True), ("deaf", False)):
        main(["run", name, "--help"])
        assert ("--point X,Y[:0|1]" in capsys.readouterr().out) == shown


def test_a_session_looks_once(pointer, tmp_path) -> None:
    model = omlab.load("pointer")
    session = model.open(_picture(tmp_path / "a.png"))
    looked = type(model.model).looked
    assert session(point=(3, 4)).mask("object")[4, 3]
    both = session([{"label": "x", "points": [[1, 1]]}], points=[(5, 6)], label="y")
    assert [s.name for s in both.structures] == ["x", "y"]
    assert session(point=(3, 4), size=0).counts() == {1: 0}
    assert type(model.model).looked == looked
    for arguments, error, message in (
        ({"box": (1, 2, 3, 4)}, UsageError, "takes no box"), ({"point": (99, 4)}, InputError, "outside"),
        ({"point": (3, 4), "sise": 1}, UsageError, "Did you mean 'size'"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            session(**arguments)


def test_a_model_without_sessions_says_so(install_plugin, tmp_path) -> None:
    code = POINTER.replace("    def open(", "    def look(").replace("self.open(", "self.look(")
    install_plugin("pointer", code=code, manifest=POINTER_MANIFEST)
    model = omlab.load("pointer")
    assert model(_picture(tmp_path / "a.png"), prompts=make(point=(3, 4))).counts() == {1: 1}
    with pytest.raises(UsageError, match="'pointer' has no sessions"):
        model.open(tmp_path / "a.png")


def test_values_are_immutable() -> None:
    prompts = Prompts(objects=[Object(points=[Point((1, 2))])])
    with pytest.raises(AttributeError):
        prompts.objects = ()


def test_prompts_are_drawn_on_volumes(volume, tmp_path) -> None:
    """A point lies at the same place of the picture however the file stores its axes, and near planes show it full."""
    from PIL import Image as Picture

    from omlab.geometry import Turn
    from omlab.results import Label, Segmentation
    from omlab.results.picture import draw

    def drawn(case, point, name: str, box=None) -> np.ndarray:
        labels = np.zeros(case.voxels.shape, np.uint8)
        result = Segmentation(labels=labels, structures=[Label(value=1, name="object")], geometry=case.geometry)
        asked = None if point is None else make(point=point, box=box).on(case)
        return np.asarray(Picture.open(draw(result, case, tmp_path / f"{name}.png", prompts=asked))).astype(int)

    place = [n // 3 for n in volume.voxels.shape]
    plain, marked = drawn(volume, None, "plain"), drawn(volume, place, "marked")
    assert (plain != marked).any()
    boxed = drawn(volume, place, "boxed", [0, 0, 0, *(n - 1 for n in volume.voxels.shape)])
    assert (boxed != marked).sum() > 50
    turn = Turn.to(volume.geometry, "PSR")
    other = attrs.evolve(volume, voxels=np.ascontiguousarray(turn.apply(volume.voxels)), geometry=turn.target)
    at = [place[a] for a in turn.order]
    at = [n - 1 - v if f else v for v, n, f in zip(at, turn.target.shape, turn.flipped, strict=True)]
    # The middle of an even number of voxels is another one from the other side, so a plane may differ; the marks not.
    there = [np.argwhere((image != without).any(axis=2)).mean(axis=0) for image, without in (
        (marked, plain), (drawn(other, at, "turned"), drawn(other, None, "turned-plain")),
    )]  # fmt: skip
    assert np.abs(there[0] - there[1]).max() < 15
