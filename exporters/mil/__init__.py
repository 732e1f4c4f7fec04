"""Core ML packages read and computed op by op on torch, on any machine: what Apple's own library does on Apple's."""
