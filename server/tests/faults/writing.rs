//! Line protocol over all ways in: what is refused says why and where, and what is sound is written.
