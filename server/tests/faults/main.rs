//! Situations that went wrong for people elsewhere, each as a row of a table: an input, the path it takes, the right answer. One
//! file per field; the next situation is one more line.

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod operation;
mod plugins;
mod resources;
mod surface;
mod writing;
