"""Packs an APK: pack.py FOLDER APK. Native libraries are stored at multiples of 16 KB, from where they are mapped."""

import struct
import sys
import zipfile
from pathlib import Path

PAGE = 16384
ALIGNMENT = 0xD935  # of an extra field: the alignment, and as many zeros as it takes
STORED = (".so", ".arsc", ".onnx.data", ".npy")  # mapped as they lie, or made of noise
TIME = (2026, 1, 1, 0, 0, 0)  # the same files give the same bytes


def pack(folder: Path, apk: Path) -> None:
    with zipfile.ZipFile(apk, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if path.name.endswith(STORED) else zipfile.ZIP_DEFLATED
            if entry.compress_type == zipfile.ZIP_STORED:
                alignment = PAGE if path.suffix == ".so" else 4
                assert archive.fp is not None
                start = archive.fp.tell() + 30 + len(entry.filename.encode()) + 6
                padding = -start % alignment
                entry.extra = struct.pack("<HHH", ALIGNMENT, 2 + padding, alignment) + bytes(padding)
            archive.writestr(entry, path.read_bytes(), compresslevel=9)


if __name__ == "__main__":
    pack(*map(Path, sys.argv[1:]))
