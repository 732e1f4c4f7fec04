"""A published decoder in a GGUF file that is kept as it is: its sizes, and whether it is a checkpoint's own language
model, whatever architecture llama.cpp runs it by."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edge.errors import CheckpointError
from edge.spec import DecoderSpec, PromptSpec
from exporters.gguf import bpe, rendering, vocabulary
from exporters.gguf.names import MMPROJ
from exporters.gguf.reading import AGAIN, Source
from exporters.sources import chat_template
from exporters.sources.checkpoint import Checkpoint

TABLE = "token_embd.weight"
_MOST = 1 << 24  # of any size: more is damage
_NAMED = 3  # tokens of a refusal
_DESCRIBED = "is it the decoder of this very model, converted with its tokenizer?"


@dataclass(frozen=True)
class Decoder:
    file: Source

    @classmethod
    def open(cls, path: Path) -> Decoder:
        """Raises CheckpointError on what is no sound GGUF file of a decoder that reads embeddings."""
        file = Source.open(path)
        if file.head.architecture == MMPROJ:
            raise CheckpointError(
                f"{path.name} is an mmproj: it holds a vision encoder, and no decoder", hint="the decoder's own file"
            )
        if len(file.shape(TABLE)) != 2:
            raise CheckpointError(
                f"{path.name} has no embedding table ({TABLE}): no rows of tokens can be fed to it",
                hint="is it a language model, and whole?",
            )
        return cls(file)

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def scheme(self) -> str:
        """As the file says how most of it is stored: `q4_k_m`; else the kind of most weights."""
        try:
            name = gguf.LlamaFileType(self.file.get("general.file_type")).name.lower()
        except ValueError:
            sizes: dict[str, int] = {}
            for tensor in self.file.head.tensors.values():
                sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.bytes
            name = max(sizes, key=lambda kind: sizes[kind]).lower()
        return name.removeprefix("mostly_").removeprefix("all_")

    @property
    def weights(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.file.head.tensors.values())

    def spec(self) -> DecoderSpec:
        """As long as it was trained for. Raises CheckpointError on sizes that are missing or damaged."""
        vocab, hidden = self.file.shape(TABLE)
        heads = self._size("attention.head_count")
        head_dim = self._size("attention.key_length", hidden // heads)
        if (told := self._size("embedding_length")) != hidden:
            raise CheckpointError(
                f"{self.path.name} sets embedding_length {told}, and its table is {hidden} wide", hint=AGAIN
            )
        theta = self.file.get(self._key("rope.freq_base"), 10000.0)
        return DecoderSpec(
            layers=self._size("block_count"),
            heads=heads,
            kv_heads=self._size("attention.head_count_kv", heads),
            head_dim=head_dim,
            hidden=hidden,
            vocab=vocab,
            context=self._size("context_length"),
            rope_theta=float(theta) if isinstance(theta, int | float) and 0 < theta < math.inf else 10000.0,
            rope_dim=self._size("rope.dimension_count", head_dim),
            family=self.file.head.architecture,
            ffn=self._size("feed_forward_length", hidden),
            gated="blk.0.ffn_gate.weight" in self.file.head.tensors,
        )

    def compare(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """What a user should know, of a decoder that can stand for the checkpoint's. Raises CheckpointError that says
        what is not the same model's."""
        hidden, wanted = self.file.shape(TABLE)[1], checkpoint.spec.decoder.hidden
        if hidden != wanted:
            raise CheckpointError(
                f"{self.path.name} reads embeddings {hidden} wide, and the projector of {checkpoint.name} gives "
                f"{wanted}",
                hint="take both from the same model",
            )
        self._compare_tokens(checkpoint)
        return self._compare_template(checkpoint.spec.prompt)

    def rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Of the embedding table, `[len(ids), hidden]`."""
        tensor = self.file.head.tensors[TABLE]
        stored = np.memmap(self.path, np.uint8, "r", tensor.offset, (tensor.shape[1], tensor.bytes // tensor.shape[1]))
        try:
            found = gguf.dequantize(np.array(stored[list(ids)]), gguf.GGMLQuantizationType[tensor.kind])
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(
                f"{self.path.name}: {TABLE} ({tensor.kind}) cannot be read: {error}", hint="another quantisation"
            ) from error
        return np.asarray(found, np.float32)

    def _compare_tokens(self, checkpoint: Checkpoint) -> None:
        theirs = self.file.get("tokenizer.ggml.tokens")
        if not isinstance(theirs, list):
            raise CheckpointError(f"{self.path.name} has no vocabulary", hint=AGAIN)
        data = json.loads(checkpoint.tokenizer_json())
        vocab = data["model"]["vocab"]
        own = (
            dict(enumerate(text for text, _ in vocab)) if isinstance(vocab, list) else {i: t for t, i in vocab.items()}
        )
        added = {token["id"]: token["content"] for token in data.get("added_tokens") or ()}
        other = [i for i, text in sorted((own | added).items()) if i >= len(theirs) or theirs[i] != text]
        if not other:
            return
        if lacking := [added[i] for i in other if i in added and added[i] not in theirs]:
            raise CheckpointError(
                f"{self.path.name} lacks added tokens of {checkpoint.name}: {', '.join(map(repr, lacking[:_NAMED]))}"
                + (f", and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""),
                hint=_DESCRIBED,
            )
        named = [f"{i} is {theirs[i]!r}, not {(own | added)[i]!r}" for i in other if i < len(theirs)][:_NAMED]
        raise CheckpointError(
            f"{self.path.name} has another tokenizer than {checkpoint.name}: {len(other)} of {len(own | added)} tokens "
            "differ" + "".join(f"\n  token {line}" for line in named),
            hint=_DESCRIBED,
        )

    def _compare_template(self, prompt: PromptSpec) -> tuple[str, ...]:
        ends = [self._text(name) for name in ("bos", "eos")]
        for template in chat_template.of_gguf(self.file).values():
            if len(template) > rendering.LONGEST or (off := rendering.difference(template, prompt, *ends)):
                why = off if len(template) <= rendering.LONGEST else "it is too long to be rendered"
                return (f"the chat template of {self.path.name} is not the prompt that the bundle asks with: {why}",)
        return ()

    def _text(self, name: str) -> str:
        ids, texts = vocabulary.special_ids(self.file), self.file.get("tokenizer.ggml.tokens")
        token = getattr(ids, name)
        untold = f"tokenizer.ggml.{name}_token_id" not in self.file.head.settings
        if untold and self.file.get("tokenizer.ggml.model") == bpe.MODEL:
            return ""  # the library's default is a word of another model's
        return str(texts[token]) if type(token) is int and 0 <= token < len(texts) else ""

    def _key(self, name: str) -> str:
        return f"{self.file.head.architecture}.{name}"

    def _size(self, name: str, default: int | None = None) -> int:
        """Of layers that differ, the largest."""
        found: Any = self.file.get(self._key(name), default)
        found = max(found, default=None) if isinstance(found, list) and all(type(v) is int for v in found) else found
        if type(found) is not int or not 1 <= found <= _MOST:
            raise CheckpointError(f"{self.path.name} sets {self._key(name)} {found!r}", hint=AGAIN)
        return found
