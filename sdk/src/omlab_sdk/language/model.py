"""The base of contributed language models: prompt, generation, streaming. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import attrs

from omlab.cards import ModelCard
from omlab.cases import Case, Text
from omlab.errors import InputError, OmlabError, UsageError
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.memory import available_bytes
from omlab.model import Context, Model
from omlab.prompts import Prompts
from omlab.results import Generation, Result
from omlab_sdk.language.generating import Decoder, generate
from omlab_sdk.language.sampling import Sampling
from omlab_sdk.language.tokens import Detokenizer, Tokenizer

GRAPH = "language"
ENGINE = "onnxruntime-genai"


@attrs.frozen
class Prompt:
    """What a network is given to continue.

    Attributes
    ----------
    ids : tokens.
    begun : the last of them that belong to the answer already, and are shown with it.
    notes : what the reader of the answer should know of it, a line each.
    """

    ids: list[int]
    begun: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


class LanguageModel(Model):
    """A model that answers :class:`omlab.Text` with :class:`omlab.results.Generation`.

    A subclass defines :meth:`tokenizer`, :meth:`prompt` and :meth:`sampling`, besides what every model does. The card
    has the options ``max-new-tokens``, ``temperature``, ``top-k``, ``top-p``, ``seed``, ``system``, ``stretch`` and
    ``batch``.
    """

    #: What the network writes before every answer and nobody wants to read.
    answer_prefix = ""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self._tokenizers: dict[tuple[str, bool], Tokenizer] = {}

    def tokenizer(self, context: Context) -> Tokenizer:
        """The vocabulary of the variant; made once, see :meth:`vocabulary`."""
        raise TypeError(f"{type(self).__name__} must define tokenizer()")

    def prompt(self, case: Text, tokenizer: Tokenizer, context: Context) -> Prompt:
        """The conversation as tokens. Raises :class:`omlab.errors.InputError` for one that cannot be asked."""
        raise TypeError(f"{type(self).__name__} must define prompt()")

    def sampling(self, options: Mapping[str, Any], variant: Any) -> Sampling:
        """How answers are drawn. Raises :class:`omlab.errors.UsageError` for values that make no sense."""
        raise TypeError(f"{type(self).__name__} must define sampling()")

    def decoder(self, context: Context) -> Decoder:
        """The network with its cache."""
        return context.engines[GRAPH]  # type: ignore[return-value]

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        self.sampling(options, self.card.variants[0])
        if self.together(options) < 1:
            raise UsageError(f"batch must be 1 or more, found {options['batch']}")

    def vocabulary(self, context: Context) -> Tokenizer:
        """:meth:`tokenizer`, made once for each variant."""
        key = (context.variant.name, bool(context.variant.weights))
        if key not in self._tokenizers:
            self._tokenizers[key] = self.tokenizer(context)
        return self._tokenizers[key]

    def stream(self, case: Case, context: Context) -> Generator[str, None, Generation]:
        """See :meth:`omlab.model.Model.stream`."""
        with context.stage("prepare"):
            tokenizer, prompt, sampling = self._prepared(case, context)
        written = _Answer(tokenizer, prompt, self.answer_prefix)
        start = time.perf_counter()
        first = 0.0
        with context.stage("network"):
            steps = generate(
                self.decoder(context), [prompt.ids], sampling, stretch=bool(context.options.get("stretch", False))
            )
            with closing(steps):
                for (token,) in steps:
                    first = first or time.perf_counter() - start
                    if token is None:
                        written.ended = True
                        break
                    context.progress(GRAPH, written.count + 1, sampling.max_new_tokens, "tokens")
                    piece = written.push(token)
                    if piece:
                        yield piece
            piece = written.finish()
            if piece:
                yield piece
        return written.result(_speeds(len(prompt.ids), first, written.count, time.perf_counter() - start))

    def predict(self, case: Case, context: Context) -> Generation:
        pieces = self.stream(case, context)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def together(self, options: Mapping[str, Any]) -> int:
        """The option ``batch``."""
        return int(options.get("batch", 1))

    def predict_many(self, cases: Sequence[Case], context: Context) -> list[Result | OmlabError]:
        """Answers of several conversations, written side by side: every weight is read once for all of them.

        The same seed gives each the answer that it has alone, up to the order of sums. As many go together as have
        room for their caches in half of the free memory; a conversation that cannot be asked has its error.
        """
        found: dict[int, Result | OmlabError] = {}
        ready: dict[int, tuple[Tokenizer, Prompt, Sampling]] = {}
        ways: dict[int, list[int]] = {}
        stretch = bool(context.options.get("stretch", False))
        with context.stage("prepare"):
            decoder = self.decoder(context)
            for row, case in enumerate(cases):
                try:
                    ready[row] = self._prepared(case, context)
                    _, prompt, sampling = ready[row]
                    ways.setdefault(decoder.way(prompt.ids, sampling.max_new_tokens, stretch=stretch), []).append(row)
                except OmlabError as error:
                    found[row] = error
        for rows in ways.values():
            lengths = {row: len(ready[row][1].ids) + ready[row][2].max_new_tokens for row in rows}
            for group in _fitting(lengths, decoder.token_bytes):
                answers = self._side_by_side([ready[row] for row in group], decoder, stretch, context)
                found.update(zip(group, answers, strict=True))
        return [found[row] for row in range(len(cases))]

    def _side_by_side(
        self, ready: Sequence[tuple[Tokenizer, Prompt, Sampling]], decoder: Decoder, stretch: bool, context: Context
    ) -> list[Generation]:
        answers = [_Answer(tokenizer, prompt, self.answer_prefix) for tokenizer, prompt, _ in ready]
        sampling = ready[0][2]
        start = time.perf_counter()
        with context.stage("network"):
            steps = generate(decoder, [prompt.ids for _, prompt, _ in ready], sampling, stretch=stretch)
            with closing(steps):
                for number, tokens in enumerate(steps):
                    context.progress(GRAPH, number + 1, sampling.max_new_tokens, "tokens")
                    for answer, token in zip(answers, tokens, strict=True):
                        if token is None:
                            answer.ended = True
                        elif not answer.ended:
                            answer.push(token)
        for answer in answers:
            answer.finish()
        total = sum(answer.count for answer in answers)
        speed = {
            "together": float(len(ready)),
            "tokens_per_second_of_all": total / max(1e-9, time.perf_counter() - start),
        }
        return [answer.result(speed) for answer in answers]

    def _prepared(self, case: Case, context: Context) -> tuple[Tokenizer, Prompt, Sampling]:
        assert isinstance(case, Text)
        if not case.question.strip():
            raise InputError(f"{case.name}: asks nothing, its last question is empty")
        if case.messages[-1].role != "user":
            raise InputError(
                f"{case.name}: ends with a turn of the {case.messages[-1].role}, expected a question of the user"
            )
        for text in (*(message.content for message in case.messages), context.options.get("system") or ""):
            _demand_whole(text, case.name)
        tokenizer = self.vocabulary(context)
        return tokenizer, self.prompt(case, tokenizer, context), self.sampling(context.options, context.variant)


def _demand_whole(text: str, name: str) -> None:
    """Raise :class:`omlab.errors.InputError` for a text that no tokenizer takes: Python's can hold halves of
    characters, which stand for bytes that were no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: holds half of a character at place {error.start}, so it was no UTF-8", remedy="Give it as UTF-8"
        ) from None


class _Answer:
    """An answer while it is written."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, prefix: str) -> None:
        self._text = Detokenizer(tokenizer)
        self._prompt = prompt
        self._prefix = prefix
        self._held: str | None = "" if prefix else None
        self._pieces: list[str] = []
        self.count = 0
        self.ended = False
        for token in prompt.begun:
            self._take(self._text.push(token))

    def push(self, token: int) -> str:
        """What may be shown after one more token."""
        self.count += 1
        return self._take(self._text.push(token))

    def finish(self) -> str:
        """What is left."""
        piece = self._take(self._text.finish())
        if self._held is not None:  # it never came to a whole prefix, so it is the answer
            piece, self._held = self._held, None
            self._pieces.append(piece)
        return piece

    def result(self, measurements: Mapping[str, float]) -> Generation:
        return Generation(
            text="".join(self._pieces).strip(), finish_reason="stop" if self.ended else "length",
            prompt_tokens=len(self._prompt.ids), completion_tokens=self.count, measurements=measurements,
            notes=self._prompt.notes,
        )  # fmt: skip

    def _take(self, piece: str) -> str:
        if self._held is not None:
            self._held += piece
            if self._prefix.startswith(self._held):
                return ""
            piece, self._held = self._held.removeprefix(self._prefix), None
        if piece:
            self._pieces.append(piece)
        return piece


def _fitting(lengths: Mapping[int, int], token_bytes: int) -> Iterator[list[int]]:
    """Rows in groups whose caches, as long as their longest text, take half of the free memory at most; of like
    lengths, since the shorter ones are padded."""
    free = available_bytes()
    most = len(lengths) * max(lengths.values()) if free is None else free // (2 * token_bytes)  # tokens
    group: list[int] = []
    for row in sorted(lengths, key=lambda row: lengths[row]):
        if group and (len(group) + 1) * lengths[row] > most:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _speeds(prompt: int, first: float, count: int, seconds: float) -> dict[str, float]:
    found = {"first_token_seconds": first}
    if first > 0:
        found["prompt_tokens_per_second"] = prompt / first
    if count > 1 and seconds > first:
        found["tokens_per_second"] = (count - 1) / (seconds - first)
    return found


def language_graph(config: Mapping[str, Any], sources: Sequence[str], *, longest: int, **fields: Any) -> Graph:
    """The graph of a network of the Llama layout: next-token logits, as :class:`omlab_sdk.language.llama.CausalLM`
    gives them.

    Parameters
    ----------
    config : what decides the network; part of the digest.
    sources : modules that define it, besides those of the sdk.
    longest : tokens that it reads.
    """
    rows = {"batch": (1, 1, 64), "length": (4, 96, longest)}
    return Graph(
        name=GRAPH,
        inputs=(TensorSpec("input_ids", "int64", ("batch", "length"), "batch position", rows),),
        outputs=(TensorSpec("logits", "float32", ("batch", "step", "vocabulary"), "batch position token"),),
        judge=Judge.LANGUAGE,
        engines=(ENGINE,),
        sources=(*sources, "omlab_sdk.language.llama", "omlab_sdk.language.building", "omlab_sdk.language.rope"),
        config=dict(config),
        **fields,
    )
