"""PULSE in the pipeline of language models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omlab.cards import Variant
from omlab.cases import Message, Text
from omlab.errors import UsageError
from omlab.graphs import Graph
from omlab.model import Context
from omlab_pulse import dialogue
from omlab_sdk.language import cached
from omlab_sdk.language.generating import Decoder
from omlab_sdk.language.model import LanguageModel, Prompt, language_graph
from omlab_sdk.language.sampling import Sampling
from omlab_sdk.language.tokens import ByteTokenizer, FastTokenizer, SentencePiece, Tokenizer

if TYPE_CHECKING:
    import torch

TOKENIZER, WEIGHTS = "tokenizer", "net"
PRESETS = {"web": {"top_k": 9, "top_p": 0.2}, "command-line": {"top_k": 6, "top_p": 0.1}}
#: ``<pad>`` and the placeholders of the model's and its makers' names, beyond the sentencepiece file.
ADDED = {103168: "", 103169: "<|modelname|>", 103170: "<|modelorg|>"}
PADDING = 103168
#: ALiBi has no table of positions; this is what memory and training allow.
BLOOM_CONTEXT = 4096
#: The same layouts so small that they run anywhere, for checks: bytes are their tokens.
SMALL: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 4096,
    },
    "bloom": {"vocab_size": 288, "hidden_size": 64, "n_layer": 2, "n_head": 4},
}  # fmt: skip


class Pulse(LanguageModel):
    """Text in, text out; see the card."""

    answer_prefix = dialogue.HELPER

    def config(self, variant: Variant) -> dict[str, Any]:
        """Configuration of the variant."""
        return dict(variant.config)

    def small(self, variant: Variant) -> Variant:
        """Two narrow layers of the same layout; bytes are its tokens."""
        return variant.configured(**SMALL[variant.config["layout"]])

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        config = self.config(variant)
        if config["layout"] == "llama":
            longest = config["max_position_embeddings"]
            return (language_graph(config, ("omlab_pulse.checkpoint",), longest=longest),)
        heads = config["n_head"]
        return (
            cached.cached_graph(
                config, ("omlab_pulse.bloom", "omlab_pulse.checkpoint"), vocabulary=config["vocab_size"],
                layers=config["n_layer"], heads=heads, size=config["hidden_size"] // heads, context=BLOOM_CONTEXT,
            ),
        )  # fmt: skip

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        from omlab_pulse import checkpoint

        config = self.config(variant)
        if config["layout"] == "llama":
            return checkpoint.llama_network(config, files[WEIGHTS], self._padding(config)).eval()
        from omlab_pulse.bloom import Step

        return Step(checkpoint.bloom_network(config, files[WEIGHTS])).eval()

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        from omlab_pulse.checkpoint import OWN

        config = self.config(variant)
        values = {key: value for key, value in config.items() if key not in OWN}
        if config["layout"] == "llama":
            from omlab_sdk.language import llama

            return llama.CausalLM(llama.fresh(llama.configuration(**values)), self._padding(config)).eval()
        from omlab_pulse.bloom import Bloom, Step

        return Step(Bloom(**values)).eval()

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """Tokens drawn at random: the vocabulary is among the files that need not be here."""
        config = self.config(variant)
        if config["layout"] == "bloom":
            yield from cached.examples(graph, config["vocab_size"])
            return
        random = np.random.default_rng(0)
        for _ in range(2):
            yield {"input_ids": random.integers(3, min(config["vocab_size"], PADDING), (1, 96))}

    def decoder(self, context: Context) -> Decoder:
        if self.config(context.variant)["layout"] == "llama":
            return super().decoder(context)
        (graph,) = self.graphs(context.variant)
        return cached.CachedDecoder(context.engines[cached.GRAPH], graph, BLOOM_CONTEXT)

    def tokenizer(self, context: Context) -> Tokenizer:
        layout = self.config(context.variant)["layout"]
        if not context.variant.weights:
            return ByteTokenizer(begin=1 if layout == "llama" else None)
        path = context.files[TOKENIZER]
        return SentencePiece(path, added=ADDED) if layout == "llama" else FastTokenizer.read(path)

    def prompt(self, case: Text, tokenizer: Tokenizer, context: Context) -> Prompt:
        messages = list(case.messages)
        system = context.options.get("system")
        if system and messages[0].role != "system":
            messages.insert(0, Message(role="system", content=system))
        options = context.options
        return dialogue.prompt_ids(messages, tokenizer, options["role"], context=options["context"])

    def validate(self, options: Mapping[str, Any], prompts: Any) -> None:
        super().validate(options, prompts)
        if options["context"] < 16:
            raise UsageError(f"context must be 16 or more, found {options['context']}")

    def sampling(self, options: Mapping[str, Any], variant: Variant) -> Sampling:
        preset = PRESETS[options["preset"]]
        values = {name: preset[name] if options.get(name) is None else options[name] for name in preset}
        return Sampling(
            max_new_tokens=options["max_new_tokens"], temperature=options["temperature"], seed=options.get("seed"),
            ends=(dialogue.END, self._padding(self.config(variant))), **values,
        )  # fmt: skip

    @staticmethod
    def _padding(config: Mapping[str, Any]) -> int:
        """A token that no text holds and that ends an answer if it is drawn all the same: ``<pad>``."""
        return PADDING if config["vocab_size"] > PADDING else 3
