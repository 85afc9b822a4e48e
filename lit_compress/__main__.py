"""``python -m lit_compress``."""

from lit_compress.cli import main

main()
