"""The command `lit_compress`, also ``python -m lit_compress``."""

from lit_compress.cli import main

if __name__ == "__main__":
    main()
