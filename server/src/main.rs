//! The binary `saltus`; everything it does is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Batches are made on one core and freed on another: mimalloc takes such frees without a lock.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    saltus::cli::main()
}
