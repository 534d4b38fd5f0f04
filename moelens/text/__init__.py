"""WORDS: between text and token ids."""
