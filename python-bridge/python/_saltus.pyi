"""The native module under the name that it has in the server, for checking this package itself; not installed."""

from saltus._saltus import *
