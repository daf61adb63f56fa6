"""What a segmenter defines so that it can be fine-tuned on other structures, and what such definitions share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

from omlab.cases import Case, Volume
from omlab.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from omlab.cards import Variant
    from omlab.graphs import Graph
    from omlab.results import Segmentation


@attrs.frozen(eq=False, kw_only=True)
class Prepared:
    """A scan, or an image, as the network sees it.

    Attributes
    ----------
    image : [channels, z, y, x] float32; an image has one plane.
    labels : [z, y, x] int16 on the same grid, 0 for the background, -1 for what is to be ignored.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int16]


@attrs.frozen(eq=False, kw_only=True)
class Recipe:
    """How the author of a segmenter has it learn.

    Attributes
    ----------
    network : takes [n, channels, z, y, x]; its outputs are what ``loss`` and ``labels`` take. The weights of the base
        are in it, where it has some; the head is new.
    state : the state dict to keep of the trained network is that of this module, with the names that
        :meth:`Tunable.tuned` takes.
    config : of the variant of the fine-tuned model.
    patch : sides of a training window, (z, y, x); z is 1 for images.
    prepare : (case of the kind ``takes``, reference) to what the network sees.
    loss : (outputs, [n, 1, z, y, x] int64) to a number.
    labels : outputs to labels [n, z, y, x].
    optimiser : (network, learning rate) to the optimiser.
    schedule : (fractional epoch, epochs, learning rate) to the learning rate.
    rate : learning rate to begin with.
    clip : greatest norm of a gradient.
    epochs, batches, batch : length of the training and size of a batch, by the author.
    mirror : axes (0 z, 1 y, 2 x) that windows are mirrored along in training.
    multiple : windows of other sides than ``patch`` have multiples of these; ``None`` where the network takes no
        others.
    takes : kind of case.
    """

    network: torch.nn.Module
    state: torch.nn.Module
    config: Mapping[str, Any]
    patch: tuple[int, int, int]
    prepare: Callable[[Any, Segmentation], Prepared]
    loss: Callable[[Any, torch.Tensor], torch.Tensor]
    labels: Callable[[Any], torch.Tensor]
    optimiser: Callable[[torch.nn.Module, float], torch.optim.Optimizer]
    schedule: Callable[[float, int, float], float]
    rate: float
    clip: float | None
    epochs: int
    batches: int
    batch: int
    mirror: Sequence[int] = ()
    multiple: tuple[int, int, int] | None = None
    takes: type[Case] = Volume


@runtime_checkable
class Tunable(Protocol):
    """A :class:`omlab.model.Model` that can be fine-tuned."""

    def recipe(
        self,
        variant: Variant,
        files: Mapping[str, Path],
        outputs: int,
        *,
        state: Mapping[str, torch.Tensor] | None = None,
        **changes: Any,
    ) -> Recipe:
        """How a network of ``outputs`` classes (the background counts) learns, beginning with the weights of
        ``variant``, or at random where it has none.

        Parameters
        ----------
        state : trained weights to begin with in place of the variant's, of a network with other outputs.
        changes : ``spacing_mm``, (z, y, x), where the user wants another. Raise
            :class:`omlab.errors.UsageError` where the network sees voxels as they are.
        """

    def tuned(self, graph: Graph, variant: Variant, state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """The network of ``graph`` with the trained ``state``, for a variant of the ``config`` of the recipe."""


@contextmanager
def beginning(seed: int = 0) -> Iterator[None]:
    """What begins at random inside is the same every time, and draws of others are as if it had not been made."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def check_grid(case: Volume, reference: Segmentation) -> None:
    """Raise :class:`omlab.errors.InputError` for a reference that lies on another grid than its scan."""
    if reference.geometry is None or not reference.geometry.same_grid(case.geometry):
        where = "no grid" if reference.geometry is None else f"a grid of {reference.geometry.shape}"
        raise InputError(f"{case.name}: its label map has {where}, the scan one of {case.geometry.shape}")


def first_losses(recipe: Recipe, prepared: Prepared, *, steps: int, rate: float, copies: int = 1) -> list[float]:
    """Losses of the first steps on one window, for tests of a recipe: they fall. The network is in evaluation mode
    afterwards.

    Parameters
    ----------
    prepared : of the size of a window.
    copies : of it in a batch.
    """
    image, target = window_of(prepared, copies)
    network = recipe.network.train()
    optimiser = recipe.optimiser(network, rate)
    found = []
    with beginning():
        for _ in range(steps):
            loss = recipe.loss(network(image), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(float(loss.detach()))
    network.eval()
    return found


def window_of(prepared: Prepared, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """What is prepared as a batch of one window: image [copies, channels, z, y, x] and target [copies, 1, z, y, x]."""
    import numpy as np
    import torch

    image = torch.from_numpy(np.ascontiguousarray(prepared.image))[None]
    target = torch.from_numpy(np.ascontiguousarray(prepared.labels).astype(np.int64))[None, None]
    return image.repeat(copies, 1, 1, 1, 1), target.repeat(copies, 1, 1, 1, 1)
