//! Queries that want too much: memory, time, clients that have gone.
