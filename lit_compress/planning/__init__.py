"""Planning: how long a structure takes on this machine, what its removal costs, and which one is best for a time."""
