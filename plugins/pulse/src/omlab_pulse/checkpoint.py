"""Published checkpoints into the networks: shards, and what older files have besides. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError
from omlab.weights import shards_of
from omlab_sdk.checkpoints import load_into, read_checkpoint, read_sharded
from omlab_sdk.language import llama

if TYPE_CHECKING:
    from omlab_pulse.bloom import Bloom

#: Keys of a variant's configuration that are ours and no argument of a network.
OWN = ("layout", "padding", "context")


def llama_network(config: Mapping[str, Any], path: Path, padding: int) -> llama.CausalLM:
    """The larger model, of files in upstream's names or in those of InternLM's training repository.

    Raises :class:`omlab.errors.WeightsError` where a shard is missing or of another model.
    """
    shards = shards_of(path)
    training = any(name.removeprefix("model.").startswith("blocks.") for name in read_checkpoint(shards[0]))
    state = llama.from_training(map(read_checkpoint, shards)) if training else read_sharded(path)
    values = {key: value for key, value in config.items() if key not in OWN}
    return llama.CausalLM(llama.filled(llama.configuration(**values), state, str(path)), padding)


def bloom_network(config: Mapping[str, Any], path: Path) -> Bloom:
    """The smaller model, in float32. The head that is stored besides the equal table of embeddings is checked and
    dropped. Raises :class:`omlab.errors.WeightsError`."""
    import torch

    from omlab_pulse.bloom import Bloom

    state = read_sharded(path)
    # Checkpoints of the bare network lack the first part of the names.
    if "word_embeddings.weight" in state:
        state = {f"transformer.{name}": tensor for name, tensor in state.items()}
    table, head = state.get("transformer.word_embeddings.weight"), state.pop("lm_head.weight", None)
    if table is not None and head is not None and not torch.equal(table, head):
        raise WeightsError(f"{path}: its head is not its table of embeddings", remedy="It is another model")
    if table is not None:
        state["lm_head.weight"] = table
    network = Bloom(**{key: value for key, value in config.items() if key not in OWN})
    load_into(network, state, name=str(path))
    return network.eval()
