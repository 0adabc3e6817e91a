"""Ranges of files on a server, by the hub library's own client; and what its errors mean, in sentences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lol_core.collections.blob import RangeFile
from lol_core.collections.waiting import wait
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoRAFormatError, SourceSilentError, ZooError

TRIES, LATE_TRIES = 3, 2
PATIENCE_S = 30
"""The longest wait that a server may ask for, in seconds, before it is said instead of waited for."""
BLOCK = 2**15 + 2**10
"""Bytes that a glance reads at once: the header of most files, and what a zip archive has before it."""
GLANCE_BYTES = 2**24
"""Bytes that a glance may read of one file in all."""
SKIPPED_BYTES = 2**20
Answer = TypeVar("Answer")
KEPT = "What was read is kept; open it again to go on."


class NetworkError(ZooError):
    """Something on a server cannot be had, with what to do."""


class PassingError(NetworkError):
    """The same where it may be had later."""


class Late(PassingError):
    """The server takes the request and does not answer in time."""


class Unreachable(PassingError, SourceSilentError):
    """The server itself does not answer, or does not want to."""


@dataclass(frozen=True)
class Piece:
    """A range of a file. total: bytes of the file; etag: of its content, as the server names it."""

    data: bytes
    total: int
    etag: str


class RemoteFile(RangeFile):
    """A file on a server, read by blocks. etag: of its content, "" where it is not known before the first read.

    what: what to call it in errors; size: None where it is not known, which costs a read; limit: bytes that may be
    read of it in all.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        what: str,
        *,
        size: int | None = None,
        limit: int | None = None,
        etag: str = "",
    ):
        self._where, self._limit, self._spent = (url, headers, what), limit, 0
        self.etag = etag
        first = b""
        if size is None:
            piece = fetch(*self._where, 0, stop=BLOCK)
            self.etag, first, size = piece.etag, piece.data, piece.total
        self._total = size
        super().__init__(self._more, size, first, block=BLOCK)

    def _more(self, start: int, stop: int) -> bytes:
        self._spent += stop - start
        if self._limit is not None and self._spent > self._limit:
            raise LoRAFormatError(
                f"Its header cannot be read without most of its {self._total:,} bytes. Download the file and open the"
                " folder."
            )
        piece = fetch(*self._where, start, stop=stop)
        if piece.total != self._total or piece.etag != (self.etag or piece.etag):
            raise NetworkError(f"{self._where[2]} has changed on the server while it was read. Open it again.")
        self.etag = piece.etag
        return piece.data


def fetch(url: str, headers: Mapping[str, str], what: str, start: int, *, stop: int) -> Piece:
    """Bytes [start, stop) of a file, fewer where it ends. Raises NetworkError after some tries."""
    headers = {**headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    return _tried(what, partial(_once, url, headers, start, stop))


def _tried(what: str, ask: Callable[[], Answer]) -> Answer:
    for tries in itertools.count(1):
        try:
            with sentences(what):
                return ask()
        except _Again as again:
            if tries == again.tries or again.wait > PATIENCE_S:
                raise again.error from again.__cause__
            wait(again.wait or 2.0 ** (tries - 1))
    raise AssertionError("unreachable")


def _once(url: str, headers: Mapping[str, str], start: int, stop: int) -> Piece:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        first = response.history[0].headers if response.history else response.headers
        etag = (first.get("X-Linked-Etag") or response.headers.get("ETag") or "").removeprefix("W/").strip('"')
        if response.status_code == 206:
            total = int(response.headers["Content-Range"].rpartition("/")[2])
            return Piece(response.read()[: stop - start], total, etag)
        total = int(response.headers.get("Content-Length", 0))  # the server knows no ranges, and sends all of it
        if start > SKIPPED_BYTES:
            raise LoRAFormatError("Its server does not serve ranges of files. Download it and open the folder.")
        data = bytearray()
        for chunk in response.iter_raw():
            data += chunk
            if len(data) >= min(stop, total):
                break
        return Piece(bytes(data[start:stop]), total, etag)


def download(
    url: str,
    path: Path,
    total: int,
    reporter: Reporter = SILENT,
    *,
    headers: Mapping[str, str] | None = None,
    what: str = "",
) -> None:
    """Append to a file what it lacks of the `total` bytes of a file on a server, so that a download that was cut goes
    on. what: what to call it in errors, by default its URL. Raises NetworkError after some tries, Stopped; what came
    stays in the file.
    """
    _tried(what or url, partial(_rest, url, headers or {}, path, total, reporter=reporter))


def _rest(url: str, headers: Mapping[str, str], path: Path, total: int, *, reporter: Reporter) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    start = path.stat().st_size if path.exists() else 0
    if start >= total:
        return
    headers = {**headers, "Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        with path.open("ab" if response.status_code == 206 else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
                reporter.check("What came is kept; the same again goes on.")
                done = f"{file.tell() / 1e6:,.0f} of {total / 1e6:,.0f} MB"
                reporter.show(f"Downloading {url.rpartition('/')[2]}: {done}", file.tell() / total)
    if path.stat().st_size < total:
        raise ValueError("the body ended before the file")


def pages(url: str, headers: Mapping[str, str], what: str) -> Iterator[Any]:
    """What an address of the hub's interface answers as JSON, page by page. The hub library's own listing waits as long
    as the server likes, and without a limit.
    """
    while url:
        answer, url = _tried(what, partial(_page, url, headers))
        yield answer


def _page(url: str, headers: Mapping[str, str]) -> tuple[Any, str]:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    response = get_session().get(url, headers=dict(headers), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    hf_raise_for_status(response)
    return response.json(), response.links.get("next", {}).get("url", "")


class _Again(Exception):
    """An error that may pass. wait: seconds that the server asked for, 0 where it did not say; tries: in all, before it
    is taken for one that stays.
    """

    def __init__(self, error: NetworkError, wait: float = 0, tries: int = TRIES):
        self.error, self.wait, self.tries = error, wait, tries


@contextmanager
def sentences(what: str) -> Iterator[None]:
    """Errors of the network and the hub as NetworkError: a sentence, and what to do; as _Again where it may pass."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise Unreachable(
            f"{what} is on a server, where HF_HUB_OFFLINE forbids to go. Unset it to open what was not opened before."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise Unreachable(f"{what} was not downloaded before, and its server cannot be reached. {KEPT}") from error
    except errors.GatedRepoError as error:
        raise NetworkError(
            f"{what} is gated: accept its terms on its page of the hub, log in with `hf auth login`, and open it again."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NetworkError(f"{what} has no such revision. Check what follows the @ in the address.") from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        raise NetworkError(_not_found(what)) from error
    except errors.HfHubHTTPError as error:
        raise _of_status(what, error.response) from error
    except httpx2.HTTPStatusError as error:
        raise _of_status(what, error.response) from error
    except httpx2.TimeoutException as error:
        made = Late(f"{what} did not come within the time that HF_HUB_DOWNLOAD_TIMEOUT allows. {KEPT}")
        raise _Again(made, tries=LATE_TRIES) from error
    except httpx2.ConnectError as error:
        host = urlsplit(str(error.request.url)).hostname if getattr(error, "_request", None) else "the server"
        raise _Again(Unreachable(f"{host} cannot be reached for {what}. Check the network. {KEPT}")) from error
    except httpx2.HTTPError as error:
        raise _Again(PassingError(f"The connection broke while {what} came. {KEPT}")) from error
    except ValueError as error:
        raise _Again(PassingError(f"The server's answer to {what} makes no sense. {KEPT}")) from error


def _not_found(what: str) -> str:
    if what.startswith("http"):
        return f"There is no {what}. Check the spelling."
    return (
        f"There is no {what} on the hub, or it is private. Check the spelling; a data set's address begins with"
        " hf://datasets/; log in with `hf auth login` if it is yours."
    )


def _of_status(what: str, response: Any) -> Exception:
    status = response.status_code
    if status == 401:
        return NetworkError(
            f"The server wants to know who asks for {what} (401), or does not know it. Check the spelling, and log in"
            " with `hf auth login`."
        )
    if status == 403:
        return NetworkError(f"You may not read {what} (403). Accept its terms on its page, or ask its owner.")
    if status in (404, 410):
        return NetworkError(_not_found(what))
    if status == 429:
        seconds = _seconds_to_wait(response.headers)
        when = f"in {seconds:.0f} seconds" if seconds else "in some minutes"
        return _Again(
            Unreachable(f"The server has had too many requests (429) and answers again {when}. {KEPT}"), seconds
        )
    made = PassingError(f"The server answered {status} to {what}. Try again later. {KEPT}")
    return _Again(made) if status >= 500 or status == 408 else NetworkError(str(made))


def _seconds_to_wait(headers: Mapping[str, str]) -> float:
    """What a server that is asked too much says: `Retry-After`, or `ratelimit: "api";r=0;t=55`; 0 where it does not."""
    after = headers.get("Retry-After", "").strip()
    if after.isdigit():
        return float(after)
    limit = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return float(limit[1]) if limit else 0.0


@contextmanager
def asked_once(what: str) -> Iterator[None]:
    """`sentences` for what the hub library itself tries again."""
    try:
        with sentences(what):
            yield
    except _Again as again:
        raise again.error from again.__cause__
    except OSError as error:  # also when what came is shorter than was announced
        raise PassingError(f"{what} did not come whole ({str(error).splitlines()[0][:200]}). Try again.") from error
