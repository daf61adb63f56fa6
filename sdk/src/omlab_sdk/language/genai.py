"""The engine ``onnxruntime-genai``: networks of the Llama layout in float32, int8 and int4, with a key-value cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.engines.base import Backend, EngineInfo, Target
from omlab.engines.checks import check_inputs
from omlab.errors import EngineError, InputError, require
from omlab.graphs import Graph
from omlab.memory import usable_cpus
from omlab.vocabulary import Precision

if TYPE_CHECKING:
    import torch

NAME = "onnxruntime-genai"
#: Tokens that a cache has beyond what an answer may need, so that a conversation can go on in it.
AHEAD = 512


class OnnxRuntimeGenAi(Backend):
    """Builds from the torch network: attention with its cache and weights of few bits are operators that no exporter
    of plain ONNX writes."""

    general = False
    builds_from_network = True

    def version(self) -> str:
        from importlib.metadata import version

        # The runtime below it computes, so an engine is of both.
        return f"{version('onnxruntime-genai')}+{version('onnxruntime')}"

    def targets(self, graph: Graph) -> tuple[Target, ...]:
        ranks = {Precision.INT4: 10, Precision.INT8: 20, Precision.FLOAT32: 30}
        first = graph.config.get("prefer")  # a small network loses more by 4 bits than it gains
        if first is not None:
            ranks[Precision(str(first))] = 0
        return tuple(Target(precision, "cpu", "CPUExecutionProvider", rank) for precision, rank in ranks.items())

    def needs_onnx(self, folder: Path) -> bool:
        return False

    def build_network(self, graph: Graph, network: torch.nn.Module, folder: Path, target: Target) -> None:
        from omlab_sdk.language.building import build

        build(network, folder, target.precision)

    def load(
        self, graph: Graph, onnx: Path, folder: Path, target: Target, *, threads: int | None = None
    ) -> GenAiEngine:
        library = require("onnxruntime_genai", needed_for="running a language model", install=self.card.install)
        library.disable_telemetry_events()
        threads = threads or usable_cpus()
        info = EngineInfo(self.card.name, self.version(), target.precision, target.device, target.provider, threads)
        return GenAiEngine(graph, folder, info, library)

    def moved(self, engine: Any, folder: Path) -> None:
        engine.folder = folder


class GenAiEngine:
    """A language network that reads and continues texts (:class:`omlab_sdk.language.generating.Decoder`).

    Attributes
    ----------
    context : tokens that a text may have.
    token_bytes : memory of the cache for one token of one text: a key and a value in float32 of every layer.
    folder : where the graphs lie.
    """

    def __init__(self, graph: Graph, folder: Path, info: EngineInfo, library: Any) -> None:
        self.info = info
        self._graph = graph
        self.folder = folder
        config = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
        self.context = int(config["context_length"])
        self.padding = int(config["pad_token_id"])
        self.vocabulary = int(config["vocab_size"])
        layers = config["decoder"]
        self.token_bytes = 8 * layers["num_hidden_layers"] * layers["num_key_value_heads"] * layers["head_size"]
        self.library = library
        self._models: dict[int, Any] = {}
        self._kept: Texts | None = None
        self._model(1)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Logits after the first half of the ids, read at once, and after each of the rest, read one by one."""
        ids = check_inputs(self._graph, inputs)["input_ids"]
        half = ids.shape[1] // 2
        texts = self.open(ids[:, :half].tolist(), ids.shape[1] - half, resume=False)
        try:
            rows = [texts.logits()]
            for column in range(half, ids.shape[1]):
                texts.append(ids[:, column].tolist())
                rows.append(texts.logits())
        finally:
            texts.close()
        return {self._graph.outputs[0].name: np.stack(rows, axis=1)}

    def open(self, prompts: Sequence[Sequence[int]], room: int, *, stretch: bool = False, resume: bool = True) -> Texts:
        """Read prompts, with room for so many tokens after the longest.

        Of a single prompt that goes on from the text before it, as the next turn of a conversation does, only what is
        new is read. The same prompt again is read anew, so that it gives the same answer to the last bit.

        Parameters
        ----------
        resume : whether that may be done.
        stretch : texts longer than the network's context are read with an NTK-aware base of the rotary embedding.

        Raises
        ------
        InputError
            A prompt is empty, or too long.
        EngineError
            An id is not of the vocabulary, or the library fails.
        """
        if not prompts:
            raise InputError("there is no prompt to continue")
        times = max(self.way(prompt, room, stretch=stretch) for prompt in prompts)
        longest = max(map(len, prompts))
        if len(prompts) > 1 and min(map(len, prompts)) < 2:
            raise InputError("a prompt has one token; side by side every prompt needs two", remedy="Ask it alone")
        kept, self._kept = self._kept, None
        if resume and len(prompts) == 1 and kept is not None and kept.goes_on(times, prompts[0], room):
            return kept
        del kept  # its cache, before there is another one
        length = min(longest + room + (AHEAD if resume else 0), times * self.context)
        return Texts(self, self._model(times), prompts, length, times)

    def way(self, prompt: Sequence[int], room: int, *, stretch: bool = False) -> int:
        """See the protocol: how many times the network's context the graph has that reads it."""
        if not prompt:
            raise InputError("a prompt is empty, there is nothing to continue")
        if max(prompt) >= self.vocabulary or min(prompt) < 0:
            raise EngineError(f"token {max(prompt)} is not of the vocabulary of {self.vocabulary} tokens")
        return self._times(len(prompt), room, stretch)

    def closed(self, texts: Texts) -> None:
        """A text was closed; the last one alone is kept, to go on from."""
        self._kept = texts

    def _times(self, longest: int, room: int, stretch: bool) -> int:
        """Which of the graphs: the number of times that its context is the network's own."""
        from omlab_sdk.language.rope import LADDER

        most = LADDER[-1] if stretch else 1
        for times in (1, *LADDER):
            if times <= most and longest + room <= times * self.context:
                return times
        has = f"{longest} tokens and room for {room} more"
        remedy = (
            f"Shorten the text, lower --max-new-tokens, or use --stretch (up to {LADDER[-1] * self.context} tokens)"
        )
        if stretch:
            remedy = "Shorten the text or lower --max-new-tokens"
        raise InputError(f"the text has {has}, the model reads {most * self.context}", remedy=remedy)

    def _model(self, times: int) -> Any:
        if times not in self._models:
            settings: dict[str, Any] = {
                "model": {
                    "context_length": times * self.context,
                    "decoder": {
                        "session_options": {"intra_op_num_threads": self.info.threads, "log_severity_level": 3}
                    },
                }
            }
            if times > 1:
                settings["model"]["decoder"]["filename"] = f"model-x{times}.onnx"
            self._models.clear()  # a second copy of the weights is not needed: a longer text is the exception
            try:
                config = self.library.Config(str(self.folder))
                config.overlay(json.dumps(settings))
                self._models[times] = self.library.Model(config)
            except Exception as error:  # the library raises bare exceptions
                raise EngineError(f"onnxruntime-genai cannot load {self.folder.name}: {error}") from error
        return self._models[times]


class Texts:
    """Texts under way (:class:`omlab_sdk.language.generating.Continuation`)."""

    def __init__(
        self, engine: GenAiEngine, model: Any, prompts: Sequence[Sequence[int]], length: int, times: int
    ) -> None:
        parameters = engine.library.GeneratorParams(model)
        parameters.set_search_options(max_length=length, min_length=0, do_sample=False, batch_size=len(prompts))
        self._generator = engine.library.Generator(model, parameters)
        self._engine = engine
        self._rows = len(prompts)
        self._vocabulary = engine.vocabulary
        self._length, self._times = length, times
        self._asked = len(prompts[0])
        self._tokens: list[int] = []
        if self._rows == 1:
            self._read(prompts[0])
            return
        # The graph scores the last column only, which is padding in a shorter row: so the last token of every prompt
        # is read as a step of its own, where all rows end in the same column.
        longest = max(map(len, prompts))
        table = np.full((self._rows, longest - 1), engine.padding, np.int32)
        for row, prompt in zip(table, prompts, strict=True):
            row[: len(prompt) - 1] = prompt[:-1]
        self._call(lambda: self._generator.append_tokens(table))
        self.append([prompt[-1] for prompt in prompts])

    def goes_on(self, times: int, prompt: Sequence[int], room: int) -> bool:
        """Make this the text of a new prompt, if it begins with the former one and there is room: what both have is
        kept, the rest is read."""
        same = next((n for n, (a, b) in enumerate(zip(self._tokens, prompt, strict=False)) if a != b), None)
        common = min(len(self._tokens), len(prompt) - 1) if same is None else same
        if times != self._times or common < self._asked or len(prompt) + room > self._length:
            return False
        if common < len(self._tokens):
            self._call(lambda: self._generator.rewind_to(common))
            del self._tokens[common:]
        self._asked = len(prompt)
        self._read(prompt[common:])
        return True

    def logits(self) -> NDArray[np.float32]:
        """[rows, vocabulary]."""
        found: NDArray[np.float32] = np.asarray(self._generator.get_logits(), np.float32)
        return found.reshape(self._rows, -1, self._vocabulary)[:, -1]

    def append(self, ids: Sequence[int]) -> None:
        """Read one more token in every row."""
        if self._rows == 1:
            self._read(ids)
            return
        # Side by side the library only takes tokens that its own search chose, so it is made to choose these.
        only = np.full((self._rows, self._vocabulary), -np.inf, np.float32)
        only[np.arange(self._rows), list(ids)] = 0
        self._call(lambda: self._generator.set_logits(only))
        self._call(self._generator.generate_next_token)

    def close(self) -> None:
        """Nothing more is asked of them; the cache is given back when the engine reads another text."""
        if self._rows == 1:
            self._engine.closed(self)

    def _read(self, ids: Sequence[int]) -> None:
        self._call(lambda: self._generator.append_tokens(np.asarray(ids, np.int32)))
        self._tokens += ids

    def _call(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:  # the library raises bare exceptions
            raise EngineError(f"onnxruntime-genai failed: {error}") from error
