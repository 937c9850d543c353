//! Command line.
/// Runs the program.
pub fn main() -> std::process::ExitCode { unimplemented!() }
