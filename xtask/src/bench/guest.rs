//! The bench within a test machine: one boot, the same program measuring there.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use anyhow::{Result, bail};

use super::measure::Plan;
use crate::{
    build, guest,
    step::note,
    vm::{self, Accel, VmFile, accel, kernel},
};

/// Attaching and detaching may take this long where every instruction is emulated.
const START: u32 = 20;

/// Boots the kernel and measures in it.
pub(super) fn run(wanted: &str, plan: &Plan) -> Result<ExitCode> {
    let kernel = kernel::resolve(wanted, &note)?;
    let binaries = build::build_bench()?;
    let name = format!("bench-{}-{}", kernel.series, std::process::id());
    let mut spec = guest::base(&kernel.image, &binaries.pagetrace, &name)?;
    spec.files.push(VmFile::executable("/bin/pagetrace-fixture", &binaries.fixture));
    spec.files.push(VmFile::executable("/bin/xtask", &binaries.xtask));
    spec.command = ["/bin/xtask", "bench", "--tools", "/bin"].map(OsString::from).to_vec();
    spec.command.extend(plan.arguments().into_iter().map(OsString::from));
    spec.timeout = Duration::from_secs(60 + u64::from(plan.runs()) * u64::from(plan.seconds + START));
    let accel = accel::choose(&kernel.image);
    spec.accel = Some(accel);
    note(&format!("booting {}", kernel.release));
    let result = vm::run(&spec, &mut |line| match line.strip_prefix("xtask: ") {
        Some(progress) => note(progress),
        None => println!("{line}"),
    })?;
    if !result.outcome.success() {
        bail!("the bench within the test machine: {}; console: {}", result.outcome, result.console_log.display());
    }
    if accel == Accel::Tcg {
        println!(
            "note: the machine was emulated (TCG), which slows some instructions down more than others: \
             compare the attach types with each other, and take no figure for that of real hardware"
        );
    }
    println!("\nreproduce: {}", plan.command(Some(wanted)));
    Ok(ExitCode::SUCCESS)
}
