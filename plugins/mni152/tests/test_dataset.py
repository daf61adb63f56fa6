"""The dataset on made files of the same kind, and its card against what lies in the wheel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omlab.cases import Volume
from omlab.geometry import Geometry
from omlab.plugins import Registry
from omlab.results.nifti import write_array
from omlab.vocabulary import Kind
from omlab_mni152.dataset import Template

GEOMETRY = Geometry((4, 5, 6), np.diag([1.0, 1.0, 1.0, 1.0]))


def _card(name: str):
    return Registry.discover().card(Kind.DATASET, name)


def _file(folder: Path, name: str, values: np.ndarray) -> Path:
    write_array(values.astype(np.uint8), GEOMETRY, folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def test_the_template_is_its_own_mask(tmp_path: Path) -> None:
    values = np.zeros(GEOMETRY.shape)
    values[1:3, 1:4, 2:5] = 100
    (item,) = Template(_card("mni152")).items({"t1": _file(tmp_path, "t1", values)})
    case, reference = item.read(), item.reference()
    assert isinstance(case, Volume)
    np.testing.assert_array_equal(reference.labels, values > 0)
    assert reference.geometry.same_grid(case.geometry)
    assert [s.name for s in reference.structures] == ["brain"]


def test_tissue_is_the_likelier_of_the_two(tmp_path: Path) -> None:
    grey, white = np.zeros(GEOMETRY.shape), np.zeros(GEOMETRY.shape)
    grey[0, 0, :4] = (200, 128, 127, 60)
    white[0, 0, :4] = (10, 127, 128, 60)
    files = {
        "t1": _file(tmp_path, "t1", grey),
        "grey": _file(tmp_path, "g", grey),
        "white": _file(tmp_path, "w", white),
    }
    (item,) = Template(_card("mni152-tissue")).items(files)
    np.testing.assert_array_equal(item.reference().labels[0, 0, :4], (1, 1, 2, 0))


@pytest.mark.parametrize("name", ["mni152", "mni152-tissue"])
def test_other_splits_are_empty(name: str) -> None:
    assert list(Template(_card(name)).items({}, split="train")) == []
