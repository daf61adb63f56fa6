"""SmolLM2: tokens a second of reading a prompt and of writing, in float32, int8 and int4, against transformers eager
and llama-cpp-python; and of answering several prompts side by side, as ``omlab run`` does, against one by one.

    python tools/bench/language.py [--tokens 256] [--written 64] [--rounds 3]
    python tools/bench/language.py --together [--prompts 16] [--written 32] [--precision int8]

Greedy, the same prompt for all, the ways in turn round by round. llama-cpp-python runs the same file in an environment
of its own (``.bench-peers/llama-cpp``), where it is compiled on the first run; without a compiler its rows are left out
and the reason is told. It keeps weights in the file's 4 bits.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, interleaved, table

import omlab
from omlab.memory import usable_cpus

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".bench-peers" / "llama-cpp"
PRECISIONS = ("float32", "int8", "int4")
EAGER = "transformers eager"
SIZES = (1, 2, 4, 8, 16)
TOPICS = (
    "Describe a river in spring.", "What is a good way to learn to cook?", "Tell me a story about a dog and a cat.",
    "Explain why the sky is blue.",
)  # fmt: skip
#: (seconds to the first token's scores, seconds of all later tokens)
Timing = tuple[float, float]

#: Runs in the peer's environment: reads requests, one a line, and answers with the two times.
LLAMA = """
import json, sys, time
from llama_cpp import Llama
path, threads = sys.argv[1], int(sys.argv[2])
model = Llama(path, n_ctx=4096, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)
print("ready", flush=True)
for line in sys.stdin:
    ids, written = json.loads(line)
    model.reset()
    start = time.perf_counter()
    model.eval(ids)
    token = model.sample(temp=0.0)
    first = time.perf_counter()
    for _ in range(written - 1):
        model.eval([token])
        token = model.sample(temp=0.0)
    print(json.dumps([first - start, time.perf_counter() - first]), flush=True)
"""


def ours(model: Any, written: int) -> Callable[[list[int]], Timing]:
    """A loaded model's engine, with its own sampler."""
    from omlab_sdk.language.sampling import Sampler, Sampling

    engine = model.engines["language"]
    sampler = Sampler(Sampling(temperature=0))

    def run(ids: list[int]) -> Timing:
        start = time.perf_counter()
        texts = engine.open([ids], written)
        token = sampler.draw(texts.logits(), [9])
        first = time.perf_counter()
        for _ in range(written - 1):
            texts.append(token)
            token = sampler.draw(texts.logits(), [9])
        texts.close()
        return first - start, time.perf_counter() - first

    return run


def eager(model: Any, written: int, threads: int) -> Callable[[list[int]], Timing]:
    """The network of the transformers library with its own cache, float32."""
    import warnings

    import torch

    warnings.simplefilter("ignore", FutureWarning)  # the library renames its arguments
    torch.set_num_threads(threads)
    (graph,) = model.graphs
    network = model.model.network(graph, model.variant, model.files).model

    def run(ids: list[int]) -> Timing:
        with torch.inference_mode():
            start = time.perf_counter()
            found = network(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            token = found.logits[:, -1].argmax(-1, keepdim=True)
            first = time.perf_counter()
            for _ in range(written - 1):
                found = network(token, past_key_values=found.past_key_values, use_cache=True)
                token = found.logits[:, -1].argmax(-1, keepdim=True)
            return first - start, time.perf_counter() - first

    return run


def llama_cpp(path: Path, written: int, threads: int) -> Callable[[list[int]], Timing]:
    """The peer in a process of its own. Raises ``RuntimeError`` where it cannot be had."""
    python = PEER / "bin" / "python"
    if not (PEER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "llama-cpp-python"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
        (PEER / "ready").touch()
    process = subprocess.Popen(
        [str(python), "-c", LLAMA, str(path), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError("llama-cpp-python cannot load the file")

    def run(ids: list[int]) -> Timing:
        process.stdin.write(json.dumps([ids, written]) + "\n")
        process.stdin.flush()
        first, rest = json.loads(process.stdout.readline())
        return float(first), float(rest)

    return run


def run(tokens: int = 256, written: int = 64, rounds: int = 3) -> list[Row]:
    """Rows of reading and writing, with tokens a second and the parity of each engine."""
    threads = usable_cpus()
    ways: dict[str, Callable[[list[int]], Timing]] = {}
    notes: dict[str, str] = {}
    loaded = omlab.load("smollm2", fetch=True, threads=threads)
    ways[EAGER] = eager(loaded, written, threads)
    for precision in PRECISIONS:
        model = omlab.load("smollm2", precision=precision, threads=threads)
        ways[f"omlab {precision}"] = ours(model, written)
        notes[f"omlab {precision}"] = model.engines.provided["language"].parity.summary()
    try:
        ways["llama-cpp-python (Q4_1)"] = llama_cpp(loaded.files["net"], written, threads)
    except RuntimeError as error:
        print(f"llama-cpp-python is not measured: {error}", file=sys.stderr)
    ids = np.random.default_rng(0).integers(100, 40_000, tokens).tolist()
    times: dict[str, list[Timing]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            timing = way(ids)
            if number:
                times[name].append(timing)
    rows = []
    for place, what, count in ((0, f"read {tokens} tokens", tokens), (1, f"write {written - 1} tokens", written - 1)):
        base = statistics.median(timing[place] for timing in times[EAGER])
        for name, found in times.items():
            values = [timing[place] for timing in found]
            middle = statistics.median(values)
            note = f"{count / middle:.0f} tokens a second" + (f"; {notes[name]}" if name in notes and place else "")
            rows.append(Row(what=what, way=name, seconds=middle, best=min(values), ratio=base / middle, note=note))
    return rows


ALONE = "one by one"


def together(
    prompts: int = 16, written: int = 32, rounds: int = 3, precisions: Sequence[str] = PRECISIONS
) -> list[Row]:
    """Rows of answering ``prompts`` questions of unlike length with ``written`` tokens each, in batches of several
    sizes, from conversation to text."""
    rows = []
    for precision in precisions:
        model = omlab.load("smollm2", fetch=True, precision=precision, threads=usable_cpus())
        cases = [
            omlab.Text(
                name=f"q{n}", messages=[omlab.Message(role="user", content=f"{TOPICS[n % 4]} {'So? ' * (n % 7)}")]
            )
            for n in range(prompts)
        ]

        def answer(size: int, model: Any = model, cases: Any = cases) -> int:
            options = {"temperature": 1.0, "seed": 0, "max_new_tokens": written}
            found = []
            for start in range(0, len(cases), size):
                part = cases[start : start + size]
                found += [model.run(part[0], options=options)] if size == 1 else model.run_many(part, options=options)
            return sum(outcome.result.completion_tokens for outcome in found)

        counts = {f"batches of {size}" if size > 1 else ALONE: answer(size) for size in SIZES}
        ways = {name: functools.partial(answer, size) for name, size in zip(counts, SIZES, strict=True)}
        times = interleaved(ways, rounds)
        base = statistics.median(times[ALONE])
        for name, found in times.items():
            middle = statistics.median(found)
            note = f"{counts[name] / middle:.0f} tokens a second"
            what = f"answer {prompts} prompts, {precision}"
            rows.append(Row(what=what, way=name, seconds=middle, best=min(found), ratio=base / middle, note=note))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--written", type=int, help="tokens of each answer [64; side by side 32]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="only several prompts side by side")
    parser.add_argument("--prompts", type=int, default=16, help="of them side by side [16]")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="side by side in this; all without it")
    arguments = parser.parse_args()
    if not arguments.together:
        print(table(run(arguments.tokens, arguments.written or 64, arguments.rounds), baseline=EAGER), end="\n\n")
    rows = together(arguments.prompts, arguments.written or 32, arguments.rounds, arguments.precision or PRECISIONS)
    print(table(rows, baseline=ALONE))
