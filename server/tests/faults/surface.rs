//! The surface over HTTP and of the command line: methods, headers, codings, names, settings that do not exist.
