"""What tests across packages share besides fixtures."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

MODEL_TABLE = """
[[model]]
name = "{name}"
summary = "A model for tests"
modality = ["mr"]
task = ["segmentation"]
inputs = ["volume"]
outputs = ["segmentation"]
licence-code = {{ spdx = "Apache-2.0" }}
licence-weights = {{ spdx = "MIT" }}
intended-use = "Tests"
limits = "Not for use"
variants = [{{ name = "default" }}]
"""
