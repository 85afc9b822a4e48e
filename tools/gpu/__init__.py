"""Everything that needs a GPU, in the minutes that one is at hand: see ``__main__``."""
