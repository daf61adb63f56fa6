"""The contract of a plugin, executable: ``omlab check PLUGIN``, or the same as tests (:mod:`omlab_sdk.pytest_plugin`).

Every check is a function of a :class:`Subject`; it returns a sentence on what it saw, raises :class:`Broken` with what
is wrong and how to mend it, or :class:`Skipped` with why it could not look.

Networks are proved in the small size that a model gives for it (:meth:`omlab.model.Model.small`): the same code, so
that a check takes seconds; ``omlab check PLUGIN --full`` takes the published size. That every published size can be
built and gives the shapes that its graphs declare is checked always, with tensors that hold no numbers.
"""

from __future__ import annotations

from omlab_sdk.contract.base import Broken, Check, Finding, Skipped, Subject
from omlab_sdk.contract.run import CHECKS, check_plugin, checks_for, run_checks, subject_of

__all__ = [
    "CHECKS",
    "Broken",
    "Check",
    "Finding",
    "Skipped",
    "Subject",
    "check_plugin",
    "checks_for",
    "run_checks",
    "subject_of",
]
