"""WHAT: the operations that models are written in, their definition in torch and their compiled form."""
