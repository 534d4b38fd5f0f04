"""WHEN: which rows go into the next step, and where their keys and values lie."""
