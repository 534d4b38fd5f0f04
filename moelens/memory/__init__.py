"""WHERE: weights and the key/value cache."""
