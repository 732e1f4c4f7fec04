"""How numbers are rounded for storage, and which of them matter."""
