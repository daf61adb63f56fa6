"""Where things are kept, from the environment, read once and passed down as a value.

=====================  ====================================================================================
``OMLAB_HOME``         root of everything that omlab keeps (default: the system's cache folder for ``omlab``)
``OMLAB_WEIGHTS``      further roots with weights, searched first and in order, never written to; joined by the
                       system's path separator
``OMLAB_DATASETS``     further roots with datasets, each in a folder of its name, searched first; joined likewise
``OMLAB_OFFLINE``      ``1``: never open a connection, whatever is asked
=====================  ====================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs


@attrs.frozen
class Settings:
    """Folders and switches in force.

    Attributes
    ----------
    home : root of what omlab writes for itself.
    shared_roots : read-only roots of fetched files, searched before ``home``.
    offline : no connection may be opened.
    dataset_roots : folders with a folder for each dataset, searched before ``home``.
    """

    home: Path
    shared_roots: tuple[Path, ...] = ()
    offline: bool = False
    dataset_roots: tuple[Path, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings that the environment names."""
        environment = os.environ if environment is None else environment
        named = environment.get("OMLAB_HOME")
        if named:
            home = Path(named).expanduser()
        else:
            from platformdirs import user_cache_path

            home = user_cache_path("omlab", appauthor=False)

        def roots(variable: str) -> tuple[Path, ...]:
            return tuple(Path(p).expanduser() for p in environment.get(variable, "").split(os.pathsep) if p)

        offline = environment.get("OMLAB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}
        return cls(home, roots("OMLAB_WEIGHTS"), offline, roots("OMLAB_DATASETS"))

    @property
    def datasets_root(self) -> Path:
        """Where datasets that are obtained by hand are looked for last."""
        return self.home / "datasets"

    @property
    def all_dataset_roots(self) -> tuple[Path, ...]:
        """Where the folder of a dataset is looked for, in order."""
        return (*self.dataset_roots, self.datasets_root)

    @property
    def assets_root(self) -> Path:
        """Where fetched files go."""
        return self.home / "assets"

    @property
    def engines_root(self) -> Path:
        """Where built engines go."""
        return self.home / "engines"

    @property
    def consents_file(self) -> Path:
        """Which licences the user accepted, and when."""
        return self.home / "consents.json"

    @property
    def failures_file(self) -> Path:
        """Plugins whose import failed, so that ``omlab list`` can say so without importing them."""
        return self.home / "plugin-failures.json"

    @property
    def manifests_file(self) -> Path:
        """Parsed manifests of plugins, so that a start reads only those that have changed."""
        return self.home / "manifests.json"
