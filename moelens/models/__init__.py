"""WHAT: model families, one file each."""
