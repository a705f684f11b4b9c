"""The command line, one file a command; nothing else prints."""

from robustbench_bio.cli.app import main

__all__ = ["main"]
