"""The file system of a folder, and whether fsynced data survives a crash of the machine there.

Reads /proc/mounts. Where that does not exist, the type is unknown.
"""

from __future__ import annotations

from pathlib import Path

VOLATILE = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})  # memory, whatever fsync says
REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "glusterfs", "fuse.sshfs"}
    | {"fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.glusterfs", "vboxsf", "fuse.vmhgfs-fuse"}
)
_OVERLAYS_MAX = 4  # one above the other


def filesystem_of(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Return the type of the file system that contains `path`, or an empty string.

    For an overlay it names the file system of the upper folder too, if that is visible:
    `overlay on tmpfs`.
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found = [[*line.split(" "), "", "", "", ""][:4] for line in lines]
    kinds: list[str] = []
    folder = path.resolve()
    for _ in range(_OVERLAYS_MAX):
        kind, options = _mount_of(folder, found)
        if not kind or kind in kinds[-1:]:
            break
        kinds.append(kind)
        upper = next((each for each in options.split(",") if each.startswith("upperdir=")), "")
        if kind != "overlay" or not upper:
            break
        folder = Path(_plain(upper.removeprefix("upperdir=")))
    return " on ".join(kinds)


def _mount_of(folder: Path, mounts: list[list[str]]) -> tuple[str, str]:
    best, kind, options = "", "", ""
    for _, mounted, found, its_options in mounts:
        place = _plain(mounted)
        if folder.is_relative_to(place) and len(place) >= len(best):
            best, kind, options = place, found, its_options
    return kind, options


def _plain(escaped: str) -> str:
    return escaped.replace("\\040", " ")


def is_volatile(kind: str) -> bool:
    """Whether a file system of this kind loses all data at a restart of the machine."""
    return kind.rpartition(" on ")[2] in VOLATILE


def is_remote(kind: str) -> bool:
    """Whether another machine (or the host) keeps the files: locks and fsync may not work."""
    return kind.rpartition(" on ")[2] in REMOTE
