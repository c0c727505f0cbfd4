"""Memory of the process, for every Python side."""

from pathlib import Path


def status_mib(field):
    """A line of /proc/self/status in MiB; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), None)
