"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.output import say


def bundle_folder(place: str) -> Path:
    """The folder of a bundle that the user named; what is not here is fetched. Raises BundleError on one that is not
    what a trusted key has signed."""
    from edge import fetching
    from edge.bundle import signature, trusted_keys

    folder = fetching.folder(place, say)
    signature.signed(folder, trusted_keys.read())
    return folder


_WHERE = "a folder, its zip, the https address of one, or owner/name on the hub."
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", parser=bundle_folder, help=f"What `edge export` wrote: {_WHERE}")
]
BundlesArgument = Annotated[
    list[Path], typer.Argument(metavar="BUNDLE", parser=bundle_folder, help=f"What `edge export` wrote: each {_WHERE}")
]
Cache = Annotated[str | None, typer.Option(metavar="f16|q8_0", help="How llama.cpp stores the KV cache; f16.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' messages.")]
Mmproj = Annotated[Path | None, typer.Option(metavar="FILE", help="The vision part of a GGUF checkpoint.")]
Base = Annotated[
    str | None, typer.Option(metavar="CKPT", help="What a LoRA folder was trained on; it is merged into it.")
]
ImageTokens = Annotated[
    int | None,
    typer.Option("--image-tokens", metavar="N", min=1, help="Tokens that an image may take: fewer tiles, or one view."),
]
Isa = Annotated[
    str | None, typer.Option("--isa", metavar="NAME", help="The widest instruction set to use: neon, avx2, …")
]
Provider = Annotated[
    str | None,
    typer.Option("--provider", metavar="cpu|cuda|tensorrt", help="What computes; cuda,cpu: the CPU where that fails."),
]
GpuLayers = Annotated[
    int | None,
    typer.Option("--gpu-layers", metavar="N", min=0, help="A GGUF decoder's layers on the card; as many as fit."),
]
Threads = Annotated[int, typer.Option("--threads", "-t", min=0, help="Processor threads; 0: this machine's best.")]
