"""SAM-Med2D: prompts a second after the first, and the encoder in every engine, folded and not.

What is compared with what: see ``promptable.py``::

    python tools/bench/sam_med2d.py
    python tools/bench/sam_med2d.py --rounds 9 --store /var/tmp/engines
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from promptable import Bench, main

from omlab.cards import Variant

#: Prompts of one call of the decoder.
BATCHES = (1, 16, 64)
#: Left, top, right, bottom, as a share of the side.
BOX = np.array([0.23, 0.27, 0.7, 0.78], np.float32)


def network(variant: Variant) -> Any:
    """All of it in torch, as constructed."""
    from omlab_sam_med2d.network import Sam

    config = variant.config
    return Sam.of_size(
        config["size"], img_size=int(config["side"]), adapter=bool(config["adapter"]), **config.get("shape", {})
    )


class Boxes:
    """A box for each prompt."""

    def pass_of(self, eager: Any, embedding: Any, side: int) -> Any:
        """One box in torch."""
        import torch

        return eager.decode(embedding, boxes=torch.from_numpy(BOX[None] * side))

    def ways(self, decoder: Any, embedding: np.ndarray, side: int) -> Iterator[tuple[str, Callable[[], Any], int]]:
        """One box, and several at once."""
        from omlab_sdk.segment_anything.frame import frame_of
        from omlab_sdk.segment_anything.predictor import Predictor

        predictor = Predictor(decoder, frame_of((side, side), side), embedding)
        for count in BATCHES:
            queries = [predictor.query(box=BOX * side + n % 16) for n in range(count)]
            yield f"{count} at once", lambda queries=queries: predictor.predict(queries), count


if __name__ == "__main__":
    bench = Bench(model="sam-med2d", thing="picture", prompt="prompt", network=network, asked=Boxes())
    raise SystemExit(main(bench, __doc__))
