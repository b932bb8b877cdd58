//! A worker process without a server around it: what the tests of the process lane start.

use std::process::ExitCode;

fn main() -> ExitCode {
    saltus_python::worker_main()
}
