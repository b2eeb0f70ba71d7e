//! The program `tandem`.

use std::process::ExitCode;

use tandem::cli;

fn main() -> ExitCode {
    cli::run()
}
