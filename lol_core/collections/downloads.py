"""What was downloaded of the hub, kept within bounds where many people open what they like."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

from lol_core.collections.remote_files import GIGABYTE


class _Download(NamedTuple):
    used: float
    size: int
    delete: Callable[[], object]


def trim(repositories: Path, members: Path, gigabytes: float) -> None:
    """Delete whole repositories and members of archives, those unused the longest first, until no more than that is
    there. repositories: a cache of the hub library; members: a folder of `remote_files.Kept`.

    Who is reading one meanwhile is told to open it again.
    """
    downloads = [*_repositories(repositories), *_members(members)]
    excess = sum(download.size for download in downloads) - gigabytes * GIGABYTE
    for download in sorted(downloads, key=lambda download: download.used):
        if excess <= 0:
            return
        download.delete()
        excess -= download.size


def _repositories(folder: Path) -> list[_Download]:
    from huggingface_hub import scan_cache_dir

    if not folder.is_dir():
        return []
    return [
        _Download(repo.last_accessed, repo.size_on_disk, partial(rmtree, repo.repo_path, ignore_errors=True))
        for repo in scan_cache_dir(folder).repos
    ]


def _members(folder: Path) -> list[_Download]:
    if not folder.is_dir():
        return []
    files = [(file, file.stat()) for file in folder.iterdir() if file.is_file()]
    return [_Download(status.st_atime, status.st_size, partial(file.unlink, missing_ok=True)) for file, status in files]
