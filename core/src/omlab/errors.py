"""Errors that a person can act on.

Every error that omlab raises on purpose is an :class:`OmlabError`: one line that names the object, what was
found and what was expected, and, where there is one, the command or step that mends it. The command line
prints ``error: <message>. <remedy>`` without a traceback and leaves with ``exit_code``; a batch turns it into
a row.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class OmlabError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    message : one line that names the object, what was found and what was expected; no full stop at the end.
    remedy : what the reader can do about it, as a sentence or a command.
    """

    exit_code = 1
    #: Stable identifier of the kind of error, for machine-readable rows.
    code = "error"

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


class UsageError(OmlabError):
    """The call itself is wrong: an unknown name, an option that does not fit."""

    exit_code = 2
    code = "usage"


class UnknownName(UsageError):
    """No contribution has this name; the remedy lists near ones."""

    code = "unknown-name"


class InputError(OmlabError):
    """A file or case cannot be read, or is not what the model takes."""

    code = "input"


class OutputError(OmlabError):
    """A result cannot be written."""

    code = "output"


class PluginError(OmlabError):
    """A plugin is broken: import, manifest, name clash, API version."""

    code = "plugin"


class WeightsError(OmlabError):
    """A weights or dataset file is missing, damaged or of something else."""

    code = "weights"


class OfflineError(WeightsError):
    """A file is not here and fetching was not allowed or the network does not answer."""

    code = "offline"


class ConsentNeeded(WeightsError):
    """The licence of a file must be accepted first."""

    code = "consent"


class EngineError(OmlabError):
    """No engine could be built, admitted or loaded."""

    code = "engine"


class MissingDependency(OmlabError):
    """An optional library is not installed; the remedy is the exact command."""

    code = "missing-dependency"


class Cancelled(OmlabError):
    """The caller cancelled a run."""

    code = "cancelled"


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def require(module: str, *, needed_for: str, install: str) -> ModuleType:
    """Import an optional library, or say which command installs it.

    Parameters
    ----------
    module : import name, ``"openvino"``.
    needed_for : what wants it, ``"the OpenVINO engine"``.
    install : argument of ``pip install``, ``"omlab[openvino]"``.

    Raises
    ------
    MissingDependency
        The library is not installed. An import that fails inside an installed library is not hidden.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise MissingDependency(
                f"{needed_for} needs the Python package '{error.name}', which is not installed",
                remedy=f"Install it with: pip install '{install}'",
            ) from None
        raise
