"""What a user trained or downloaded: folders, hub addresses, weights, tokenizers, prompts, and what is read of them."""
