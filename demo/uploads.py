"""The folder for visitors' files: ours alone, gone when we are, and bounded while we live."""

import atexit
import fcntl
import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

PREFIX, LOCK = "longtail-", ".lock"
MOST, MOST_FILES = 10**9, 10_000  # bytes and files at once
AT_ONCE = 1000  # files that one request may bring, as Gradio reads it
OLDEST, YOUNGEST = 3500.0, 60.0  # seconds: deleted at this age, and never for want of room before that one


# ---- whose it is


def own(place: str | None = None) -> Path:
    """A new folder in `place`, which this process holds by a lock while it lives; those of dead processes are removed.

    A lock is the system's to release, however a process ends: neither age nor process number could tell.
    """
    place = place or tempfile.gettempdir()
    sweep(place)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    lock = open(folder / f"{LOCK}.new", "w")  # held open until we end
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(lock.name, folder / LOCK)  # locked before anybody looks for it under this name
    atexit.register(_removed, folder, lock, os.getpid())
    return folder


def sweep(place: str) -> int:
    """Remove folders that dead processes of this user left in `place`; returns how many."""
    swept = 0
    for entry in list(os.scandir(place)):
        with suppress(OSError):  # somebody else's, or gone meanwhile
            if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_uid == os.getuid() and _abandoned(Path(entry.path)):
                swept += 1
    return swept


def _abandoned(folder: Path) -> bool:
    """Whether nobody holds the folder; then it is gone."""
    with open(folder / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError while its process lives
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _removed(folder: Path, lock, owner: int):
    if os.getpid() == owner:  # no fork of us
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


# ---- what is in it


class Uploads:
    """Counts what the folder holds and keeps it within `most` bytes and `most_files` files."""

    def __init__(self, folder: Path, most: int = MOST, most_files: int = MOST_FILES, at_once: int = AT_ONCE):
        self.folder, self.most, self.most_files, self.at_once = folder, most, most_files, at_once
        self.bytes = self.files = 0  # counted, and what came since at its most
        self.kept: set[Path] = set()  # the page's own
        self.lock = threading.Lock()

    def keep(self):
        """What is there now is the page's own, and stays."""
        self.kept = {path for path, _ in self._found()}
        self.tidy()

    def room(self, size: int) -> bool:
        """Whether a request of `size` bytes may come; the oldest go for it, none younger than a minute."""
        with self.lock:
            if self._full(size, self.at_once):
                self._tidied(size, self.at_once)
            if self._full(size, self.at_once):
                return False
            self.bytes, self.files = self.bytes + size, self.files + self.at_once
            return True

    def tidy(self):
        """Delete what is nearly an hour old, then the oldest until the bounds are kept; count anew."""
        with self.lock:
            self._tidied(0, 0)

    def held(self) -> tuple[int, int]:
        """Bytes and files that are there now."""
        sizes = [info.st_size for _, info in self._found()]
        return sum(sizes), len(sizes)

    def _full(self, size: int, files: int) -> bool:
        return self.bytes + size > self.most or self.files + files > self.most_files

    def _tidied(self, size: int, files: int):
        now = time.time()
        there = sorted(((info.st_mtime, info.st_size, path) for path, info in self._found()), key=lambda file: file[0])
        self.bytes, self.files = sum(file[1] for file in there), len(there)
        for changed, held, path in there:
            if path in self.kept or not (
                now - changed > OLDEST or (self._full(size, files) and now - changed > YOUNGEST)
            ):
                continue
            path.unlink(missing_ok=True)
            self.bytes, self.files = self.bytes - held, self.files - 1
        self._emptied(now)

    def _emptied(self, now: float):
        for place, _, _ in os.walk(self.folder, topdown=False):
            with suppress(OSError):  # it holds files, or is gone
                if Path(place) != self.folder and now - os.stat(place).st_mtime > YOUNGEST:
                    os.rmdir(place)

    def _found(self):
        for place, _, names in os.walk(self.folder):
            for name in names:
                path = Path(place, name)
                with suppress(OSError):  # gone meanwhile
                    if path != self.folder / LOCK:
                        yield path, path.stat()
