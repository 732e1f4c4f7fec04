"""How components become the methods of an ExecuTorch program."""
