"""What a model needs of a device, and how it is opened there: pure functions of manifest and profile."""
