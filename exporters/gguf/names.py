"""How llama.cpp names what is in a pair of files; read where neither torch nor the `gguf` package is installed."""

from __future__ import annotations

from edge import plugins

_FAMILIES = "exporters.models.decoders"
MMPROJ = "clip"  # its architecture
POSITIONS = "v.position_embd.weight"
GRID = 24  # the LDP projectors of llama.cpp take no other
FEATURE_LAYER = "clip.vision.feature_layer"
TEMPLATE = "tokenizer.chat_template"
OURS = "edge_vlm.version"
WORKAROUND = "edge_vlm.position_workaround"
TENSOR_TYPES = "edge_vlm.tensor_types"


def decoders() -> tuple[str, ...]:
    """The architectures of the decoders that are read and written."""
    told = (plugins.facts(_FAMILIES, name)["ARCHITECTURE"] for name in plugins.names(_FAMILIES))
    return tuple(dict.fromkeys(told))
