//! `cargo xtask setup`: finds what is missing, says what it will install and why, installs it.

mod install;
mod needs;

use std::process::ExitCode;

use anyhow::{Result, bail};

use self::needs::Need;
pub(crate) use self::needs::Purpose;
use crate::step::note;

/// What `cargo xtask setup` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only say what is missing; the exit code is 1 when something is.
    #[arg(long)]
    no_install: bool,
}

/// Runs the subcommand.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let missing = needs::missing(Purpose::Usual);
    if missing.is_empty() {
        println!("setup: everything is there");
        return Ok(ExitCode::SUCCESS);
    }
    report(&missing);
    if options.no_install {
        return Ok(ExitCode::FAILURE);
    }
    install(&missing, Purpose::Usual)?;
    println!("setup: everything is there");
    Ok(ExitCode::SUCCESS)
}

/// For tasks that need a complete set-up: silent when it is.
pub(crate) fn ensure(may_install: bool) -> Result<()> {
    ensure_for(Purpose::Usual, may_install)
}

/// The same for tasks that need more than building and testing do.
pub(crate) fn ensure_for(purpose: Purpose, may_install: bool) -> Result<()> {
    let missing = needs::missing(purpose);
    if missing.is_empty() {
        return Ok(());
    }
    report(&missing);
    if !may_install {
        bail!("the set-up is not complete, and nothing may be installed (--no-install)");
    }
    install(&missing, purpose)
}

fn report(missing: &[Need]) {
    let apt = install::has_apt();
    for Need { what, why, apt: packages, dnf, also, .. } in missing {
        let how = match (apt, packages.is_empty(), dnf.is_empty()) {
            (true, false, _) => format!("apt-get install {}", packages.join(" ")),
            (false, _, false) => format!("dnf install {}", dnf.join(" ")),
            _ => String::new(),
        };
        let how: Vec<_> = [how.as_str(), *also].into_iter().filter(|text| !text.is_empty()).collect();
        println!("setup: missing: {what}, for {why}: {}", how.join(", then "));
    }
}

fn install(missing: &[Need], purpose: Purpose) -> Result<()> {
    if !install::has_apt() {
        let names: Vec<_> = missing.iter().map(|need| need.what).collect();
        bail!("no apt-get here, so this has to be installed by hand: {}", names.join(", "));
    }
    let mut packages: Vec<&str> = missing.iter().flat_map(|need| need.apt).copied().collect();
    packages.sort_unstable();
    packages.dedup();
    let unavailable = install::packages(&packages)?;
    for need in missing {
        install::rest(need.id, &unavailable)?;
    }
    let still = needs::missing(purpose);
    if let Some(need) = still.first() {
        bail!("{} is still missing after the installation ({})", need.what, need.why);
    }
    note("set-up complete");
    Ok(())
}
