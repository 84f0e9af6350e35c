//! How long the core takes for one proposal: step and flush, without any I/O.

fn main() {
    divan::main();
}
