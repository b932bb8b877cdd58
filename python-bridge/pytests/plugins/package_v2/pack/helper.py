"""A module of the package."""

VERSION = "v2"
