"""What decoding one token reads of the weights: with a device's bandwidth, the bound of its speed."""

from __future__ import annotations

from edge import gguf
from edge.bundle import Bundle
from edge.table import SCALES, TABLE


def bytes_per_token(bundle: Bundle) -> int:
    """All weights of the decoder but the embedding table, of which one row is looked up; keys and values not counted.
    Raises BundleError on a GGUF file that is damaged."""
    part = bundle.manifest.part("decoder")
    if part.format != "gguf":
        return sum(file.bytes for file in part.files if not file.path.endswith((TABLE, SCALES)))
    tensors = gguf.read(bundle.file(part.files[0])).tensors
    tied = "output.weight" not in tensors  # the table is the last layer, too
    return sum(tensor.bytes for name, tensor in tensors.items() if tied or name != "token_embd.weight")
