"""Lets an arm64 Linux load Android's libraries: bionic.py CC OUT LIBRARY... writes stand-ins for Android's C libraries.

What the libraries import is passed on to glibc by name; `bionic.c` has what differs between the two. OUT also gets
`libpad.so`, to be preloaded. CC compiles for 64-bit ARM; readelf must be there.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ["-shared", "-fPIC", "-O1", "-fno-stack-protector", "-fno-builtin", "-Werror"]
FILES = {"stdin", "stdout", "stderr", "__sF"}  # variables, not functions
JUMP = r"adrp x16, at+8*{place}\nldr x16, [x16, :lo12:at+8*{place}]\nbr x16"


def imports(library: str) -> set[str]:
    """Names that a library wants from the system; another library's own have its version."""
    said = subprocess.run(["readelf", "--dyn-syms", "-W", library], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in said.splitlines()]
    wanted = [row[7] for row in rows if len(row) > 7 and row[6] == "UND" and row[4] != "WEAK"]
    return {name.partition("@")[0] for name in wanted if not name.partition("@")[2].startswith("VERS_")}


def passing(names: set[str]) -> str:
    """C of a library that exports the names under Android's version, and finds where they lead when it is loaded."""
    calls = sorted(names - FILES)
    listed = ", ".join(f'"{name}"' for name in calls)
    lines = [
        f"static const char *const names[] = {{{listed}}};",
        f'__attribute__((visibility("hidden"))) void *at[{len(calls)}];',
        "char own___sF[3 * 152];",
        "void *own_stdin, *own_stdout, *own_stderr;",
        "void bionic_fill(const char *const *, void **, int, char *, void **);",
        "__attribute__((constructor)) static void fill(void) {",
        "  void *files[3];",
        f"  bionic_fill(names, at, {len(calls)}, own___sF, files);",
        "  own_stdin = files[0];",
        "  own_stdout = files[1];",
        "  own_stderr = files[2];",
        "}",
    ]
    for place, name in enumerate(calls):
        code = rf".text\n.globl to_{name}\n.type to_{name}, %function\nto_{name}:\n{JUMP.format(place=place)}\n"
        lines.append(rf'__asm__("{code}.symver to_{name}, {name}@@LIBC\n");')
    lines += [f'__asm__(".symver own_{name}, {name}@@LIBC");' for name in sorted(names & FILES)]
    return "\n".join(lines) + "\n"


def main(compiler: str, out: Path, libraries: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "passing.c").write_text(passing(set().union(*map(imports, libraries))))
    (out / "empty.c").write_text("int nothing;\n")
    (out / "versions").write_text("LIBC { local: to_*; own_*; };\n")

    def build(name: str, source: Path, *more: str | Path) -> None:
        linked = [f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", *more]
        subprocess.run([compiler, *FLAGS, "-o", out / name, source, *linked], check=True)

    versions = f"-Wl,--version-script,{out / 'versions'}"
    build("libpad.so", HERE / "pad.c")
    build("libbionic.so", HERE / "bionic.c")
    build("libc.so", out / "passing.c", versions, out / "libbionic.so")
    for name in ("libm.so", "libdl.so", "liblog.so", "libandroid.so"):
        build(name, out / "empty.c", versions, out / "libc.so")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
