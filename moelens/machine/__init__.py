"""HOW: the lanes and buffers of one kind of machine."""
