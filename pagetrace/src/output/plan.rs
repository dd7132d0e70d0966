//! The probe plan for people.

use std::fmt::{self, Write};

use crate::plan::Plan;

/// Renders a plan.
pub fn render(plan: &Plan, release: &str) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_plan(&mut out, plan, release);
    out
}

fn write_plan(out: &mut String, plan: &Plan, release: &str) -> fmt::Result {
    writeln!(out, "probe plan for kernel {release}")?;
    for event in &plan.events {
        let attach = event.attach.map_or("not seen", |attach| attach.name());
        writeln!(out, "\n{:<14} {attach}", event.event.name())?;
        for probe in &event.probes {
            let kind = serde_json::to_value(probe.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
            writeln!(out, "  {:<15} {}", kind.unwrap_or_default(), probe.target)?;
        }
        for passed in &event.passed_over {
            writeln!(out, "  passed over {}: {}", passed.attach.name(), passed.why)?;
        }
        for sentence in &event.not_seen {
            writeln!(out, "  not seen: {sentence}")?;
        }
    }
    Ok(())
}
