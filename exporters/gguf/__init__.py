"""What a GGUF file is made of: packed tensors, a vocabulary, a chat template, and the names llama.cpp looks for."""
