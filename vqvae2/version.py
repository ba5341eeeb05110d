"""The version of the package, kept apart so that every floor and the build can read it."""

__version__ = "0.1.0"
