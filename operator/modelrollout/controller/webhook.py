"""One question by HTTP: which URLs may be called, how it is signed, and what counts as an answer.

Whoever may write a ModelRollout says where the operator sends a request to, from inside of the cluster. So only URLs that
were allowed at the installation are called, redirects lead nowhere, and little of an answer is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from urllib.parse import SplitResult, unquote, urlsplit

import aiohttp
from yarl import URL

from modelrollout.decision.types import GateReading
from modelrollout.workloads.gates import first_line

ANY = "*"
TIMESTAMP_HEADER = "X-Modelrollout-Timestamp"
SIGNATURE_HEADER = "X-Modelrollout-Signature"
KEY_HEADER = "Idempotency-Key"
_READ = 4096  # bytes of an answer; its first line goes into the message
_PORTS = {"http": 80, "https": 443}


def parse_beginning(text: str) -> str:
    """A beginning of URLs that may be called. Raises ValueError with a sentence."""
    if text != ANY and _parts(text) is None:
        raise ValueError(
            f"--gate-webhook is {text!r}: write the beginning of a URL with its whole host, like https://ci.example.com/gates/"
        )
    return text


def allowed(url: str, beginnings: Iterable[str]) -> bool:
    """Whether a URL may be called: the same scheme, host and port as one of the beginnings, and a path within its own."""
    asked = _parts(url)
    if asked is None:
        return False
    for beginning in beginnings:
        if beginning == ANY:
            return True
        known = _parts(beginning)
        if known is None or known[0] != asked[0]:
            continue
        if asked[1] == known[1] or asked[1].startswith(f"{known[1].rstrip('/')}/"):
            return True
    return False


def _parts(url: str) -> tuple[tuple[str, str, int], str] | None:
    """Where a URL leads, and its path; None if that can be read in more than one way."""
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        return None
    if split.scheme not in _PORTS or not split.hostname or split.username is not None or "@" in split.netloc:
        return None
    path = unquote(split.path) or "/"
    if "\\" in path or ".." in path.split("/") or "%" in path:
        return None
    return (split.scheme, split.hostname.lower(), port or _PORTS[split.scheme]), path


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 over the time, a dot and the body, in hexadecimal: the receiver refuses old times and other bodies."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def headers_of(body: bytes, key: str, timestamp: str, secret: bytes | None) -> dict[str, str]:
    """The headers of a question. `timestamp`: epoch seconds; `key` is the same whenever the same is asked."""
    headers = {
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "modelrollout",
        KEY_HEADER: key,
        TIMESTAMP_HEADER: timestamp,
    }
    return headers | ({SIGNATURE_HEADER: sign(secret, timestamp, body)} if secret is not None else {})


async def post(
    session: aiohttp.ClientSession, url: str, body: bytes, headers: Mapping[str, str], *, within: float
) -> GateReading:
    """Ask once; never raises for what the other side does. `within`: seconds for everything together."""
    try:
        async with (
            asyncio.timeout(within),
            session.post(
                # As it was written and allowed: nothing in it is decoded and put together anew.
                URL(url, encoded=True),
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as answer,
        ):
            return _reading(answer.status, answer.reason or "", await _beginning(answer))
    except TimeoutError:
        return GateReading(False, f"{_place(url)} did not answer within {within:g}s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return GateReading(
            False, first_line(f"{_place(url)} can't be asked: {error or type(error).__name__}")
        )


async def _beginning(answer: aiohttp.ClientResponse) -> str:
    data = b""
    while len(data) < _READ and b"\n" not in data.strip():
        more = await answer.content.read(_READ - len(data))
        if not more:
            break
        data += more
    return data.decode("utf-8", errors="replace")


def _reading(status: int, reason: str, text: str) -> GateReading:
    line = first_line(text)
    if 200 <= status < 300:
        return GateReading(True, line)
    said = f"answered {status} {reason}".strip()
    if 300 <= status < 400:
        return GateReading(False, first_line(f"{said}: redirects are not followed"))
    return GateReading(False, first_line(f"{said}: {line}" if line else said))


def _place(url: str) -> str:
    """Where a URL leads, without what may be secret in its path or query."""
    split: SplitResult = urlsplit(url)
    return f"{split.scheme}://{split.netloc}"
