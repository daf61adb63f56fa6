"""Pre-training data: slides that are cut, pairs that belong together, batches for each stage."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

pytest.importorskip("cv2")

from omlab.cases import slide as slides
from omlab.cli.main import main
from omlab.errors import InputError, UsageError
from omlab_pathoduet import cutting, pairs
from omlab_pathoduet.cutting import Rules
from omlab_sdk.contract import pyramids

SIZE = (16384, 12288)


def _left(x, y):
    """Tissue on the left half: of 4 x 3 regions, two columns."""
    return np.broadcast_to(x < 8192, np.broadcast(x, y).shape)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return pyramids.write(tmp_path_factory.mktemp("slide") / "a.tif", SIZE, _left)


def test_tissue_is_saturated_and_not_a_speck() -> None:
    rgb = np.full((100, 100, 3), 240, np.uint8)
    rgb[10:20, 10:20] = [150, 60, 140]
    rgb[50:57, 50:59] = [150, 60, 140]  # 63 pixels
    found = cutting.tissue(rgb)
    assert found.sum() == 100
    assert found[10:20, 10:20].all()
    assert not cutting.tissue(np.full((9, 9, 3), 240, np.uint8)).any()


def test_brightness_counts_the_opacity() -> None:
    assert cutting.brightness(np.zeros((2, 2, 3), np.uint8)) == 63.75
    assert cutting.brightness(np.full((2, 2, 3), 255, np.uint8)) == 255


def test_regions_lie_on_tissue_and_patches_in_them(path: Path) -> None:
    slide = slides.read(path)
    rules = Rules()
    assert cutting.cells(slide, rules).tolist() == [[c, r] for r in range(3) for c in range(2)]
    asked = []

    class _Watched:
        levels, mpp, magnification, details, warnings = slide.levels, None, None, {}, []

        def read(self, level, x, y, width, height):
            asked.append((level, x, y, width, height))
            return slide.pixels_from.read(level, x, y, width, height)

    found = list(cutting.regions(slides.of_pixels(_Watched(), "a.tif"), rules, seed=3, readers=1))
    assert sorted(region.place for region in found) == [(x, y) for x in (0, 4096) for y in (0, 4096, 8192)]
    assert [region.place for region in found] != sorted(region.place for region in found)
    assert all(region.image.shape == (256, 256, 3) for region in found)
    assert {number for region in found for number in region.patches} == set(range(9))
    of_level_1 = [box for box in asked if box[0] == 1]
    assert all(box[3:] == (1024, 1024) for box in of_level_1)
    for level, x, y, width, height in asked:
        if level == 0:
            assert (width, height) == (256, 256)
            assert 128 <= x % 4096 <= 4096 - 384
            assert 128 <= y % 4096 <= 4096 - 384


def test_threads_do_not_change_what_is_drawn(path: Path) -> None:
    slide = slides.read(path)
    one, four = (list(cutting.regions(slide, Rules(regions=4), seed=5, readers=n)) for n in (1, 4))
    other = list(cutting.regions(slide, Rules(regions=4), seed=6))
    assert len(one) == len(four) == 4
    for a, b in zip(one, four, strict=True):
        assert a.place == b.place
        for number in a.patches:
            np.testing.assert_array_equal(a.patches[number], b.patches[number])
    assert any(a.place != b.place for a, b in zip(one, other, strict=True))


def test_bright_ones_are_left_out(path: Path) -> None:
    slide = slides.read(path)
    seen = [cutting.brightness(region.image) for region in cutting.regions(slide)]
    assert not list(cutting.regions(slide, Rules(region_limit=min(seen) - 10)))
    assert not any(region.patches for region in cutting.regions(slide, Rules(patch_limit=60)))
    with pytest.raises(InputError, match="too bright"):
        cutting.write(slide, path.parent, Rules(region_limit=60))


def test_what_cannot_be_cut_is_told(tmp_path: Path) -> None:
    flat = slides.read(
        pyramids.write(tmp_path / "flat.tif", (4096, 4096), lambda x, y: _left(4 * x, y), downsamples=(1,))
    )
    with pytest.raises(InputError, match="has no level 1 .* --level 0"):
        cutting.cells(flat, Rules())
    assert len(list(cutting.regions(flat, Rules(level=0, regions=3)))) == 3
    small = slides.read(pyramids.write(tmp_path / "small.tif", (2048, 2048), _left))
    with pytest.raises(InputError, match="level 1 has 512 x 512 pixels"):
        cutting.cells(small, Rules())
    glass = slides.read(pyramids.write(tmp_path / "glass.tif", SIZE, lambda x, y: _left(x + 1e6, y)))
    with pytest.raises(InputError, match="no tissue"):
        cutting.cells(glass, Rules())
    with pytest.raises(UsageError, match="does not fit"):
        cutting.cells(flat, Rules(level=0, side=500))
    with pytest.raises(UsageError, match="at most 10 patches"):
        Rules(patches=11)
    with pytest.raises(UsageError, match="regions is at least 1"):
        Rules(regions=0)


def test_from_the_command_line(path: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.tif").write_bytes(b"II*\0junk")
    out = tmp_path / "cut"
    command = ["pathoduet", "cut", str(path), str(tmp_path / "bad.tif"), "-o", str(out), "--regions", "2"]
    assert main(command) == 1
    told = capsys.readouterr()
    assert "1 slides cut, 1 failed" in told.out
    assert "failed bad: bad.tif" in told.err
    with open(out / "slides.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    seen = [(row["slide"], row["status"], row["regions"]) for row in rows]
    assert seen == [("a", "done", "2"), ("bad", "failed", "")]
    found = pairs.bridge(out)
    assert len(found) == int(rows[0]["patches"])
    assert {region.name for _, region in found} == {"a_0.png", "a_1.png"}
    assert all(pairs.read(file).shape == (256, 256, 3) for pair in found for file in pair)
    stamp = found[0][0].stat().st_mtime_ns
    assert main(command) == 2
    assert "were cut before" in capsys.readouterr().err
    assert main([*command, "--resume", "--level", "0"]) == 2
    assert "not of regions=2 patches=9 level=0" in capsys.readouterr().err
    pyramids.write(tmp_path / "bad.tif", SIZE, _left)
    assert main([*command, "--resume"]) == 0
    assert "2 slides cut, 0 failed" in capsys.readouterr().out
    assert found[0][0].stat().st_mtime_ns == stamp
    found[0][1].unlink()
    with pytest.raises(InputError, match="patches have no region, first a_0_"):
        pairs.bridge(out)


def _tile(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(value).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Pillow.fromarray(picture).save(path)


def test_stains_of_the_same_place(tmp_path: Path) -> None:
    for number in range(3):
        for stain in ("HE", "IHC"):
            _tile(tmp_path / "bci" / stain / "train" / f"{number}.png", number)
    found = pairs.bci(tmp_path / "bci")
    assert [(he.parts[-3], he.name == ihc.name, ihc.parts[-3]) for he, ihc in found] == [("HE", True, "IHC")] * 3
    (tmp_path / "bci/IHC/train/1.png").unlink()
    with pytest.raises(InputError, match=r"IHC.train: lacks 1\.png"):
        pairs.bci(tmp_path / "bci")
    with pytest.raises(InputError, match="missing or has no PNG"):
        pairs.bci(tmp_path)
    for stain in ("HE", "CD8", "KI67"):
        for number in range(2):
            _tile(tmp_path / "hyreco" / stain / "7" / f"7_{number}.png", number)
    found = pairs.hyreco(tmp_path / "hyreco")
    assert [ihc.relative_to(tmp_path / "hyreco").as_posix() for _, ihc in found] == [
        "CD8/7/7_0.png", "CD8/7/7_1.png", "KI67/7/7_0.png", "KI67/7/7_1.png",
    ]  # fmt: skip
    assert {he.relative_to(tmp_path / "hyreco").parts[0] for he, _ in found} == {"HE"}
    (tmp_path / "hyreco/HE/7/7_1.png").unlink()
    with pytest.raises(InputError, match="there is no HE tile"):
        pairs.hyreco(tmp_path / "hyreco")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_learns_from_files(stage: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from omlab_pathoduet.network import VisionTransformer
    from omlab_pathoduet.pretraining import Bridge, CrossStain, MoCo

    for number in range(5):
        _tile(tmp_path / "patch" / f"s_{number}_0.png", number)
        _tile(tmp_path / "region" / f"s_{number}.png", 9 + number)
    batches = pairs.ViewBatches(pairs.bridge(tmp_path), pairs.STAGES[stage], 2, side=32, seed=1)
    assert len(batches) == 2
    batch, again, later = batches.batch(0, 1), batches.batch(0, 1), batches.batch(1, 1)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(batch, later, strict=True))
    network = {1: MoCo, 2: Bridge, 3: CrossStain}[stage](
        lambda: VisionTransformer(img_size=32, embed_dim=24, depth=1, num_heads=2, global_pool="avg"), dim=8, mlp_dim=16
    )
    network(*batch).backward()
    assert network.base_encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    with pytest.raises(InputError, match="at least 2 and at most 5"):
        pairs.ViewBatches(pairs.bridge(tmp_path), pairs.STAGES[stage], 6)
    (tmp_path / "patch" / "s_0_0.png").write_bytes(b"junk")
    with pytest.raises(InputError, match="s_0_0.png: is missing or damaged"):
        for index in range(2):
            for epoch in range(4):
                batches.batch(epoch, index)
