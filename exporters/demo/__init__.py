"""The toy world: its drawings, its questions, and the scripts that train the small demo checkpoint."""
