"""The torch modules: components, the operations they are made of, and a folder for each kind of alternative."""
