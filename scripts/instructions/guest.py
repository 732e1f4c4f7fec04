"""In the guest: a prompt and some tokens, with a mark for the plugin around each: guest.py BUNDLE PROMPT TOKENS."""

import contextlib
import os
import sys

import edge
from edge.types import Tokens

bundle, prompt, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def mark() -> None:
    with contextlib.suppress(ProcessLookupError):
        os.getpgid(0x7EED)


with edge.load(bundle, threads=1) as session:
    decoder, ids = session.decoder, tuple(3 + number % 200 for number in range(prompt))
    decoder.extend([Tokens(ids)])  # what is compiled or packed at the first call is not counted
    decoder.extend([Tokens((5,))])
    decoder.rewind(0)
    mark()
    decoder.extend([Tokens(ids)])
    mark()
    for _ in range(tokens):
        decoder.extend([Tokens((7,))])
    mark()
