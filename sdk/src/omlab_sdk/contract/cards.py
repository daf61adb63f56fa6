"""Checks of what a plugin says of itself."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

from omlab.cards import Licence, ModelCard
from omlab.vocabulary import Kind, SourceKind
from omlab_sdk.contract.base import Broken, Skipped, Subject

#: Heavy libraries that importing a plugin must leave alone: they are for running, not for knowing.
HEAVY = ("torch", "onnxruntime", "openvino", "tensorrt", "scipy", "sklearn", "matplotlib", "transformers")


def card_complete(subject: Subject) -> str:
    """Cards of models say what people need to know before they use one."""
    models = subject.cards(Kind.MODEL)
    for card in models:
        assert isinstance(card, ModelCard)
        for field, least in (("intended_use", 20), ("limits", 20), ("summary", 10)):
            text = getattr(card, field)
            if len(text) < least or "TODO" in text or "..." in text:
                raise Broken(f"model '{card.name}': {field} says too little: '{text}'", f"Fill {field} in omlab.toml")
        if any("segmentation" in (v.outputs or card.outputs) for v in card.variants) and not (
            card.labels or card.prompts or all(v.labels for v in card.variants)  # prompts bring their own names
        ):
            raise Broken(f"model '{card.name}' segments but names no labels", "Add labels to omlab.toml")
        for reported in card.reported:
            if not reported.source.strip():
                raise Broken(
                    f"model '{card.name}': reported {reported.metric} has no source", "Name the paper and table"
                )
    named = ", ".join(f"{kind.value} {name}" for kind, name in subject.plugin.contributions)
    return f"contributes {named}"


def licence(subject: Subject) -> str:
    """The distribution and every model's code and weights have a licence by SPDX id."""
    try:
        metadata = distribution(subject.plugin.distribution).metadata
    except PackageNotFoundError:
        raise Broken(f"{subject.plugin.distribution} has no metadata", "Install it with pip") from None
    declared = metadata.get("License-Expression") or metadata.get("License")
    if not declared:
        raise Broken("pyproject.toml names no licence", 'Add license = "Apache-2.0" (an SPDX expression) to [project]')
    try:
        from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
    except ImportError:
        raise Skipped("the package 'packaging' is not installed, so SPDX ids cannot be looked up") from None

    def valid(found: Licence, whose: str) -> None:
        try:
            canonicalize_license_expression(found.spdx)
        except InvalidLicenseExpression:
            raise Broken(
                f"'{found.spdx}' of {whose} is no SPDX licence expression", "Use one, or LicenseRef-NAME with a url"
            ) from None

    for card in subject.cards(Kind.MODEL):
        assert isinstance(card, ModelCard)
        valid(card.licence_code, f"the code of '{card.name}'")
        valid(card.licence_weights, f"the weights of '{card.name}'")
    for card in subject.cards(Kind.DATASET):
        valid(card.licence, f"dataset '{card.name}'")  # type: ignore[attr-defined]
    return f"distribution under {declared}"


def weights_pinned(subject: Subject) -> str:
    """Files that are fetched have a digest; a hub file names a commit."""
    loose = []
    for card in [*subject.cards(Kind.MODEL), *subject.cards(Kind.DATASET)]:
        sets = [v.weights for v in card.variants] if isinstance(card, ModelCard) else [card.files]  # type: ignore[attr-defined]
        for asset in (asset for assets in sets for asset in assets):
            if asset.source is not SourceKind.BY_HAND and not asset.sha256:
                loose.append(f"{card.name}/{asset.id}")
    if loose:
        raise Skipped(f"no sha256 is known for {len(loose)} files, first {loose[0]}; the first fetch will record it")
    return "every file that is fetched has a digest"


def discovery_cheap(subject: Subject) -> str:
    """Knowing the plugin imports nothing of it; importing it imports no heavy library."""
    code = (
        "import sys; from omlab.plugins import Registry; r = Registry.discover()\n"
        f"before = {subject.plugin.package!r} in sys.modules\n"
        f"import {subject.plugin.package}\n"
        f"print(before, *sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Broken(f"its import fails: {done.stderr.strip().splitlines()[-1]}", "omlab doctor shows the traceback")
    before, *heavy = done.stdout.split()
    if before == "True":
        raise Broken("discovery imports the plugin", "Point the entry point at a top-level package")
    if heavy:
        raise Broken(f"importing it imports {', '.join(heavy)}", "Import these inside the functions that need them")
    return "known without an import; its import is light"


def behind_every_card(subject: Subject) -> str:
    """The hooks give an object for every card."""
    for kind, name in subject.plugin.contributions:
        subject.registry.load(kind, name)
    return f"{len(subject.plugin.contributions)} objects behind {len(subject.plugin.contributions)} cards"
