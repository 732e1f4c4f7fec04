"""How llama.cpp names what is in a pair of files; read where neither torch nor the `gguf` package is installed."""

from __future__ import annotations

DECODER, MMPROJ = "llama", "clip"  # architectures
POSITIONS = "v.position_embd.weight"
GRID = 24  # the LDP projectors of llama.cpp take no other
FEATURE_LAYER = "clip.vision.feature_layer"
TEMPLATE = "tokenizer.chat_template"
OURS = "edge_vlm.version"
WORKAROUND = "edge_vlm.position_workaround"
TENSOR_TYPES = "edge_vlm.tensor_types"
