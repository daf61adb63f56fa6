"""How golden files of PRIME map onto the networks and steps of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from omlab_prime import mutants
from omlab_prime.network import Legacy, Prime
from omlab_prime.vocabulary import PAD, tokenise
from omlab_sdk.golden import Golden, seed_module

GOLDENS = ("prime",)
_ENCODER = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "layer_norm_eps",
    "token_dropout",
}  # fmt: skip


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for."""
    if "texts" in golden.meta:
        return {f"ids{i}": np.array(tokenise(text)) for i, text in enumerate(golden.meta["texts"])}
    arguments = {key: value for key, value in golden.kwargs.items() if key in _ENCODER}
    ids = torch.from_numpy(golden.input("input_ids").astype(np.int64))
    literal = "attention_mask" in golden.literal
    mask = torch.from_numpy(golden.input("attention_mask").astype(np.int64)) if literal else (ids != PAD).long()
    entry = str(golden.meta.get("entry", ""))
    with torch.inference_mode():
        if "ZeroShot" in entry or "SupervisedRegression" in entry:
            return _legacy(golden, arguments, ids, mask)
        return _current(golden, arguments, ids, mask)


def _seeded(module: torch.nn.Module, golden: Golden) -> Any:
    kept = {name for name in module.state_dict() if name.endswith("inv_freq")}
    return seed_module(module.eval(), kept | set(golden.kept))


def _legacy(golden: Golden, arguments: dict[str, Any], ids: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
    scorer = _seeded(Legacy(**arguments), golden)
    regression = _seeded(Legacy(regression=True, **arguments), golden)
    logits, hidden = scorer(ids, mask)
    values = regression.regression(hidden, mask)
    return {"hidden": hidden.numpy(), "logits": logits.numpy(), "values": values.numpy()}


def _current(golden: Golden, arguments: dict[str, Any], ids: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
    structure = int(golden.kwargs.get("structure_vocab_size", 100))
    network = _seeded(Prime(structure_vocab_size=structure, **arguments), golden)
    steps = network.pro_prime.steps(ids, mask)
    hidden = steps[-1]
    pooled = network.sequence_pooling(hidden, mask)
    logits = network.logits(hidden)
    found = {
        "embeddings": steps[0],
        "last_hidden_state": hidden,
        "logits": logits,
        "pooling_weights": network.sequence_pooling.attention1d.weights(hidden, mask),
        "sequence_hidden_states": pooled,
        "predicted_values": network.temperature(pooled),
    } | {f"layer{i}": layer for i, layer in enumerate(steps[1:-1])}
    if structure:
        found["structure_logits"] = network.structure_head(hidden)
    arrays = {name: tensor.numpy() for name, tensor in found.items()}
    wanted = golden.meta.get("mutants")
    if wanted:
        length = int(mask[0].sum())
        scores = mutants.log_probabilities(arrays["logits"][0, 1 : length - 1])
        arrays["mutant_scores"] = np.array([mutants.score(mutants.parse(text), scores) for text in wanted])
    return arrays
