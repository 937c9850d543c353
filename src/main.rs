//! The `hushfs` program: parse, run, turn the error into an exit code.

fn main() -> std::process::ExitCode {
    hushfs::cli::main()
}
