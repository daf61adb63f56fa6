"""Write the cases and references of a dataset as plain files, for tools that want paths."""

from __future__ import annotations

import shutil
from pathlib import Path

from omlab.dataset import BoundDataset
from omlab.errors import OutputError
from omlab.files import whole
from omlab.running import prepare_folder


def write_cases(dataset: BoundDataset, folder: Path) -> dict[str, Path]:
    """Write ``<case>/scan.*`` (a copy of the file as it is) and ``<case>/reference.*`` below ``folder``.

    Returns ``"<case>/scan"`` and ``"<case>/reference"`` -> path. Raises :class:`omlab.errors.OutputError`.
    """
    from omlab.results import write

    prepare_folder(folder)
    written: dict[str, Path] = {}
    for item in dataset.items():
        target = folder / item.name.replace("/", "_")
        case = item.case()
        source = case.source.path
        if source is None or not source.is_file():
            raise OutputError(f"case '{item.name}' is not a single file and cannot be copied")
        scan = target / ("scan" + "".join(source.suffixes[-2:] if source.suffix == ".gz" else source.suffixes[-1:]))
        try:
            with whole(scan) as temporary:
                shutil.copyfile(source, temporary)
        except OSError as error:
            raise OutputError(f"{scan} cannot be written: {error.strerror}", remedy="Name another folder") from None
        written[f"{item.name}/scan"] = scan
        truth = item.truth()
        if truth is not None:
            files = write(truth, case, target, model_name="reference", model_version=dataset.dataset.card.version)
            written |= {f"{item.name}/{kind}": path for kind, path in files.items()}
    return written
