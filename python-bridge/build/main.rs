//! Build script: tells the bridge where its standard library is, and its tests where libpython is.

include!("find_python.rs");

fn main() {
    println!("cargo:rerun-if-changed=build");
    let found = find_python();
    println!("cargo:rustc-env=SALTUS_PYTHON_PREFIX={}", found.prefix);
    link_rpath(&found);
}
