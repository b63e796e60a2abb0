"""One run: its directory, and one function for each step, for command, ``run`` and Python alike."""
