"""Cases: what a model looks at, and reading them from files, recognised by content."""

from __future__ import annotations

from omlab.cases.reading import Found, find, read
from omlab.cases.types import Case, Image, Message, Sequence, Source, Text, Volume

__all__ = ["Case", "Found", "Image", "Message", "Sequence", "Source", "Text", "Volume", "find", "read"]
