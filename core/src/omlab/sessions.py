"""Sessions: a case that a promptable model has looked at, and that can be asked again and again.

>>> model = omlab.load("sam-med2d")                       # doctest: +SKIP
>>> session = model.open("slice.png")                     # doctest: +SKIP
>>> session(box=(30, 40, 120, 150)).mask("object").sum()  # doctest: +SKIP
4711
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from omlab.model import Context, Session
from omlab.prompts import UNNAMED, coerce, make

if TYPE_CHECKING:
    from omlab.cases import Case
    from omlab.loading import LoadedModel
    from omlab.results import Result


class OpenCase:
    """A case under a model's eyes. Made by :meth:`omlab.loading.LoadedModel.open`.

    Attributes
    ----------
    case : what was looked at.
    """

    def __init__(self, model: LoadedModel, case: Case, session: Session, context: Context) -> None:
        self.case = case
        self._model, self._session, self._context = model, session, context

    def __call__(
        self,
        prompts: Any = None,
        *,
        point: Any = None,
        points: Any = (),
        labels: Any = None,
        box: Any = None,
        boxes: Any = (),
        mask: Any = None,
        text: str = "",
        label: str = UNNAMED,
        **options: Any,
    ) -> Result:
        """Answer prompts; the case is not looked at again.

        Parameters
        ----------
        prompts : any number of objects, as :func:`omlab.prompts.coerce` takes them; or else one object by
            ``point``, ``points`` with ``labels`` (1 belongs to it, 0 does not), ``box``, ``boxes``, ``mask`` and
            ``text``, as :func:`omlab.prompts.make` takes them, called ``label``.
        options : options of the card, for this answer; the others are those that the session was opened with.

        Raises
        ------
        omlab.errors.UsageError
            A prompt that is no prompt, or of a kind that the model does not take; an unknown option.
        omlab.errors.InputError
            A place outside of the case, a mask on another grid.
        """
        asked = coerce(prompts)
        given = any(value is not None for value in (point, labels, box, mask)) or len(points) or len(boxes) or text
        if given:
            own = make(
                point=point, points=points, labels=labels, box=box, boxes=boxes, mask=mask, text=text, label=label
            )
            asked = own if asked is None else asked.joined(own)
        filled = self._model.options({**self._context.options, **options})
        placed = self._model.placed(asked, self.case, filled)
        return self._session.answer(attrs.evolve(self._context, prompts=placed, options=filled, stages={}))
