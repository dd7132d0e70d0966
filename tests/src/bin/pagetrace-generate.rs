//! Man pages and completions, from the definition of the command line. `cargo xtask dist` runs it.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;

fn main() -> Result<()> {
    let dir = PathBuf::from(env::args_os().nth(1).context("give the directory to write to")?);
    for sub in ["man", "completions"] {
        fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot create {}", dir.join(sub).display()))?;
    }
    // A page for the program and one for each command: `pagetrace-check.1`.
    clap_mangen::generate_to(pagetrace::cli::Args::command(), dir.join("man")).context("cannot write the man pages")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut pagetrace::cli::Args::command(), "pagetrace", dir.join("completions"))
            .with_context(|| format!("cannot write the completions for {shell}"))?;
    }
    Ok(())
}
