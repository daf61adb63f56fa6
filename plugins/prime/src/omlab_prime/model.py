"""PRIME as a model of omlab: a protein to its temperature, to scores of its mutants, or to an embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case, Sequence
from omlab.errors import InputError, UsageError, require
from omlab.files import stamp
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.prompts import Prompts
from omlab.results import Embedding, Result, Scores
from omlab_prime import mutants
from omlab_prime.vocabulary import AMINO_ACIDS, ID, batch, encode

if TYPE_CHECKING:
    import torch

WIDTH = 1280
#: Letters of generation B, whose table of embeddings ends there.
LEGACY_LETTERS = frozenset("LAGVSERTIDPKQNFYMHWCX")
LETTERS = LEGACY_LETTERS | set("BUZO")
#: Residues that a graph takes at most: beyond them the attention of a layer alone needs 5 GB.
LONGEST = 8192
RANGES = {"batch": (1, 1, 64), "tokens": (2, 256, LONGEST + 2)}
_SOURCES = ("omlab_prime.network", "omlab_prime.checkpoint")
#: Ubiquitin and the start of a beta-lactamase: inputs on which engines are compared.
EXAMPLES = (
    "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "MSIQHFRVALIPFFAAFCLPVFAHPETLVKVKDAEDQLGARVGYIELDLNSG",
)


class Prime(Model):
    """The model ``prime``. A variant's ``config`` may give the ``size`` of a network that is not the published one, by
    the names of :data:`omlab_prime.network.BASE`."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``network``: ids and mask of tokens to what the variant's heads say of them."""
        inputs = tuple(
            TensorSpec(name, "int64", ("batch", "tokens"), "batch token", RANGES) for name in ("ids", "mask")
        )
        width = int(variant.config.get("size", {}).get("hidden_size", WIDTH))
        outputs = {
            "logits": (("batch", "tokens", 33), "batch token residue", Judge.LOGITS),
            "hidden": (("batch", "tokens", width), "batch token feature", Judge.EMBEDDING),
            "sequence": (("batch", width), "batch feature", Judge.EMBEDDING),
            "temperature": (("batch",), "batch", Judge.VALUES),
        }
        names = _outputs(variant)
        return (
            Graph(
                name="network",
                inputs=inputs,
                outputs=tuple(
                    TensorSpec(name, "float32", outputs[name][0], outputs[name][1], RANGES) for name in names
                ),
                judge={name: outputs[name][2] for name in names},
                sources=_SOURCES,
                config=dict(variant.config),
            ),
        )

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The network at the size of the variant, as constructed."""
        from omlab_prime.network import BASE, Legacy
        from omlab_prime.network import Prime as Network

        size = BASE | dict(variant.config.get("size", {}))
        if variant.config["generation"] == "c":
            return Network(**_heads(variant), **size).eval()
        return Legacy(regression="logits" not in _outputs(variant), **size).eval()

    def small(self, variant: Variant) -> Variant:
        """Two narrow layers in place of 33."""
        size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        return variant.configured(size=size)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with the published weights."""
        for module in ("torch", "omlab_sdk"):
            require(module, needed_for="making the engine of prime", install="omlab-prime[convert]")
        from omlab_prime.checkpoint import load

        (asset,) = variant.weights
        size = variant.config.get("size", {})
        return load(files["net"], asset, variant.config["generation"], **_heads(variant), **size)

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, NDArray[Any]]]:
        """Two proteins, alone and as a padded batch."""
        rows = [encode(residues) for residues in EXAMPLES]
        for chosen in (rows[:1], rows):
            ids, mask = batch(chosen)
            yield {"ids": ids, "mask": mask}

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` for options that exclude each other, and
        :class:`omlab.errors.InputError` for a table of mutants that is none."""
        give, path = options["give"], options["mutants"]
        if path is not None and options["saturate"]:
            raise UsageError("--mutants and --saturate are two questions", remedy="Ask one of them")
        if give not in ("auto", "scores") and (path is not None or options["saturate"]):
            raise UsageError(f"mutants are scored, and --give {give} asks for something else", remedy="Leave it out")
        if not 1 <= options["max_length"] <= LONGEST:
            raise UsageError(f"--max-length is 1 to {LONGEST}, found {options['max_length']}")
        if path is not None:
            _table(Path(path))

    def predict(self, case: Case, context: Context) -> Result:
        """Temperature, scores of mutants, or embedding of a protein, by the option ``give``.

        Raises
        ------
        omlab.errors.InputError
            A letter that the variant does not know, a sequence that is too long, mutants that do not fit it.
        omlab.errors.UsageError
            The variant has no head for what is asked.
        """
        if not isinstance(case, Sequence):
            raise InputError(f"{case.name}: prime takes a protein sequence, found {case.kind}")
        options, names = context.options, _outputs(context.variant)
        give = options["give"]
        if give == "auto":
            asked = options["mutants"] or options["saturate"]
            give = "scores" if asked or "temperature" not in names else "temperature"
        needed = {"scores": "logits", "temperature": "temperature", "embedding": "hidden"}[give]
        if needed not in names:
            raise UsageError(
                f"variant '{context.variant.name}' of prime gives no {give}", remedy="Use --variant 690m, say"
            )
        legacy = context.variant.config["generation"] == "b"
        check(case, LEGACY_LETTERS if legacy else LETTERS)
        if give == "scores":
            return self._scores(case, context, legacy)
        found = self._run(case.residues, case.name, context)
        if give == "embedding":
            tokens = found["hidden"][0, 1:-1]
            return Embedding(vector=found["sequence"][0] if "sequence" in found else tokens.mean(axis=0), tokens=tokens)
        kind = context.variant.config["temperature"]
        degrees = float(found["temperature"][0])
        return Scores(
            columns={"sequence": [case.name], "length": [len(case.residues)], f"{_word(kind)}_celsius": [degrees]},
            measurements={f"{_word(kind)}_celsius": degrees},
        )

    def _run(self, residues: str, name: str, context: Context) -> Mapping[str, NDArray[np.float32]]:
        limit = context.options["max_length"]
        if len(residues) > limit:
            remedy = "Cut it into domains"
            if len(residues) <= LONGEST:
                remedy += f", or give --max-length {len(residues)} if memory suffices"
            raise InputError(f"{name}: has {len(residues)} residues, at most {limit} are taken at once", remedy=remedy)
        ids, mask = batch([encode(residues)])
        engine = context.engines["network"]
        with context.stage("network"):
            return engine({"ids": ids, "mask": mask})

    def _scores(self, case: Sequence, context: Context, legacy: bool) -> Scores:
        if context.options["mutants"] is None:
            return self._saturated(case, context)
        table = _table(Path(context.options["mutants"]))
        mutants.demand(table, case.residues, case.name)
        first, last = 0, len(case.residues)
        if legacy:
            several = next((t for t, m in zip(table.written, table.mutants, strict=True) if len(m) > 1), None)
            if several:
                raise InputError(f"{case.name}: '{several}' has several substitutions, a legacy variant scores one")
            first, last = mutants.window([s.position - 1 for m in table.mutants for s in m], len(case.residues))
        found = self._run(case.residues[first:last], case.name, context)
        rows = mutants.log_probabilities(found["logits"][0, 1:-1])
        values = [mutants.score(mutant, rows, first=first) for mutant in table.mutants]
        return Scores(columns={"mutant": table.written, **table.others, "predict_score": values})

    def _saturated(self, case: Sequence, context: Context) -> Scores:
        from omlab_prime.heatmap import draw

        found = self._run(case.residues, case.name, context)
        grid = mutants.saturation(case.residues, mutants.log_probabilities(found["logits"][0, 1:-1]))
        rows = [
            (place, old, new, float(grid[place, column]))
            for place, old in enumerate(case.residues)
            for column, new in enumerate(AMINO_ACIDS)
            if new != old
        ]
        return Scores(
            columns={
                "mutant": [f"{old}{place + 1}{new}" for place, old, new, _ in rows],
                "position": [place + 1 for place, _, _, _ in rows],
                "old": [old for _, old, _, _ in rows],
                "new": [new for _, _, new, _ in rows],
                "predict_score": [value for _, _, _, value in rows],
            },
            illustration=lambda title: draw(grid, case.residues, title=title, name=case.name),
        )


def _outputs(variant: Variant) -> tuple[str, ...]:
    """Outputs of the variant's network, in order."""
    heads = _heads(variant)
    temperature = ("sequence", "temperature") if heads["temperature"] else ()
    return (*(("logits",) if heads["residues"] else ()), "hidden", *temperature)


def _heads(variant: Variant) -> dict[str, bool]:
    """Which heads the variant's network has; generation B has one a file."""
    temperature = bool(variant.config["temperature"])
    alone = variant.config["generation"] == "b" and temperature
    return {"residues": bool(variant.config.get("residues", not alone)), "temperature": temperature}


def _table(path: Path) -> mutants.Table:
    """The mutants of a file, read once for all cases of a run."""
    return _read_table(path, stamp([path]))


@lru_cache(maxsize=1)
def _read_table(path: Path, version: str) -> mutants.Table:
    return mutants.read(path)


def _word(kind: str) -> str:
    return f"{kind.replace(' ', '_')}_temperature"


def check(case: Sequence, letters: frozenset[str]) -> None:
    """Raise :class:`omlab.errors.InputError` for a residue that the network does not know."""
    odd = next((place for place, letter in enumerate(case.residues) if letter not in letters), None)
    if odd is None:
        return
    known = "".join(sorted(letters, key=lambda letter: ID[letter]))
    raise InputError(
        f"{case.name}: has the residue '{case.residues[odd]}' at position {odd + 1}, known are {known}",
        remedy="Write X for a residue that is not known",
    )
