"""The command line: add here one file a command, which parses, calls one function and prints; nothing else prints."""

from robustbench_bio.cli.app import main

__all__ = ["main"]
