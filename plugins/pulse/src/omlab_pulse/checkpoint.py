"""Published checkpoints into the networks: shards, and what older files have besides. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError
from omlab_sdk.checkpoints import load_into
from omlab_sdk.language import llama

if TYPE_CHECKING:
    import torch

    from omlab_pulse.bloom import Bloom

#: Keys of a variant's configuration that are ours and no argument of a network.
OWN = ("layout", "padding", "context")


def llama_network(config: Mapping[str, Any], paths: Sequence[Path], padding: int) -> llama.CausalLM:
    """The larger model, of shards in upstream's names or in those of InternLM's training repository.

    Raises :class:`omlab.errors.WeightsError` where a shard is missing or of another model.
    """
    state = llama.read_shards(paths) if not _training(paths) else llama.from_training(map(_stage, paths))
    values = {key: value for key, value in config.items() if key not in OWN}
    return llama.CausalLM(llama.filled(llama.configuration(**values), state, _called(paths)), padding)


def bloom_network(config: Mapping[str, Any], paths: Sequence[Path]) -> Bloom:
    """The smaller model, in float32. The head that is stored besides the equal table of embeddings is checked and
    dropped. Raises :class:`omlab.errors.WeightsError`."""
    import torch

    from omlab_pulse.bloom import Bloom

    state = llama.read_shards(paths)
    # Checkpoints of the bare network lack the first part of the names.
    if "word_embeddings.weight" in state:
        state = {f"transformer.{name}": tensor for name, tensor in state.items()}
    table, head = state.get("transformer.word_embeddings.weight"), state.pop("lm_head.weight", None)
    if table is not None and head is not None and not torch.equal(table, head):
        raise WeightsError(f"{_called(paths)}: its head is not its table of embeddings", remedy="It is another model")
    if table is not None:
        state["lm_head.weight"] = table
    network = Bloom(**{key: value for key, value in config.items() if key not in OWN})
    load_into(network, state, name=_called(paths))
    return network.eval()


def _training(paths: Sequence[Path]) -> bool:
    """Does the first file have the names of InternLM's training repository?"""
    names = _stage(paths[0])
    return any(name.removeprefix("model.").startswith("blocks.") for name in names)


def _stage(path: Path) -> dict[str, torch.Tensor]:
    return llama.read_shards([path])


def _called(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} files)"
