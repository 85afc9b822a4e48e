"""The command `lit_compress`, also ``python -m lit_compress``."""

import sys

from lit_compress.extras import MissingPackage, named_extras


def main() -> None:
    """Run the command line, or say what it lacks."""
    try:
        with named_extras():
            from lit_compress import cli
    except MissingPackage as missing:
        sys.exit(f"lit_compress: error: {missing}")
    cli.main()


if __name__ == "__main__":
    main()
