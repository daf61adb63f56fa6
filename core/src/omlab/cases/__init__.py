"""Cases: what a model looks at, and reading them from files, recognised by content."""

from __future__ import annotations

from omlab.cases.reading import Found, find, read
from omlab.cases.slide import Slide
from omlab.cases.slide_features import PatchFeatures
from omlab.cases.stack import Stack
from omlab.cases.types import Case, Image, Message, Sequence, Source, Text, Volume
from omlab.cases.video import Video

__all__ = [
    "Case", "Found", "Image", "Message", "PatchFeatures", "Sequence", "Slide", "Source", "Stack", "Text", "Video",
    "Volume", "find", "read",
]  # fmt: skip
