//! The `orb8` command. A shell around orb8-cli, so that `cargo install orb8` installs it; never
//! more than that.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    orb8_cli::main()
}
