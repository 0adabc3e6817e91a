"""Collections on the Hugging Face hub: a repository, a data set, or all adapters of an author.

Headers are read by range requests, so that a thousand adapters are browsed without their weights; weights come when
they are needed, through the hub library's own cache, up to a limit. What was listed and read once opens again without
a network. This was run against a server of our own that speaks the hub's interface, never against the hub itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from lol_core.collections import archive
from lol_core.collections.blob import Blob
from lol_core.collections.cache import bytes_allowed, cache_folder
from lol_core.collections.columns import size
from lol_core.collections.durable import replace_file
from lol_core.collections.files import FileSource, Listing, OpenOptions, database_path
from lol_core.collections.http import PassingError, pages
from lol_core.collections.hub_address import HubAddress, Kind, parse
from lol_core.collections.remote_files import Budget, HubFile, Kept
from lol_core.collections.source import Source
from lol_core.collections.walk import ARCHIVES
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ZooError
from lol_core.formats import SUFFIXES

READERS = 16
"""Threads that read headers: each mostly waits for the server."""


@dataclass(frozen=True)
class Catalogue:
    """What the hub listed. files: by the path in the collection; time: when, in ISO 8601."""

    files: Mapping[str, HubFile]
    time: str

    def to_json(self) -> bytes:
        plain = {name: {k: v for k, v in asdict(file).items() if k != "budget"} for name, file in self.files.items()}
        return orjson.dumps({"files": plain, "time": self.time})

    @classmethod
    def from_json(cls, content: bytes) -> Catalogue:
        loaded = orjson.loads(content)
        files = {name: HubFile(**(file | {"kind": Kind(file["kind"])})) for name, file in loaded["files"].items()}
        return cls(files, loaded["time"])


def open_hub(address: str, options: OpenOptions) -> Source:
    """The LoRAs at an address of the hub. Raises ZooError when there is none, with what to do, and Stopped when the
    reporter says so.
    """
    spot = parse(address)
    name = str(spot).removeprefix("hf://").replace("@", "-")
    kept = database_path(str(spot), name, options.cache).with_suffix(".json")
    remarks: tuple[str, ...] = ()
    try:
        catalogue = list_hub(spot, options.reporter)
        _write(kept, catalogue.to_json())
    except PassingError as error:
        if not kept.is_file():
            if (snapshot := _snapshot(spot)) is not None:
                raise ZooError(f"{error} What was downloaded of it lies in {snapshot}: open that folder.") from error
            raise
        catalogue = Catalogue.from_json(kept.read_bytes())
        remarks = (
            f"Opened as it was on {catalogue.time[:10]}, without the hub: {error} Only what was downloaded before can"
            " be read with its weights.",
        )
    budget = Budget(bytes_allowed())
    if spot.path.lower().endswith(ARCHIVES):
        folder = (options.cache or cache_folder()) / "members"
        listing = _members(spot, catalogue, kept.with_suffix(".members.json"), folder, budget=budget)
    else:
        listing = Listing({path: replace(file, budget=budget) for path, file in catalogue.files.items()})
    listing = replace(listing, remarks=(*listing.remarks, *remarks))
    source = FileSource.open(str(spot), name, listing, replace(options, readers=options.readers or READERS))
    budget.used = sum(_bytes_here(listing.files[id]) for id in source.ids)
    return replace(source, remarks=(*source.remarks, *_sizes(source, budget, catalogue)))


def _snapshot(spot: HubAddress) -> Path | None:
    """Where the hub's own library keeps what was downloaded of a repository, if anything was."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if spot.several:
        return None
    try:
        kept = snapshot_download(spot.repository, repo_type=spot.kind, revision=spot.revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    folder = Path(kept) / spot.path
    return folder if folder.exists() else None


def _members(spot: HubAddress, catalogue: Catalogue, kept: Path, folder: Path, *, budget: Budget) -> Listing:
    """The members of an archive in a repository, read by ranges and kept one by one. kept: where their list is."""
    if not catalogue.files:
        raise ZooError(f"{spot}: there is no such archive in the repository. Check the path.")
    whole = replace(next(iter(catalogue.files.values())), unlimited=True)
    try:
        listed = archive.list_far_archive(whole, whole.shown)
        _write(kept, archive.listing_to_json(whole.identity, listed))
    except PassingError:
        known = archive.listing_from_json(kept.read_bytes(), whole) if kept.is_file() else None
        if known is None:
            raise
        listed = known
    return replace(
        listed, files={name: Kept(part, f"{spot}/{name}", folder, budget) for name, part in listed.files.items()}
    )


def _bytes_here(blob: Blob) -> int:
    path = blob.downloaded() if isinstance(blob, HubFile) else blob.copy if isinstance(blob, Kept) else None
    return path.stat().st_size if path and path.is_file() else 0


def _sizes(source: FileSource, budget: Budget, catalogue: Catalogue) -> list[str]:
    if len(source):
        return [budget.remark(len(source), size(source), "on the hub")]
    archives = sum(path.lower().endswith(ARCHIVES) for path in catalogue.files)
    if not archives or source.address.lower().endswith(ARCHIVES):
        return []
    return [f"It holds {archives} archives, such as {source.address}/… .zip: open each by its own address."]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda new: new.write_bytes(content), shared=True)


def list_hub(spot: HubAddress, reporter: Reporter = SILENT) -> Catalogue:
    """What the hub has at an address now. Raises NetworkError, and Stopped when the reporter says so."""
    files = _author(spot, reporter) if spot.several else _repository(spot, reporter)
    return Catalogue(files, datetime.now(UTC).isoformat())


def repositories_of(owner: str, kind: Kind) -> Iterator[str]:
    """The repositories of an owner, as `owner/name`. Raises NetworkError."""
    for page in _api(f"{kind}s?{urlencode({'author': owner})}", f"hf://{owner}"):
        yield from (described["id"] for described in page)


def _author(spot: HubAddress, reporter: Reporter) -> dict[str, HubFile]:
    files: dict[str, HubFile] = {}
    repositories = 0
    wanted = [("author", spot.owner), ("expand", "siblings"), ("expand", "sha")]
    for page in _api(f"models?{urlencode(wanted)}", str(spot)):
        for described in page:
            owner, _, name = described["id"].partition("/")
            if owner.lower() != spot.owner.lower() or not fnmatchcase(name, spot.name or "*"):
                continue
            repositories += 1
            for sibling in described.get("siblings") or ():
                path = sibling["rfilename"]
                files[f"{name}/{path}"] = HubFile(Kind.MODEL, described["id"], described["sha"], path)
        reporter.show(f"Listing {spot}: {repositories:,} repositories", 0.0)
        reporter.check("Nothing was read yet.")
    if not repositories:
        raise ZooError(f"{spot}: no repository of that name on the hub that you can see. Check the spelling.")
    return {path: file for path, file in files.items() if _of_a_lora(path)}


def _of_a_lora(path: str) -> bool:
    """Whether a file of an author's repositories bears on a LoRA: training states and pictures are not listed."""
    return path.lower().endswith((*SUFFIXES, ".json", ".md", ".csv", ".parquet"))


def _repository(spot: HubAddress, reporter: Reporter) -> dict[str, HubFile]:
    place = f"{spot.kind}s/{spot.repository}"
    revision = quote(spot.revision or "main", safe="")
    described = next(_api(f"{place}/revision/{revision}", str(spot)))
    commit, files = described["sha"], {}
    folder, _, last = spot.path.rpartition("/")
    one = last.lower().endswith((*SUFFIXES, *ARCHIVES))  # a file, which has no tree of its own
    below = quote(folder if one else spot.path)
    for page in _api(f"{place}/tree/{commit}{'/' + below if below else ''}?recursive=True", str(spot)):
        for entry in page:
            path = entry["path"]
            if entry["type"] != "file" or (one and path != spot.path):
                continue
            lfs = entry.get("lfs") or {}
            size, oid = lfs.get("size", entry["size"]), lfs.get("oid", entry["oid"])
            shown = path[len(folder) + 1 if one and folder else len(spot.path) + 1 if spot.path and not one else 0 :]
            files[shown] = HubFile(spot.kind, spot.repository, commit, path, size, oid)
        reporter.show(f"Listing {spot}: {len(files):,} files", 0.0)
        reporter.check("Nothing was read yet.")
    if spot.path and not files:
        raise ZooError(f"{spot}: there is nothing of that name in {spot.repository}. Check what follows its name.")
    return files


def _api(path: str, what: str) -> Iterator[Any]:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    return pages(f"{constants.ENDPOINT}/api/{path}", build_hf_headers(), what)
