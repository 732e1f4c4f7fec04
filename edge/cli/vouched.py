"""What vouches for a bundle, on the command line: what nothing vouches for is opened in a process that may die."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.cli.output import say

if TYPE_CHECKING:
    from edge.verify import Report

Isolated = Annotated[
    bool | None,
    typer.Option(
        "--isolated/--no-isolated",
        help="Open it in a process that may die; so it is unless a signature, or what was done here, vouches for it.",
        show_default=False,
    ),
]
TrustedKey = Annotated[
    str | None,
    typer.Option("--trusted-key", metavar="KEY|FILE", help="Who must have signed the bundle: minisign's public key."),
]


def isolated(bundle: Path, asked: bool | None = None, key: str | None = None) -> bool:
    """Whether a bundle is to be opened in a process of its own. `key`: whose signature it must have. Raises BundleError
    where it has another's or none."""
    from edge.bundle import signature, trusted_keys, vouching
    from edge.bundle.manifest import MANIFEST

    if key is not None:
        signature.require(bundle, signature.key_of(key))
        return bool(asked)
    if asked is not None or not (bundle / MANIFEST).is_file():  # whoever opens what is no bundle says so
        return bool(asked)
    keys = trusted_keys.read()
    if vouching.voucher(bundle, keys) is not None:
        return False
    if (found := signature.signed(bundle, keys)) is not None:
        say(f"{bundle} is signed by {found.key}, which is not in {trusted_keys.place()}")
    return True


def introduced(bundle: Path, debug: bool, **options: Any) -> None:
    """Before a bundle is opened here for long: what nothing vouches for is replayed once in a process of its own, and
    vouched for from then on. Raises EngineError where that process dies. `options` as `edge.verify.verify` takes
    them."""
    if not isolated(bundle):
        return
    say(f"nothing vouches for {bundle}: it is replayed in a process of its own first")
    if not verified(bundle, apart=True, debug=debug, **options).ok:
        say(f"{bundle} does not compute here what it did when it was exported: edge verify {bundle} shows where")


def verified(bundle: Path, *, apart: bool, debug: bool, **options: Any) -> Report:
    """The golden sample replayed, in a process of its own where `apart`; a bundle that passes is vouched for."""
    from edge.bundle import vouching

    if apart:
        from edge.isolation import session

        report = session.verify(bundle, told=say if debug else None, **options)
    else:
        from edge.bundle.manifest import Bundle
        from edge.verify import verify

        report = verify(Bundle.open(bundle), **options)
    if report.ok:
        vouching.remember(bundle, "edge verify")
    return report
