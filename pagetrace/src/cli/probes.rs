//! `pagetrace probes`: the plan for this kernel.

use std::io::Write as _;

use anyhow::{Context as _, Result};

use super::{
    args::ProbesArgs,
    check::facts,
    exit::{Exit, Unmet},
};
use crate::{
    live::{
        prepare::{Run, View},
        session::{Spec, try_plan},
    },
    output::{self, Format},
    plan::{Wish, plan},
};

/// Prints the plan.
pub(super) fn run(args: &ProbesArgs) -> Result<Exit> {
    let facts = facts()?;
    let run = Run {
        trace: true,
        strict: args.strict,
        order: args.order,
        target_mode: pagetrace_ebpf::wire::setting::target::LISTED,
        ..Run::default()
    };
    let plan = if args.dry {
        let view = View::of(&facts).ok_or_else(|| Unmet("this kernel has no usable BTF".to_owned()))?;
        plan(
            &view,
            &Wish { force: args.attach, trace: true, strict: args.strict, order: args.order, refused: Vec::new() },
        )?
    } else {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(async { try_plan(&facts, &Spec { attach: args.attach, run, ..Spec::default() }) })?
    };
    let text = match args.format {
        Format::Text => output::plan::render(&plan, &facts.features.release),
        Format::Json => {
            let document = serde_json::json!({
                "schema": "pagetrace.probes/1",
                "kernel": { "release": facts.features.release, "machine": facts.features.machine },
                "events": plan.events,
                "not_seen": plan.not_seen(),
            });
            serde_json::to_string_pretty(&document).context("cannot encode the plan")? + "\n"
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(Exit::Clean)
}
