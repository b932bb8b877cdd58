//! Build script: lets the benchmarks find libpython.

include!("../python-bridge/build/find_python.rs");

fn main() {
    let found = find_python();
    println!("cargo:rerun-if-changed=../python-bridge/build/find_python.rs");
    println!("cargo:rustc-env=SALTUS_PYTHON_PREFIX={}", found.prefix);
    link_rpath(&found);
}
