"""Models of random likings, over three kinds of vocabulary, whose answers are held to a constraint."""

from __future__ import annotations

import numpy as np
from conftest import REPOSITORY
from fakes import byte_tokenizer
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Inner

from edge.inference.constraint import Constraint
from edge.inference.grammar import Grammars
from edge.inference.guide import GuidedSampler
from edge.inference.sampling import Sampler, Sampling
from edge.inputs.tokenizer import Tokenizer, _byte_of


def byte_level() -> Tokenizer:
    """Byte-level BPE: 256 letters, and two words of several."""
    alphabet = sorted(_byte_of())
    words = ["</s>", *alphabet, '{"', '":']
    inner = Inner(models.BPE({word: n for n, word in enumerate(words)}, [("{", '"'), ('"', ":")]))
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokenizer(inner)


# The tokenizer, and the id that ends an answer.
KINDS = {
    "sentencepiece": (Tokenizer.open(REPOSITORY / "tests" / "data" / "tokenizer.json"), 2),
    "bytes": (Tokenizer(byte_tokenizer()), 2),
    "byte-level": (byte_level(), 0),
}
GRAMMARS = {name: Grammars(tokenizer, tokenizer.size, (stop,)) for name, (tokenizer, stop) in KINDS.items()}


def answered(
    kind: str, constraint: Constraint, seed: int, spare: int, temperature: float = 1.0
) -> tuple[str, bool, list[int]]:
    """What a model of random likings says with `spare` tokens more than it needs: text, whether it was closed, ids."""
    (tokenizer, stop), guide = KINDS[kind], GRAMMARS[kind].guide(constraint)
    most = guide.needs + spare
    sampler = GuidedSampler(Sampler(Sampling(temperature=temperature, seed=seed)), guide, (stop,), most)
    random = np.random.default_rng(seed)
    liking, ids = random.normal(size=tokenizer.size).astype(np.float32) * 2, []
    while len(ids) < most and not sampler.finished:
        token = sampler.pick(liking + random.normal(size=tokenizer.size).astype(np.float32), ids)
        if token is None or token == stop:
            break
        ids.append(token)
    return tokenizer.decode(ids), guide.closed, ids
