"""Whether two machines that read a path read the same file."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# File systems on which all machines see the numbers that the server gives to its files.
_NETWORK_FILE_SYSTEMS = frozenset(
    {"beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"}
)

FileIdentity = tuple[str, ...]


def file_identity(path: Path) -> FileIdentity:
    """A text that two machines have in common only if ``path`` is the same file on a shared file system.

    On a network file system it is the file's number, size and times, on any other that and the running machine: copies
    of a disk have the same numbers and times, too. Containers of one machine see one file as one. Where that cannot be
    told (file systems that make up their numbers), the same file looks like two, never two like one.
    """
    status = path.stat()
    where = "network" if _file_system(status.st_dev) in _NETWORK_FILE_SYSTEMS else _machine(status.st_dev)
    numbers = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return where, *map(str, numbers)


def _machine(device: int) -> str:
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # macOS
        machine = platform.node()
    return f"{machine} {device}"


def _file_system(device: int) -> str:
    """The type of a mounted device, such as ``ext4``; empty where there is no telling (proc(5), mountinfo)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, file_system = line.partition(" - ")
        if mount.split(" ")[2] == number:
            return file_system.split(" ")[0]
    return ""
