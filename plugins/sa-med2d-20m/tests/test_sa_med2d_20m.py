"""Names, the index and its faults, and cases for promptable models."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import omlab
from omlab.cli.main import main
from omlab.datasets import gather, verify
from omlab.errors import InputError
from omlab_sa_med2d_20m import index as index_module
from omlab_sa_med2d_20m.index import Wanted, open_index, pairs
from omlab_sa_med2d_20m.names import parse, parse_object

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "sam_med2d_demo"
#: Image -> its masks (class, instance); the data sets are called as in the class mapping below.
IMAGES = {
    "ct_00--AMOS2022--amos_0004--z_0075": [(6, 0), (6, 1), (8, 0)],
    "ct_00--AMOS2022--amos_0004--z_0076": [(6, 0), (30, 0)],
    "mr_t1--BraTS2021--BraTS2021_00218--z_0141": [(1, 0)],
    "mr_t2--BraTS2021--BraTS2021_00218--z_0141": [(1, 0)],
    "x_ray--covid_19_ct_cxr--16660_5_1--2d_none": [],
    "fundus_photography--gamma ä--0001--2d_none": [(1, 0)],
}
CLASSES = {
    "AMOS2022": {"liver": "0006", "aorta": "0008", "union_liver_tumour": "0030"},
    "BraTS2021": {"core": "0001"},
    "covid_19_ct_cxr": {"lung": "0001"},
    "gamma ä": {"disc": "0001"},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "SAMed2Dv1"
    (folder / "images").mkdir(parents=True), (folder / "masks").mkdir()
    table = {}
    for number, (stem, objects) in enumerate(IMAGES.items()):
        Pillow.fromarray(np.full((20, 30), 30 * number, np.uint8)).save(folder / "images" / f"{stem}.png")
        names = []
        for of, instance in objects:
            labels = np.zeros((20, 30), np.uint8)
            labels[2 + 8 * instance : 8 + 8 * instance, of % 20 : of % 20 + 5] = 255 if number % 2 else 1
            names.append(f"masks/{stem}--{of:04d}_{instance:03d}.png")
            Pillow.fromarray(labels).save(folder / names[-1])
        table[f"images/{stem}.png"] = names
    (folder / "SAMed2D_v1.json").write_text(json.dumps(table, indent=1), "utf-8")
    (folder / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(CLASSES), "utf-8")
    return folder


def test_names_follow_the_rules() -> None:
    name = parse("mr_t1--BraTS2021--BraTS2021_00218--z_0141")
    assert (name.modality, name.sequence, name.axis, name.index) == ("mr", "t1", "z", 141)
    assert name.group == "BraTS2021/BraTS2021_00218"
    whole = [parse(f"{prefix}--a--b--2d_none") for prefix in ("x_ray", "fundus_photography", "ct_00", "endoscopy_00")]
    assert [(n.modality, n.sequence) for n in whole] == [
        ("x_ray", ""), ("fundus_photography", ""), ("ct", ""), ("endoscopy", ""),
    ]  # fmt: skip
    assert parse_object("0011_000") == (11, 0)


@pytest.mark.parametrize(
    "stem", ["ct--a--b", "ct_00--a--b--w_0001", "ct_00----b--z_0001", "ct_00--a--b--z_0001--x", ""]
)
def test_names_that_break_the_rules_are_told(stem: str) -> None:
    with pytest.raises(ValueError, match=r"expected|is no plane"):
        parse(stem)


@pytest.mark.parametrize("chunk", [7, 40, 200, 1 << 20])
def test_a_large_object_is_read_in_pieces_whatever_its_names_hold(chunk: int) -> None:
    table = {f'images/{n} ], "x": [ {{}}.png': [f"masks/{n}], [{m}.png" for m in range(n % 4)] for n in range(30)}
    for text in (json.dumps(table), json.dumps(table, indent=3), "\ufeff" + json.dumps(table, ensure_ascii=False)):
        found = [pair for some in pairs(io.BytesIO(text.encode()), chunk=chunk) for pair in some]
        assert found == list(table.items())
    assert [pair for some in pairs(io.BytesIO(b"{}"), chunk=chunk) for pair in some] == []


@pytest.mark.parametrize("text", [b"", b"[1]", b'{"a": ["b"', b'{"a": ["b"], "c": ["d"]', b'{"a": ["b"] "c": ["d"]}'])
def test_a_damaged_or_half_downloaded_index_is_told(text: bytes, root: Path) -> None:
    (root / "SAMed2D_v1.json").write_bytes(text)
    with pytest.raises(InputError, match="SAMed2D_v1.json: "):
        list(omlab.load_dataset(f"sa-med2d-20m:{root}").items())
    assert main(["dataset", "verify", f"sa-med2d-20m:{root}"]) == 1


def test_cases_have_structures_prompts_and_groups(root: Path) -> None:
    items = list(omlab.load_dataset(f"sa-med2d-20m:{root}").items())
    assert [item.name for item in items] == list(IMAGES)
    assert items[0].group == items[1].group == "AMOS2022/amos_0004"
    truth = items[0].truth()
    assert [s.name for s in truth.structures] == ["liver", "aorta"]
    assert truth.counts() == {1: 12 + 30, 2: 30}  # the aorta, the later one, lies over most of the upper liver
    assert items[0].asked() == [
        {"label": "liver", "boxes": [[6, 2, 11, 8], [6, 10, 11, 16]]}, {"label": "aorta", "boxes": [[8, 2, 13, 8]]},
    ]  # fmt: skip
    assert [s.name for s in items[1].truth().structures] == ["liver"]  # the union is left out
    assert items[4].truth() is None and items[4].asked() is None
    assert items[5].truth().structures[0].name == "disc"


def test_filters_units_unions_and_parts(root: Path) -> None:
    def names(text: str, **more: object) -> list[str]:
        return [item.name for item in omlab.load_dataset(f"sa-med2d-20m{text}:{root}", **more).items()]

    stems = list(IMAGES)
    assert names(",modality=mr") == stems[2:4] and names(",modality=mr_t2") == stems[3:4]
    assert names(",modality=ct,modality=x_ray") == [*stems[:2], stems[4]]
    assert names(",source=gamma ä") == stems[5:]
    assert names(",unit=mask,source=AMOS2022") == [
        f"{stems[0]}--0006_000", f"{stems[0]}--0006_001", f"{stems[0]}--0008_000", f"{stems[1]}--0006_000",
    ]  # fmt: skip
    assert len(names(",unit=mask,union=yes,source=AMOS2022")) == 5
    assert omlab.load_dataset(f"sa-med2d-20m,unit=mask,union=yes:{root}").size() == 8
    parts = [names("", part=(n, 4)) for n in range(4)]
    assert parts == [stems[n::4] for n in range(4)]
    with pytest.raises(InputError, match="has no modality 'mri'"):
        names(",modality=mri")


def test_parts_go_on_over_blocks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "BLOCK", 4)
    for count in (1, 2, 3, 5, 7):
        for n in range(count):
            found = [i.name for i in omlab.load_dataset(f"sa-med2d-20m:{root}", part=(n, count)).items()]
            assert found == list(IMAGES)[n::count]


def test_the_index_is_kept_until_the_file_changes_and_mended_when_damaged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = root / "SAMed2D_v1.json", tmp_path / "cache"
    first = open_index(path, cache)
    assert (first.images, first.masks) == (6, 8)
    assert first.count(Wanted(modalities=("ct",))) == (2, 5)

    def never(*arguments: object) -> None:
        raise AssertionError("built again")

    build = index_module._build
    monkeypatch.setattr(index_module, "_build", never)
    assert open_index(path, cache).images == 6
    monkeypatch.setattr(index_module, "_build", build)
    (first.folder / "objects.bin").write_bytes(b"1")
    assert open_index(path, cache).masks == 8
    table = json.loads(path.read_text("utf-8"))
    del table[f"images/{next(iter(IMAGES))}.png"]
    path.write_text(json.dumps(table), "utf-8")
    assert open_index(path, cache).images == 5
    monkeypatch.setattr(index_module, "pairs", lambda file: iter([1 / 0]))
    path.write_text("{}")
    with pytest.raises(ZeroDivisionError):
        open_index(path, cache)
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [first.folder.name]  # nothing half done is left


def test_verify_tells_what_is_odd_missing_or_empty(root: Path) -> None:
    path = root / "SAMed2D_v1.json"
    table = json.loads(path.read_text("utf-8"))
    stems = list(IMAGES)
    table["images/ct_00--AMOS2022--b--q_1.png"] = []
    table[f"images/{stems[4]}.png"] = [f"masks/{stems[0]}--0006_000.png", f"masks/{stems[4]}--6_000.png"]
    path.write_text(json.dumps(table)[:-1] + f', "images/{stems[5]}.png": []}}', "utf-8")
    (root / "images" / f"{stems[2]}.png").unlink()
    Pillow.fromarray(np.zeros((20, 30), np.uint8)).save(root / "masks" / f"{stems[3]}--0001_000.png")
    mapping = {key: value for key, value in CLASSES.items() if key != "covid_19_ct_cxr"}
    (root / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(mapping), "utf-8")
    found: dict[str, list[str]] = {}
    for problem in verify(omlab.load_dataset(f"sa-med2d-20m:{root}")).problems:
        found.setdefault(problem.kind, []).append(problem.what)
    assert len(found["layout"]) == 3 and "'q_1' is no plane" in found["layout"][0] + found["layout"][2]
    assert "1 images are there twice" in found["duplicate"]
    assert len(found["missing"]) == 1
    assert any("is empty" in what for what in found["reference"])
    assert any("covid_19_ct_cxr" in what for what in found["reference"])


def test_show_counts_on_the_index(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bound = omlab.load_dataset(f"sa-med2d-20m:{root}")
    tables = gather(bound)[0].tables
    assert tables["Modalities"]["ct"] == "2 images, 5 masks" and tables["Data sets"]["BraTS2021"] == "2 images, 2 masks"
    assert main(["dataset", "show", f"sa-med2d-20m:{root}", "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "cases.png").is_file() and "x_ray" in capsys.readouterr().out


def test_real_images_and_masks_in_this_layout(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the folder of real images beside the project")
    root, stem = tmp_path / "SAMed2Dv1", "ct_00--Totalsegmentator_dataset--s0619--z_0032"
    (root / "images").mkdir(parents=True), (root / "masks").mkdir()
    shutil.copy(SHARED / "images" / "s0619_32.png", root / "images" / f"{stem}.png")
    classes: dict[str, int] = {}
    masks = []
    for path in sorted((SHARED / "masks").glob("s0619_32_*.png")):
        name, _, instance = path.stem.removeprefix("s0619_32_").rpartition("_")
        masks.append(f"masks/{stem}--{classes.setdefault(name, len(classes) + 1):04d}_{instance}.png")
        shutil.copy(path, root / masks[-1])
    (root / "SAMed2D_v1.json").write_text(json.dumps({f"images/{stem}.png": masks}))
    mapping = {"Totalsegmentator_dataset": {name: f"{value:04d}" for name, value in classes.items()}}
    (root / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(mapping))
    bound = omlab.load_dataset(f"sa-med2d-20m:{root}")
    assert verify(bound).whole
    (item,) = bound.items()
    assert item.truth().labels.shape == (155, 225) and len(item.truth().structures) == 6
    assert len(next(o for o in item.asked() if o["label"] == "hip_left")["boxes"]) == 2


def test_masks_of_different_sizes_are_refused(root: Path) -> None:
    item = next(omlab.load_dataset(f"sa-med2d-20m:{root}").items())
    Pillow.fromarray(np.ones((5, 5), np.uint8)).save(item.files[2])
    with pytest.raises(InputError, match=r"has the shape \(5, 5\)"):
        item.truth()
