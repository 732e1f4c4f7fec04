"""Bundles on the Hugging Face hub (`owner/name`), which its own library fetches, resumes and keeps."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path

from edge import privacy
from edge.bundle import manifest_file
from edge.bundle.manifest import MANIFEST, Manifest
from edge.bundle.signature import MOST_BYTES, SIGNATURE
from edge.errors import BundleError, EngineError
from edge.fetching import Told


def bundle(name: str, told: Told) -> Path:
    """The folder of a bundle's files in the hub's cache. The hub is asked only where one of them is missing there.

    Raises BundleError where it cannot be had, and EngineError where the hub's library is not installed.
    """
    privacy.keep()
    try:
        from huggingface_hub import HfApi, errors, snapshot_download  # slow to import, and seldom needed
    except ImportError as error:
        raise EngineError(
            f"there is no folder {name!r} here, and to ask the hub needs more than is installed: {error}",
            hint="pip install 'edge-vlm[hub]'",
        ) from error
    try:
        return _whole(Path(snapshot_download(name, allow_patterns=[MANIFEST], local_files_only=True)))
    except (OSError, ValueError, BundleError):  # not here yet, or in part
        told(f"asking the hub for {name}")
    try:
        head = Path(snapshot_download(name, allow_patterns=[MANIFEST]))
        if not (head / MANIFEST).is_file():
            raise BundleError(
                f"{name!r} on the hub is no bundle: it has no {MANIFEST}",
                hint="if it is a checkpoint: edge export " + name + " -o BUNDLE",
            )
        manifest = _manifest(head)
        offered = HfApi().model_info(name, revision=head.name, files_metadata=True).siblings or ()
        sizes = {file.rfilename: file.size for file in offered}
        _require_offered(name, manifest, sizes)
        signed = [SIGNATURE] if (sizes.get(SIGNATURE) or MOST_BYTES + 1) <= MOST_BYTES else []
        paths = (MANIFEST, *signed, *(entry.path for entry in manifest.files()))
        wanted = [glob.escape(path) for path in paths]
        return _whole(Path(snapshot_download(name, allow_patterns=wanted, revision=head.name)))
    except errors.GatedRepoError as error:
        raise BundleError(
            f"{name!r} is given only to those who accept its licence",
            hint=f"accept it at https://huggingface.co/{name}, then set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BundleError(
            f"there is no folder {name!r} here, and no such repository on the hub",
            hint="is it spelled right? A private one needs HF_TOKEN",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BundleError(
            f"there is no folder {name!r} here, and the hub cannot be asked: {reason}",
            hint=f"where there is a network, `hf download {name} --local-dir DIR`; then give DIR",
        ) from error


def _require_offered(name: str, manifest: Manifest, sizes: Mapping[str, int | None]) -> None:
    """Raises BundleError where the hub has other files than the manifest describes: nobody fetches a terabyte for ten
    bytes."""
    for entry in manifest.files():
        if (size := sizes.get(entry.path)) is None:
            raise BundleError(f"{name!r} on the hub lacks {entry.path}", hint="tell whoever uploaded it")
        if size != entry.bytes:
            raise BundleError(
                f"{entry.path} of {name!r} has {size:,} bytes on the hub, and {entry.bytes:,} in its {MANIFEST}",
                hint="tell whoever uploaded it",
            )


def _manifest(folder: Path) -> Manifest:
    return Manifest.from_json(manifest_file.read(folder / MANIFEST))


def _whole(folder: Path) -> Path:
    """The folder, all of whose files are there. Raises BundleError where one is not, OSError and ValueError."""
    for entry in _manifest(folder).files():
        if not (folder / entry.path).is_file():
            raise BundleError(f"the hub's cache lacks {entry.path}", hint="repeat")
    return folder
