"""Parts of language models that need no network: sampling, tokens, retrieval, memory, choice."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from omlab import Message
from omlab.errors import InputError, UsageError
from omlab_sdk.language import choosing, retrieval, rope
from omlab_sdk.language.generating import generate
from omlab_sdk.language.memory import Form, Memory
from omlab_sdk.language.sampling import Sampler, Sampling, distribution, probabilities
from omlab_sdk.language.tokens import ByteTokenizer, Detokenizer, FastTokenizer


class Table:
    """A decoder whose next token follows from the last one: logits [last, next]."""

    def __init__(self, logits: np.ndarray) -> None:
        self.table = logits.astype(np.float32)
        self.opened = 0

    def open(self, prompts: Sequence[Sequence[int]], room: int, *, stretch: bool = False) -> Table:
        texts = Table(self.table)
        texts.last = [prompt[-1] for prompt in prompts]
        self.opened += 1
        return texts

    def logits(self) -> np.ndarray:
        return self.table[self.last]

    def append(self, ids: Sequence[int]) -> None:
        self.last = list(ids)

    def close(self) -> None:
        self.last = []


def test_filters_keep_what_they_should() -> None:
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.1], np.float32))
    ids, chances = distribution(logits, Sampling(top_k=2))
    assert ids.tolist() == [0, 1, 2]  # the third ties with the second
    ids, chances = distribution(logits, Sampling(top_p=0.6))
    assert ids.tolist() == [0, 1] and chances.sum() == pytest.approx(1) and chances[0] == pytest.approx(5 / 7)
    assert distribution(logits, Sampling(top_p=0.01))[0].tolist() == [0]
    assert distribution(logits, Sampling(temperature=0, ends=(0,)), may_end=False)[0].tolist() == [1]
    cold = probabilities(logits[None], Sampling(temperature=0.5))[0]
    assert cold[0] / cold[1] == pytest.approx(6.25)


def test_a_seed_repeats_an_answer_whatever_runs_beside_it() -> None:
    logits = np.random.default_rng(0).standard_normal((40, 3, 50))
    sampling = Sampling(seed=7)
    alone, beside = Sampler(sampling), Sampler(sampling, 3)
    one = [alone.draw(step[:1], [9])[0] for step in logits]
    assert one == [beside.draw(step, [9, 9, 9])[0] for step in logits]
    assert len(set(one)) > 5
    counts = np.bincount([Sampler(Sampling(seed=s)).draw(np.log([[0.25, 0.75]]), [1])[0] for s in range(2000)])
    assert counts[0] / 2000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    "wrong", [{"top_p": 0}, {"top_k": -1}, {"temperature": -1}, {"max_new_tokens": 0}, {"seed": -1}]
)
def test_senseless_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be"):
        Sampling(**wrong)


def test_generation_ends_by_token_and_by_length() -> None:
    table = np.full((5, 5), -9.0)
    for last, following in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 4)):
        table[last, following] = 9
    greedy = Sampling(temperature=0, max_new_tokens=3, min_new_tokens=0, ends=(3,))
    assert list(generate(Table(table), [[0], [2], [4]], greedy)) == [[1, None, 4], [2, None, 4], [None, None, 4]]
    # The end is not drawn before one token is written: the next best is.
    table[2, 0] = 0
    patient = Sampling(temperature=0, max_new_tokens=2, min_new_tokens=1, ends=(3,))
    assert list(generate(Table(table), [[2]], patient)) == [[0], [1]]


def test_characters_come_whole() -> None:
    tokenizer = ByteTokenizer(begin=1)
    written = Detokenizer(tokenizer)
    ids = tokenizer.encode("a头🙂", special=False)
    pieces = [written.push(token) for token in ids]
    assert [piece for piece in pieces if piece] == ["a", "头", "🙂"] and not written.finish()
    cut = Detokenizer(tokenizer)
    assert cut.push(ids[1]) == "" and cut.finish() == "\ufffd"


def test_byte_pairs_keep_digits_apart() -> None:
    pytest.importorskip("tokenizers")
    pieces = ["a", "b", "ab", "1", "2", "12", "Ġ"]
    tokenizer = FastTokenizer.byte_pairs(pieces, ["a b", "1 2"], {}, single_digits=True)
    assert tokenizer.encode("ab 12") == [2, 6, 3, 4]
    assert tokenizer.decode([2, 6, 3, 4]) == "ab 12"


def test_the_base_of_pulse_is_an_alpha_of_eight() -> None:
    assert rope.ntk_theta(10000.0, 128, 8.0) == pytest.approx(82684.62264056221, rel=1e-12)
    assert rope.dynamic_alpha(32, 32, 2.0) == 1 and rope.dynamic_alpha(80, 32, 2.0) == 4
    cosine, sine = rope.table(10000.0, 4, 3)
    assert cosine.shape == (3, 2) and cosine[2, 0] == pytest.approx(math.cos(2), rel=1e-6)
    assert sine[2, 1] == pytest.approx(math.sin(0.02), rel=1e-6)


def test_a_choice_is_the_best_whole_option() -> None:
    tokenizer = ByteTokenizer(first=0)
    table = np.zeros((256, 256))
    table[ord(">"), ord("n")] = 5  # "no" begins better, but nothing leads on from n
    table[ord("n"), :] = 0
    table[ord("y"), ord("e")] = table[ord("e"), ord("s")] = 30
    table[ord("s"), 2] = 30
    decoder = Table(table)
    found = choosing.choose(decoder, tokenizer, [ord(">")], ["no", "yes"], end=2)
    rows = choosing.scores(decoder, tokenizer, [ord(">")], ["no", "yes", "yessir"], end=2)
    assert found.option == "yes" and found.probability == pytest.approx(1, abs=0.01)
    expected = 0.0
    for last, following in zip(">no", [*b"no", 2], strict=True):
        row = table[ord(last)]
        expected += row[following] - math.log(np.exp(row).sum())
    assert rows[0] == pytest.approx(expected)
    assert rows[2] < rows[1]
    with pytest.raises(UsageError, match="must be different"):
        choosing.choose(decoder, tokenizer, [1], ["a", "a"], end=2)
    assert choosing.quoted(" 头疼。", "患者头疼三天") == "头疼" and choosing.quoted("发热", "头疼") == choosing.ABSENT


def embed(texts: Sequence[str]) -> np.ndarray:
    """Counts of letters."""
    return np.array([[text.count(letter) for letter in "abcxyz"] for text in texts], np.float32)


def test_retrieval_finds_merges_and_stops() -> None:
    library = retrieval.Library(embed, least=5)
    assert library.add("one", "aaaaa. bbbbb. ccccc.") == 3
    library.add("two", "xxxxx。yyyyy。")
    (best, *_) = library.search("aaaaa", top=1, longest=12)
    assert (best.text, best.source, best.distance) == ("aaaaa.bbbbb.", "one", 0.0)
    assert library.search("aaaaa", top=3, threshold=10, longest=5)[0].text == "aaaaa."
    assert len(library.search("aaaaa", top=3, threshold=10, longest=5)) == 1
    (merged,) = library.search("aaaaab", top=2, threshold=100, longest=30)
    assert merged.text == "aaaaa.bbbbb.ccccc."
    assert not retrieval.Library(embed).search("a")


def test_sentences_are_not_short() -> None:
    assert retrieval.sentences("短。这是一个足够长的句子，确实有二十个字以上的长度。好。", least=8) == [
        "短。这是一个足够长的句子，确实有二十个字以上的长度。好。"
    ]
    assert retrieval.sentences("One. A longer sentence. Last", least=10) == ["One. A longer sentence. Last"]


def test_the_prompt_of_retrieval() -> None:
    talk = [Message(role="user", content="q1"), Message(role="assistant", content="a1 {question}")]
    talk.append(Message(role="user", content="q2"))
    found = retrieval.prompt([retrieval.Passage("text", "s", 0.0)], talk)
    assert "[1]\n```\ntext\n```\n" in found
    assert found.endswith("\nUser: q1\nHelper: a1 {question}</s>User:q2</s>Helper:")
    assert "None" in retrieval.prompt([], talk) and retrieval.query_of(talk) == "a1 {question}\nq2"
    assert "q1" not in retrieval.prompt([], talk, history=1)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    found = Memory(
        tmp_path / "m.db",
        [Form("visits", {"patient": str, "day": str, "sugar": float}, required=("patient",), note="one a visit")],
        seconds=0.5,
    )
    for number in range(5):
        found.write("visits", patient=f"p{number % 2}", sugar=number)
    return found


def test_memory_answers_selects(memory: Memory, tmp_path: Path) -> None:
    assert memory.schema == "visits(patient TEXT, day TEXT, sugar REAL) -- one a visit"
    found = memory.ask("SELECT patient, max(sugar) AS top FROM visits WHERE patient = :p", {"p": "p1"})
    assert (found.columns, found.rows) == (("patient", "top"), (("p1", 3.0),))
    few = Memory(tmp_path / "m.db", [Form("visits", {"patient": str})], most_rows=2)
    assert few.ask("SELECT sugar FROM visits ORDER BY 1").cut


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM visits",
        "INSERT INTO visits VALUES ('x', 'y', 1)",
        "SELECT 1; DROP TABLE visits",
        "SELECT name FROM sqlite_master",
        "PRAGMA table_info(visits)",
        "ATTACH ':memory:' AS other",
        "CREATE TABLE x (a)",
        "SELECT load_extension('x')",
        "SELECT nothing FROM visits",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "",
    ],
)
def test_memory_refuses_all_else(memory: Memory, tmp_path: Path, sql: str) -> None:
    with pytest.raises(InputError):
        memory.ask(sql)
    with sqlite3.connect(tmp_path / "m.db") as connection:
        assert connection.execute("SELECT count(*) FROM visits").fetchone() == (5,)


def test_memory_checks_what_is_written(memory: Memory) -> None:
    for table, values in (
        ("others", {}), ("visits", {"sugar": 1.0}), ("visits", {"patient": "x", "colour": "red"}),
        ("visits", {"patient": 3}), ("visits", {"patient": "x", "sugar": "high"}), ("visits", {"patient": None}),
    ):  # fmt: skip
        with pytest.raises(InputError):
            memory.write(table, **values)
    with pytest.raises(UsageError, match="no name of a table"):
        Form("a; DROP", {})
