"""The constant prefix: the KV cache of the positions before the first image, kept in the user's cache.

They are the same in every first question with the same system text. A file holds them as a saved conversation does,
under a name made of all that they depend on; one that is damaged or another's is computed anew, never answered from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edge.bundle.manifest import MANIFEST, Bundle, sha256
from edge.devices import file_facts, host, uncached
from edge.engines import engine_named
from edge.errors import EdgeError, SessionError
from edge.inference import saved
from edge.inference.kept import WORTH
from edge.inference.prefix import Held, Prefix, common
from edge.inference.saved import SavedChat
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.planning.plan import Plan
from edge.types import Embeddings, Tokens

FOLDER = "prefixes"  # in the cache folder
_SUFFIX = ".safetensors"
MOST = 256 << 20  # bytes that are kept; those that were not used for longest go first
_ABANDONED = 24 * 3600  # seconds
_log = logging.getLogger(__name__)


class ConstantPrefix:
    """Of one bundle, as one plan opens it, and one system text; `ids`: the positions, none where they are too few, or
    more than the context holds."""

    def __init__(
        self, bundle: Bundle, plan: Plan, tokenizer: Tokenizer, system: str | None, warm: Sequence[Path] = ()
    ) -> None:
        """`system` as for `edge.inputs.prompt.segments`; `warm`: files that were shipped with the bundle. Raises
        UsageError on a system text that the prompt has no place for."""
        ids = _ids(bundle, tokenizer, system)
        self.ids = ids if WORTH < len(ids) < plan.context else ()
        self.plan = plan
        self.system = system
        self._bundle = bundle
        self._warm = warm
        self._there = 0  # positions that the file is known to hold

    @property
    def complete(self) -> bool:
        """Whether the file is known to hold all of them."""
        return self._there == len(self.ids)

    def best(self, wanted: Sequence[Held], more_than: int) -> Prefix | None:
        """What a file has of them, where it has more than so many positions in common with `wanted`. As of a file: a
        decoder may still refuse it."""
        if common(self.ids, wanted) <= more_than:
            return None
        found = self._read()
        return found if found is not None and common(found.held, wanted) > more_than else None

    def keep(self, prefix: Prefix) -> None:
        """For the processes to come, where it has more of them than the file; nothing where that cannot be written."""
        count = common(self.ids, prefix.held)
        if count < len(prefix.held) or count <= WORTH or prefix.nbytes > MOST:
            return
        if not self._there:
            self._read()
        if count <= self._there:
            return
        try:
            place = self._place()
            saved.write(place, SavedChat(None, (), (), prefix), self._bundle)
            self._there = count
            _trim(place)
        except (OSError, RuntimeError, EdgeError) as error:
            uncached.warn(error)

    def file(self) -> Path | None:
        """In the user's cache, or shipped with the bundle; None where none is sound. Raises as `_place`."""
        if not self.ids or self._read() is None:
            return None
        return self._shipped() or self._place()

    def _read(self) -> Prefix | None:
        try:
            shipped = self._shipped()
            place = shipped or self._place()
            if not place.exists():
                return None
            prefix = saved.read(place, self._bundle).prefix
            if prefix is None or prefix.held != self.ids[: len(prefix.held)]:
                raise SessionError(f"{place} holds other positions", hint="it is written anew")
        except SessionError as error:
            _log.warning("%s; the prefix of prompts is computed anew", error.message)
            return None
        except (OSError, RuntimeError, EdgeError) as error:  # no cache folder of this user's
            uncached.warn(error)
            return None
        if shipped is None:
            with contextlib.suppress(OSError):
                os.utime(place)  # for `_trim`
        self._there = len(prefix.held)
        return prefix

    def _shipped(self) -> Path | None:
        """Raises as `_names`."""
        return next((path for path in self._warm if path.name == self._name()), None) if self._warm else None

    def _place(self) -> Path:
        """Raises as `_names`; OSError, RuntimeError where there is no folder that this user alone may write to."""
        return file_facts.private_folder(FOLDER) / self._name()

    def _name(self) -> str:
        ids = hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()[:32]
        return f"{_names(self._bundle, self.plan)}-{ids}-{len(self.ids)}{_SUFFIX}"


def begun(bundle: Bundle, plan: Plan, warm: Sequence[Path] = ()) -> int:
    """About how many positions the first prompt has, by what was used last, or was shipped with the bundle (`warm`); 0
    where nothing is kept that it may begin with. An engine may prepare for it."""
    with uncached.tolerated(), contextlib.suppress(EdgeError, ValueError):
        names = f"{_names(bundle, plan)}-*{_SUFFIX}"
        kept = [path for path in warm if path.match(names)]
        for path in kept or (path for path, _ in _by_use(file_facts.private_folder(FOLDER), names)):
            return int(path.stem.rpartition("-")[2]) + bundle.manifest.spec.prompt.image_tokens + WORTH
    return 0


def _names(bundle: Bundle, plan: Plan) -> str:
    """What names begin with: of all but the positions. Raises OSError where the manifest is gone, and UsageError of an
    engine that is none of this machine's."""
    here = host.inspect()
    (choice,) = (choice for choice in plan.choices if choice.role == "decoder")
    engine = engine_named(choice.engine)
    facts = [
        *(sha256(bundle.path / MANIFEST), engine.name, engine.version, here.name, here.isa, plan.isa, plan.cache),
        *(choice.provider, plan.gpu_layers, saved.VERSION),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _ids(bundle: Bundle, tokenizer: Tokenizer, system: str | None) -> tuple[int, ...]:
    spec = bundle.manifest.spec.prompt
    if not bundle.manifest.sees:
        return ()
    image = Embeddings(np.empty((spec.image_tokens, 0), np.float32), "")
    first = segments(spec, tokenizer, [Turn.about("?", [image])], system)[0]
    return first.ids if isinstance(first, Tokens) else ()


def _trim(newest: Path) -> None:
    """Raises OSError."""
    for left in newest.parent.glob(".*.part"):  # by a process that was ended
        if time.time() - left.stat().st_mtime > _ABANDONED:
            left.unlink(missing_ok=True)
    total = 0
    for path, size in _by_use(newest.parent, f"*{_SUFFIX}"):
        total += size
        if total > MOST and path != newest:
            path.unlink(missing_ok=True)


def _by_use(folder: Path, names: str) -> Iterator[tuple[Path, int]]:
    """The files and their bytes, the one used last first. Another process may remove some meanwhile."""
    found = []
    for path in folder.glob(names):
        with contextlib.suppress(FileNotFoundError):
            state = path.stat()
            found.append((state.st_mtime_ns, path, state.st_size))
    for _, path, size in sorted(found, reverse=True):
        yield path, size
