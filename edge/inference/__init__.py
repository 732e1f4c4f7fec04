"""From an image and a question to text: the session and what it is made of."""
