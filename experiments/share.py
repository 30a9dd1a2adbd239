"""`--share URL`: machines with one command fill one matrix, through any path that fsspec reads and writes.

URL/run.json           what they must agree on: settings, and digests of what they read
URL/NAME/claim.json    who is at an entry: host, process and a count that grows every few seconds
URL/NAME/TOKEN/…       the files of a finished one, as they lie in a run folder
URL/NAME/done.json     its marker, written last: TOKEN, the files with their digests, settings, who made it

An entry is a cell (cells/NAME: row, replies, measures, event files, student) or what several cells need: exams, the
teacher's episodes, a warm start. A finished entry is taken over; one that is claimed is left to its machine, and looked
at again once nothing else is left to do; whoever takes a dead machine's entry over begins it anew.

What is asked of the backend: that a file that was written can be read. A file without its marker does not count, nor
does half a marker, which is no JSON, or a file with another digest. No clocks are compared: a claim is dead when it has
not changed for a minute or two of its observer's own time, or when its process was one of this machine and has ended.
Claims are created exclusively on a disk, in memory and by backends whose `pipe_file(mode="create")` is. Object stores
without conditional writes (and two observers of one dead claim) can let two machines run the same cell: its first
marker counts then, and in a photo finish the last. Cells are deterministic on one kind of CPU, so either is right; only
times differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from agents import parallel
from envs.errors import InputError
from experiments import claims
from experiments.config import RunConfig, dump
from experiments.folder import FREE, INPUTS, digest

if TYPE_CHECKING:
    from experiments.workspace import Workspace

RUN, DONE, CLAIM = "run.json", "done.json", "claim.json"
LEASE = 120.0  # seconds without a sign of life after which a claim is dead
RENEW = 15.0
POLL = 2.0
UNSENT = (".partial", ".lock")
BY_DIGEST = ("prompts", "store")  # settings whose content the digests of the inputs tell


class ShareError(Exception):
    """The shared path failed while the run went on; what was computed is in the run's own folder."""


class Elsewhere(Exception):
    """Another process is at this entry."""


def check(config: RunConfig) -> None:
    """Raises: InputError: a shared path that cannot be written, or one that these processes would not share."""
    url = getattr(config, "share", "")
    if not url:
        return
    if parallel.size() > 1:
        raise InputError(f"--share in {parallel.size()} processes of a launcher, which learn as one; launch one")
    if url.startswith("memory:") and (getattr(config, "jobs", 1) > 1 or getattr(config, "ray", "")):
        raise InputError(f"--share {url} is the memory of one process; leave --jobs and --ray out, or give a path")
    system, root = connected(url)
    place = f"{root}/.writable-{uuid.uuid4().hex}"
    try:
        system.makedirs(root, exist_ok=True)
        system.pipe_file(place, b"")
        system.rm_file(place)
    except Exception as error:  # backends raise errors of their own: of networks, accounts and permissions
        raise InputError(
            f"--share {url} cannot be written ({_line(error)}); give a path that this machine may write, and the "
            "backend's own settings (its environment variables, or fsspec's configuration) what it needs"
        ) from error


def connected(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises: InputError: a protocol that fsspec does not know, a backend that is not installed, or a password.
    """
    import fsspec
    from fsspec.registry import known_implementations

    protocol, _, rest = url.partition("://")
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise InputError(f"--share {protocol}://… holds a password, which config.yaml would keep; put it elsewhere")
    try:
        system, root = fsspec.url_to_fs(url)
    except ImportError as error:
        known = known_implementations.get(protocol.rpartition("::")[2], {"class": "fsspec"})
        package = str(known["class"]).partition(".")[0]
        if package == "fsspec":  # its own code, which needs a library
            package = str(getattr(error.__cause__, "name", "") or error)
        raise InputError(f"--share {url} needs {package}, which is not installed: pip install {package}") from error
    except ValueError as error:
        raise InputError(f"--share {url}: {error}; give a path, or a URL as s3://bucket/folder") from error
    except Exception as error:  # backends that connect at once raise errors of their own
        raise InputError(
            f"--share {url} cannot be reached ({_line(error)}); give a path that this machine sees"
        ) from error
    return system, str(root).rstrip("/")


@dataclass
class Share:
    """The shared path of one run folder."""

    url: str
    out: Path
    fingerprint: str  # of settings and inputs
    lease: float = LEASE
    renew: float = RENEW
    seen: dict[str, tuple[bytes, float]] = field(default_factory=dict)  # claims as they last changed
    broken: set[str] = field(default_factory=set)  # uploads that were found not to be whole

    def __post_init__(self) -> None:
        self.system, self.root = connected(self.url)

    @classmethod
    def of(cls, space: Workspace) -> Share:
        """That of a run whose folder is open."""
        url = str(getattr(space.config, "share", ""))
        return cls(url, space.out, digest(json.dumps(_agreed(space), sort_keys=True)))

    def begin(self, space: Workspace) -> None:
        """Note what this run is, or see that it is the one that is there.

        Raises: InputError: another run's results are there; it names the first setting that differs.
        """
        ours = _agreed(space)
        theirs = self._json(RUN)
        if theirs is None:
            self._put(RUN, json.dumps(ours, indent=1).encode())
            theirs = self._json(RUN) or ours
        for part in ("settings", "inputs"):
            for name in ours[part] | theirs[part]:
                before, now = theirs[part].get(name), ours[part].get(name)
                if before != now:
                    what = name if part == "settings" else f"the digest of {name}"
                    raise InputError(
                        f"--share {self.url} holds a run with {what} = {before!r}, this one has {now!r}; give another "
                        "--share, or the same settings and files"
                    )

    def finished(self, name: str, settings: Any = None) -> dict[str, Any] | None:
        """The marker of a finished entry.

        Raises: InputError: it was made with other settings.
        """
        marker = self._json(f"{name}/{DONE}")
        if marker is None:
            return None
        if marker["fingerprint"] != self.fingerprint or marker["settings"] != settings:
            raise InputError(
                f"--share {self.url} holds {name} with settings {marker['settings']} of run {marker['fingerprint']}, "
                f"now they are {settings} of run {self.fingerprint}; give another --share"
            )
        return marker

    def fetch(self, name: str, settings: Any = None) -> bool:
        """Take a finished entry over into the run folder, in its order; False if there is none that is whole."""
        marker = self.finished(name, settings)
        if marker is None:
            return False
        files: dict[str, str] = marker["files"]
        partials = {place: self.out / f"{place}.partial" for place in files}
        self.broken.add(marker["token"])  # until it is seen to be whole
        try:
            for place, partial in partials.items():
                partial.parent.mkdir(parents=True, exist_ok=True)
                with self._asked():
                    self.system.get_file(f"{self.root}/{name}/{marker['token']}/{place}", str(partial))
                if _digest(partial) != files[place]:
                    return False
            for place, partial in partials.items():
                os.replace(partial, self.out / place)
            self.broken.remove(marker["token"])
        except FileNotFoundError:  # of an upload that something has thinned out since
            return False
        finally:
            for partial in partials.values():
                partial.unlink(missing_ok=True)
        return True

    def publish(self, name: str, paths: Sequence[Path], settings: Any = None) -> bool:
        """Upload an entry, its marker last; False if another machine's was there first, which counts.

        Args:
            paths: in the order in which they are to take their places: what says that the entry is there comes last.
        """
        token, files = uuid.uuid4().hex, {}
        for path in paths:
            place = path.relative_to(self.out).as_posix()
            files[place] = _digest(path)
            with self._asked():
                self.system.makedirs(f"{self.root}/{name}/{token}/{place}".rpartition("/")[0], exist_ok=True)
                self.system.put_file(str(path), f"{self.root}/{name}/{token}/{place}")
        found = self._json(f"{name}/{DONE}")
        if found is not None and found["token"] not in self.broken:
            with self._asked():
                self.system.rm(f"{self.root}/{name}/{token}", recursive=True)
            return False
        who = {"host": platform.node(), "pid": os.getpid(), "time": time.time()}
        marker = {"token": token, "fingerprint": self.fingerprint, "settings": settings, "files": files, **who}
        self._put(f"{name}/{DONE}", json.dumps(marker, indent=1).encode())
        return True

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Within, the entry is this process's, which says again and again that it lives.

        Raises: Elsewhere: it is another's.
        """
        place, over = f"{name}/{CLAIM}", threading.Event()
        claim = claims.new_claim()
        self._claim(name, claim)

        def live() -> None:
            count = 0
            while not over.wait(self.renew):
                count += 1
                with suppress(ShareError):  # the next sign of life, or the upload in the end, will say it
                    self._put(place, json.dumps({**claim, "alive": count}).encode())

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(ShareError):
                if (self._json(place) or {}).get("token") == claim["token"]:
                    self._remove(place)

    def _claim(self, name: str, claim: dict[str, Any]) -> None:
        place = f"{name}/{CLAIM}"
        if (held := self._read(place)) is not None:
            if not claims.ended(held):
                raise Elsewhere(f"{name} is run by {claims.who(held)}")
            self._remove(place)
        try:
            self._create(place, json.dumps(claim).encode())
        except FileExistsError:
            raise Elsewhere(f"{name} is run by {claims.who(self._read(place) or b'')}") from None
        if (self._json(place) or {}).get("token") != claim["token"]:  # the last writer has it
            raise Elsewhere(f"{name} is run by {claims.who(self._read(place) or b'')}")

    def ready(self, name: str) -> bool:
        """Whether an entry that was another's is finished or free now; a dead claim is removed."""
        place, now = f"{name}/{CLAIM}", time.monotonic()
        held = self._read(place)
        if held is None or self._json(f"{name}/{DONE}") is not None:
            self.seen.pop(name, None)
            return True
        before, since = self.seen.setdefault(name, (held, now))
        if before != held:
            self.seen[name] = (held, now)
        elif claims.ended(held) or now - since > self.lease:
            del self.seen[name]
            if self._read(place) == held:
                self._remove(place)
            return True
        return False

    def once(self, path: Path, make: Callable[[], None]) -> None:
        """See that a file of `shared/` is here: taken over, or made and published; what another makes is waited for."""
        name = path.relative_to(self.out).as_posix()
        while not self.fetch(name):
            try:
                with self.claimed(name):
                    if not self.fetch(name):
                        make()
                        beside = [] if path.parent.name == "shared" else files_of(path.parent)
                        self.publish(name, [*(other for other in beside if other != path), path])
                    return
            except Elsewhere:
                time.sleep(POLL)
                while not self.ready(name):
                    time.sleep(POLL)

    def _json(self, place: str) -> dict[str, Any] | None:
        content = self._read(place)
        try:
            return None if content is None else dict(json.loads(content))
        except ValueError:  # half of a file that is being written, or whose writer has died
            return None

    def _read(self, place: str) -> bytes | None:
        try:
            with self._asked():
                return bytes(self.system.cat_file(f"{self.root}/{place}"))
        except FileNotFoundError:
            return None

    def _put(self, place: str, content: bytes) -> None:
        with self._asked():
            self.system.makedirs(f"{self.root}/{place}".rpartition("/")[0], exist_ok=True)
            self.system.pipe_file(f"{self.root}/{place}", content)

    def _create(self, place: str, content: bytes) -> None:
        """Raises: FileExistsError: the file is there."""
        from fsspec.implementations.local import LocalFileSystem

        path = f"{self.root}/{place}"
        with self._asked():
            self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if isinstance(self.system, LocalFileSystem):  # whose pipe_file looks before it writes
                with self.system.open(path, "xb") as file:
                    file.write(content)
            else:
                self.system.pipe_file(path, content, mode="create")

    def _remove(self, place: str) -> None:
        with suppress(FileNotFoundError), self._asked():
            self.system.rm_file(f"{self.root}/{place}")

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # backends raise errors of their own
            raise ShareError(
                f"--share {self.url} failed ({_line(error)}); what is finished is kept in {self.out}, and the same "
                "command goes on and shares it"
            ) from error


def _agreed(space: Workspace) -> dict[str, Any]:
    """What decides about a run's results: settings that every machine must have, and the digests of its inputs."""
    settings = {name: value for name, value in yaml.safe_load(dump(space.config)).items() if name not in FREE}
    inputs = json.loads((space.out / INPUTS).read_text(encoding="utf-8"))
    return {"settings": {name: settings[name] for name in settings if name not in BY_DIGEST}, "inputs": inputs}


def files_of(*places: Path) -> list[Path]:
    """The files below some folders, but for locks, checkpoints and what is being written."""
    found = [path for place in places for path in sorted(place.rglob("*"))]
    return [path for path in found if path.is_file() and path.suffix not in UNSENT and "checkpoints" not in path.parts]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
