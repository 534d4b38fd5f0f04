"""The command `python -m moelens`, a file per subcommand."""
