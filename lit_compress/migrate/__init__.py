"""From the files of other tools to a configuration of `lit_compress fit`."""

from lit_compress.migrate.command import migrate

__all__ = ["migrate"]
