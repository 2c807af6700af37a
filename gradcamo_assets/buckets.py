"""The objects of a bucket, addressed by paths of a scratch folder on this machine.

A home may be in an object store, such as ``s3://lab/screens``. ``mount`` gives it a scratch folder; the path
``<folder>/masks/P1`` stands for the objects below ``screens/masks/P1``. ``storage`` reads and writes them, and copies
to the folder what libraries read as files. Names that start with a dot are scratch files and never objects.

Credentials and the address of the server come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...),
as obstore and Delta Lake read them: https://developmentseed.org/obstore/latest/authentication/
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from gradcamo_assets.errors import StoreError, bucket_addresses, one_line

_ADDRESS = re.compile(r"[a-z][a-z0-9]*://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*/?")
_SCRATCH_PREFIX = "gradcamo-scratch-"
_THREADS = 16
# A server that is away for a minute must not fail runs. Twenty retries take only ten seconds, so that the time decides.
_RETRIES: Any = {"max_retries": 1000, "retry_timeout": timedelta(minutes=3)}
DELTA_OPTIONS = {"max_retries": "1000", "retry_timeout": "180s"}
"""The same settings for Delta Lake."""

_mounted: dict[Path, Bucket] = {}
_mounting = threading.Lock()
_of_thread = threading.local()


@dataclass(frozen=True)
class StoredObject:
    """An object as listed: its key, its size in bytes, when it was written, and the tag of its content."""

    key: str
    size: int
    modified: datetime
    tag: str


@dataclass
class Bucket:
    """The objects below one address, and which of them were copied to the scratch folder.

    Methods raise ``OSError`` if the store fails or refuses (``EACCES``).
    """

    address: str
    folder: Path
    store: Any
    copied: dict[Path, str] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def key(self, path: Path) -> str:
        """The key of a path in the scratch folder; empty for the folder itself."""
        return "/".join(path.relative_to(self.folder).parts)

    def path(self, key: str) -> Path:
        """The path of a key."""
        return self.folder / key

    def path_of(self, address: str) -> Path | None:
        """The path of an object's address; None if it is not below this one."""
        return self.path(address[len(self.address) + 1 :]) if address.startswith(f"{self.address}/") else None

    def is_copied(self, path: Path) -> bool:
        """Whether this machine has a copy of a file or folder."""
        return any(folder in self.copied for folder in (path, *path.parents))

    def note_copy(self, path: Path, tag: str = "") -> None:
        """Note that this machine has a copy, with the tag of a file that may change."""
        self.copied[path] = tag
        for block in blocks_of_this_thread()[-1:]:
            block.append(path)

    def forget_copies(self, path: Path) -> None:
        """Delete the copy of a file or folder."""
        with self.lock:
            for copied in [copied for copied in self.copied if copied.is_relative_to(path)]:
                del self.copied[copied]
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def read(self, key: str) -> bytes | None:
        """The content of an object; None if there is none."""
        import obstore

        with _errors_of(self, key):
            try:
                return bytes(obstore.get(self.store, key).bytes())
            except FileNotFoundError:
                return None

    def read_start(self, key: str, size: int) -> tuple[int, bytes]:
        """The size of an object and its first bytes."""
        import obstore

        with _errors_of(self, key):
            found = obstore.get(self.store, key, options={"range": (0, size)})
            return found.meta["size"], bytes(found.bytes())

    def download(self, key: str, path: Path, tag: str | None = None) -> str:
        """Copy an object to a file, unless it has this tag; return its tag."""
        import obstore
        from obstore.exceptions import NotModifiedError

        with _errors_of(self, key):
            try:
                found = obstore.get(self.store, key, options={"if_none_match": tag} if tag else None)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    for part in found.stream(8 << 20):
                        file.write(part)
                return str(found.meta["e_tag"])
            except NotModifiedError:
                return tag or ""

    def write(self, key: str, content: bytes | Path) -> None:
        """Write an object, which readers see whole or not at all."""
        import obstore

        with _errors_of(self, key):
            obstore.put(self.store, key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless it exists; whether this call wrote it."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _errors_of(self, key):
            try:
                obstore.put(self.store, key, content, mode="create")
                return True
            except (AlreadyExistsError, PreconditionError):
                # After a lost answer the store refuses the repetition of a request that it has carried out.
                return self.read(key) == content

    def exists(self, key: str) -> bool:
        """Whether there is an object with this key."""
        import obstore

        with _errors_of(self, key):
            try:
                obstore.head(self.store, key)
                return True
            except FileNotFoundError:
                return False

    def list_all(self, prefix: str, after: str | None = None) -> list[StoredObject]:
        """All objects below a prefix, or those of them after a key, sorted by key."""
        return sorted(self.iterate(prefix, after), key=lambda item: item.key)

    def iterate(self, prefix: str, after: str | None = None) -> Iterator[StoredObject]:
        """As ``list_all``, one by one and in the order of the store."""
        import obstore

        with _errors_of(self, prefix):
            for batch in obstore.list(self.store, prefix or None, offset=after):
                yield from map(_as_listed, batch)

    def list_level(self, prefix: str) -> tuple[list[str], list[StoredObject]]:
        """The next level below a prefix: the prefixes of further levels, and the objects."""
        import obstore

        with _errors_of(self, prefix):
            found = obstore.list_with_delimiter(self.store, prefix or None)
        return sorted(found["common_prefixes"]), sorted(map(_as_listed, found["objects"]), key=lambda item: item.key)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. Missing ones are ignored."""
        import obstore

        for key_batch in _batches(list(keys), 1000):
            with _errors_of(self, key_batch[0]):
                obstore.delete(self.store, key_batch)


def mount(address: str, store: Any = None) -> Path:
    """The scratch folder of a home in a bucket, one for each process, which is deleted when the process ends.

    The folder is created in ``GRADCAMO_SCRATCH``, or else among the temporary files of the system.

    Args:
        address: such as ``s3://bucket/prefix``.
        store: an obstore store for these objects; None: the one of the address.

    Raises:
        StoreError: if the address is not one, or obstore (extra ``cluster``) is missing.
    """
    if not _ADDRESS.fullmatch(address):
        problem = f"{address!r} is not the address of a folder in a bucket"
        raise StoreError(problem, "Give GRADCAMO_HOME as s3://bucket/prefix, with letters, digits and . _ - only.")
    address = address.rstrip("/")
    with _mounting:
        for bucket in _mounted.values():
            if bucket.address == address:
                return bucket.folder
        store = store or _open(address)
        folder = _make_scratch_folder()
        _mounted[folder] = Bucket(address, folder, store)
        bucket_addresses[str(folder)] = address
        return folder


def blocks_of_this_thread() -> list[list[Path]]:
    """For each open block of ``local_copies.temporary_copies``, the innermost last, what was copied in it."""
    if not hasattr(_of_thread, "blocks"):
        _of_thread.blocks = []
    blocks: list[list[Path]] = _of_thread.blocks
    return blocks


def mounted() -> list[Bucket]:
    """The buckets that ``mount`` was called for."""
    return list(_mounted.values())


def find(path: Path) -> tuple[Bucket, str] | None:
    """The bucket and key that a path stands for; None: a file or folder of this machine."""
    for folder, bucket in _mounted.items():
        if path.is_relative_to(folder):
            key = bucket.key(path)
            return None if any(part.startswith(".") for part in PurePosixPath(key).parts) else (bucket, key)
    return None


def in_parallel(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function with each tuple of arguments. Requests wait for the store, so that threads help."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda values: function(*values), arguments))


def _as_listed(entry: Any) -> StoredObject:
    return StoredObject(entry["path"], entry["size"], entry["last_modified"], str(entry["e_tag"]))


def _open(address: str) -> Any:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        problem = "a home in a bucket needs the package obstore"
        raise StoreError(problem, "Install gradcamo_assets[cluster].", path=address) from error
    try:
        return from_url(address, retry_config=_RETRIES)
    except (BaseError, ValueError) as error:
        remedy = "Check the address and the environment variables of the object store."
        raise StoreError(f"the bucket cannot be opened: {one_line(error)}", remedy, path=address) from error


def _make_scratch_folder() -> Path:
    import fcntl

    base = Path(os.environ.get("GRADCAMO_SCRATCH") or tempfile.gettempdir()).absolute()
    base.mkdir(parents=True, exist_ok=True)
    for lock in base.glob(f"{_SCRATCH_PREFIX}*/.lock"):
        _remove_if_unlocked(lock)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=base))
    # The system releases the lock when a process is killed. It is held before others can find it.
    descriptor = os.open(unlocked := folder / ".unlocked", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    unlocked.rename(folder / ".lock")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _remove_if_unlocked(lock: Path) -> None:
    """Remove the scratch folder of a process that was killed."""
    import fcntl

    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    except OSError:  # Its process is running, or it belongs to another user.
        return


@contextmanager
def _errors_of(bucket: Bucket, key: str) -> Iterator[None]:
    """Convert what the store says into an ``OSError`` with a number, as for a disk."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _store_errors()):
            raise
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        text = f"the object store failed: {one_line(error, 300)}"
        number = errno.EACCES if denied else errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        raise OSError(number, text, f"{bucket.address}/{key}") from error


@cache
def _store_errors() -> tuple[type[Exception], ...]:
    from obstore.exceptions import BaseError

    # obstore raises FileNotFoundError for a missing object.
    return (BaseError, FileNotFoundError)


def _batches(items: list[str], size: int) -> Iterator[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
