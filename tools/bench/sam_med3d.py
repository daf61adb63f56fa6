"""SAM-Med3D: the encoder by folded windows against upstream's way in every engine, and clicks a second after the first.

What is compared with what: see ``promptable.py``::

    python tools/bench/sam_med3d.py
    python tools/bench/sam_med3d.py --rounds 9 --store /var/tmp/engines
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from promptable import Bench, main

from omlab.cards import Variant

#: Of the click, as a share of the side.
PLACE = np.array([0.5, 0.47, 0.55], np.float32)


def network(variant: Variant) -> Any:
    """All of it in torch, as constructed."""
    from omlab_sam_med3d.network import Sam3d

    config = variant.config
    return Sam3d.of_size(str(config["size"]), img_size=int(config["side"]), **config.get("shape", {}))


class Clicks:
    """A click for each prompt, on the mask of the click before."""

    def pass_of(self, eager: Any, embedding: Any, side: int) -> Any:
        """One click in torch."""
        import torch

        points = torch.from_numpy(PLACE[None, None] * side), torch.ones(1, 1)
        return eager.decode(embedding, points, torch.zeros(1, 1, *[side // 4] * 3))

    def ways(self, decoder: Any, embedding: np.ndarray, side: int) -> Iterator[tuple[str, Callable[[], Any], int]]:
        """One click."""
        from omlab_sam_med3d.predictor import Predictor

        predictor = Predictor(decoder, embedding, side)
        before = np.zeros([side // 4] * 3, np.float32)
        yield "decoder", lambda: predictor.decode([(PLACE * side).tolist()], [1], before), 1


if __name__ == "__main__":
    bench = Bench(model="sam-med3d", thing="cube", prompt="click", network=network, asked=Clicks())
    raise SystemExit(main(bench, __doc__))
