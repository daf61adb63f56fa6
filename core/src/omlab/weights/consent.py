"""Licences that the user accepted: recorded once, and replayable on another machine."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable

import attrs

from omlab.cards import Licence
from omlab.errors import ConsentNeeded
from omlab.files import write_text
from omlab.settings import Settings


@attrs.frozen
class Consents:
    """The record of accepted licences."""

    settings: Settings

    def read(self) -> dict[str, dict[str, str]]:
        """``owner`` -> {"licence", "accepted"}; empty where nothing was accepted yet."""
        try:
            found = json.loads(self.settings.consents_file.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConsentNeeded(
                f"{self.settings.consents_file} cannot be read: {error}", remedy="Delete it; you will be asked again"
            ) from None
        return found if isinstance(found, dict) else {}

    def given(self, owner: str, licence: Licence) -> bool:
        """Did the user accept this licence for this model or dataset?"""
        return self.read().get(owner, {}).get("licence") == licence.spdx

    def give(self, owner: str, licence: Licence) -> None:
        """Record that the user accepted."""
        consents = self.read()
        accepted = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        consents[owner] = {"licence": licence.spdx, "accepted": accepted}
        write_text(self.settings.consents_file, json.dumps(consents, indent=1, sort_keys=True))

    def demand(
        self, owner: str, licence: Licence, accepted: tuple[str, ...], ask: Callable[[str], bool] | None
    ) -> None:
        """Go on only with the user's consent. Raises :class:`omlab.errors.ConsentNeeded`.

        Parameters
        ----------
        accepted : SPDX ids that the user named in this call.
        ask : puts a question to the user; ``None`` where nobody can answer.
        """
        if not licence.consent or self.given(owner, licence):
            return
        terms = f"{licence.spdx}" + (f" ({licence.url})" if licence.url else "")
        note = f" {licence.note}." if licence.note else ""
        if licence.spdx in accepted or (
            ask is not None and ask(f"The files of '{owner}' are under {terms}.{note} Do you accept these terms?")
        ):
            self.give(owner, licence)
            return
        raise ConsentNeeded(
            f"the files of '{owner}' are under {terms}, which must be accepted first",
            remedy=f"Read the terms, then: omlab pull {owner} --accept-licence {licence.spdx}",
        )
