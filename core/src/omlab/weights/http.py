"""Plain HTTPS: resumed where it broke off, retried, never downgraded.

The standard library does the transfer. What is ours is the resuming: a partial file is continued with a range
request that is bound to the entity it began with (``If-Range``), and started anew where the server has changed it or
knows no ranges. No library on the index that we found does this for a bare URL.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import attrs

from omlab.cards import Asset
from omlab.errors import OfflineError, WeightsError
from omlab.progress import Listener, Progress
from omlab.weights.store import record_of

ATTEMPTS = 5
TIMEOUT_SECONDS = 30.0
BLOCK = 1 << 20


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Redirects are followed, but never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise WeightsError(f"{req.full_url} redirects to {newurl}, which is not encrypted", remedy="Not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@attrs.frozen
class _Broken(Exception):
    """The transfer broke off; trying again may help."""

    why: str


def fetch(asset: Asset, part: Path, listener: Listener) -> None:
    """Fetch ``asset.url`` into ``part``, continuing what an earlier try left there.

    Raises
    ------
    OfflineError
        No connection.
    WeightsError
        The server refuses, or the transfer broke off too often; the partial file stays for the next try.
    """
    pause = 0.2
    for attempt in range(1, ATTEMPTS + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(asset, part, listener)
        except _Broken as broken:
            after = part.stat().st_size if part.exists() else 0
            if attempt == ATTEMPTS:
                raise WeightsError(
                    f"{asset.url}: the transfer broke off {ATTEMPTS} times, last after {after} bytes: {broken.why}",
                    remedy="What came is kept; run the command again to go on from there",
                ) from None
            if after == before:
                time.sleep(pause)
                pause *= 2
            continue
        record_of(part).unlink(missing_ok=True)
        return


def _transfer(asset: Asset, part: Path, listener: Listener) -> None:
    have = part.stat().st_size if part.exists() else 0
    entity = _entity(part) if have else ""
    headers = {"User-Agent": "omlab", "Accept-Encoding": "identity"}
    if have and entity:
        headers |= {"Range": f"bytes={have}-", "If-Range": entity}
    else:
        have = 0  # an unnamed entity cannot be continued safely
    opener = urllib.request.build_opener(_NoDowngrade)
    try:
        response = opener.open(urllib.request.Request(asset.url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                part.unlink()
                raise _Broken("the server no longer has the part that was asked for") from None
            if error.code in {408, 425, 429, 500, 502, 503, 504}:
                raise _Broken(f"HTTP {error.code} {error.reason}") from None
            raise WeightsError(
                f"{asset.url}: the server answers {error.code} {error.reason}", remedy="Check the address in the card"
            ) from None
    except (ConnectionResetError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionResetError | http.client.RemoteDisconnected | TimeoutError):
            raise _Broken(str(error.reason)) from None
        raise OfflineError(
            f"{asset.url} cannot be reached: {error.reason}", remedy="Check the network or proxy"
        ) from None
    except TimeoutError:
        raise _Broken(f"no answer in {TIMEOUT_SECONDS:.0f} s") from None
    with response:
        resumed = response.status == 206 and _starts_at(response, have)
        if not resumed:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else asset.size
        name = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        # A weak ETag does not promise the same bytes, so it cannot be continued.
        record_of(part).write_text(json.dumps({"entity": "" if name.startswith("W/") else name}), "utf-8")
        with open(part, "ab" if resumed else "wb") as file:
            done = have
            while True:
                try:
                    block = response.read(BLOCK)
                except (http.client.IncompleteRead, ConnectionError, TimeoutError) as error:
                    if isinstance(error, http.client.IncompleteRead):
                        file.write(error.partial)
                    raise _Broken(str(error) or type(error).__name__) from None
                if not block:
                    break
                file.write(block)
                done += len(block)
                listener(Progress(asset.filename, "download", done, total, "bytes"))
    if total is not None and done < total:
        raise _Broken(f"{done} of {total} bytes came")


def _entity(part: Path) -> str:
    """Name of the entity that the partial file belongs to."""
    try:
        found = json.loads(record_of(part).read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    entity = found.get("entity", "") if isinstance(found, dict) else ""
    return entity if isinstance(entity, str) else ""


def _starts_at(response: Any, have: int) -> bool:
    """Does the range that came begin where our part ends?"""
    content_range = response.headers.get("Content-Range", "")
    return content_range.startswith(f"bytes {have}-")  # type: ignore[no-any-return]
