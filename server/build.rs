//! Build script: lets the binary find libpython without environment variables.

include!("../python-bridge/build/find_python.rs");

fn main() {
    let found = find_python();
    println!("cargo:rerun-if-changed=../python-bridge/build/find_python.rs");
    println!("cargo:rustc-env=SALTUS_PYTHON_PREFIX={}", found.prefix);
    link_rpath(&found);
}
