"""A module of the package."""

VERSION = "v1"
