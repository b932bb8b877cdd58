//! What an operator meets: missing files, starts without writes, full disks.
