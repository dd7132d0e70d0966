//! SARIF 2.1.0, as code scanners exchange it: a run of the format for each run of ours, a result for each finding.
//!
//! Only the properties that are used have a type here; the tests hold the documents against the format's schema.

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    case::{Case, Standing},
    found::Found,
    report::Report,
    stacks::{Stack, function},
};
use crate::{analysis::Severity, symbolize::Frame};

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";
/// Base of the paths of the kernel's sources.
const ROOT: &str = "SRCROOT";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    id: String,
    short_description: Value,
    help: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SarifResult {
    rule_id: String,
    rule_index: usize,
    level: &'static str,
    message: Value,
    locations: Vec<Value>,
    stacks: Vec<Value>,
    partial_fingerprints: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suppressions: Vec<Value>,
    properties: Value,
}

/// Renders runs.
///
/// # Errors
/// When the document cannot be encoded.
pub fn render(cases: &[Case<'_>]) -> anyhow::Result<String> {
    let runs: Vec<Value> = cases.iter().map(run).collect::<Result<_, _>>()?;
    let log = json!({ "$schema": SCHEMA, "version": "2.1.0", "runs": runs });
    Ok(serde_json::to_string_pretty(&log)? + "\n")
}

fn run(case: &Case<'_>) -> Result<Value, serde_json::Error> {
    let rules = rules(case.findings());
    let results: Vec<SarifResult> = case
        .findings()
        .iter()
        .map(|finding| {
            let rule_index = rules.iter().position(|rule| rule.id == finding.class().name()).unwrap_or_default();
            result(case.report, finding, rule_index)
        })
        .collect();
    let notes = |level: &str, text: &str| json!({ "level": level, "message": { "text": text } });
    let mut notifications: Vec<Value> = Vec::new();
    let standing = case.standing();
    if let Standing::Unknown(why) = &standing {
        notifications.push(notes("error", why));
    } else {
        notifications.extend(case.incomplete().iter().map(|why| notes("warning", why)));
    }
    let mut invocation = json!({
        "executionSuccessful": !matches!(standing, Standing::Unknown(_)),
        "toolExecutionNotifications": notifications,
    });
    if !case.command.is_empty() {
        invocation["commandLine"] = case.command.join(" ").into();
    }
    Ok(json!({
        "tool": { "driver": {
            "name": "pagetrace",
            "version": env!("CARGO_PKG_VERSION"),
            "rules": serde_json::to_value(rules)?,
        } },
        "automationDetails": { "id": format!("pagetrace/{}", case.name) },
        "invocations": [invocation],
        "originalUriBaseIds": { ROOT: { "description": { "text": "The kernel's source tree" } } },
        "results": serde_json::to_value(results)?,
    }))
}

/// One rule a class, in the order of the findings.
fn rules(findings: &[Found]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for finding in findings {
        let id = finding.class().name();
        if rules.iter().all(|rule| rule.id != id) {
            let help = json!({ "text": finding.advice() });
            rules.push(Rule { id: id.to_owned(), short_description: json!({ "text": describe(id) }), help });
        }
    }
    rules
}

fn describe(class: &str) -> String {
    match class {
        "fault-under-lock" => "A page fault was taken while an mmap lock was held".to_owned(),
        "uaccess-under-lock" => "User memory was accessed while an mmap lock was held".to_owned(),
        "lock-leak" => "A task left an mmap lock behind".to_owned(),
        "lock-order" => "Locks were taken in orders that make a cycle through mmap_lock".to_owned(),
        "deadlock" => "Tasks wait for each other".to_owned(),
        other => other.replace('-', " "),
    }
}

fn result(report: Option<&Report>, finding: &Found, rule_index: usize) -> SarifResult {
    let level = if matches!(finding.severity(), Severity::Latent | Severity::CrossMm) { "warning" } else { "error" };
    SarifResult {
        rule_id: finding.class().name().to_owned(),
        rule_index,
        level,
        message: json!({ "text": finding.summary() }),
        locations: finding.site().map(|site| location(report, site)).into_iter().collect(),
        stacks: finding
            .stacks()
            .iter()
            .filter(|stack| !stack.frames.is_empty())
            .map(|stack| shown(report, stack))
            .collect(),
        partial_fingerprints: json!({ "pagetrace/v1": finding.marks().fingerprint }),
        suppressions: finding
            .marks()
            .excused
            .iter()
            .map(|excuse| json!({ "kind": "external", "status": "accepted", "justification": excuse.text() }))
            .collect(),
        properties: json!({
            "severity": finding.severity().name(),
            "count": finding.count(),
            "tasks": finding.tasks(),
        }),
    }
}

fn shown(report: Option<&Report>, stack: &Stack<'_>) -> Value {
    let frames: Vec<Value> = stack
        .frames
        .iter()
        .map(|frame| {
            let mut shown = json!({ "location": location(report, frame) });
            if let Some(module) = &frame.module {
                shown["module"] = module.as_str().into();
            }
            shown
        })
        .collect();
    json!({ "message": { "text": stack.role.title() }, "frames": frames })
}

/// A file and line where they are known; the function in any case.
fn location(report: Option<&Report>, frame: &Frame) -> Value {
    let name = function(frame);
    let module = frame.module.as_deref().unwrap_or("vmlinux");
    let mut location = json!({
        "logicalLocations": [{ "name": name, "fullyQualifiedName": format!("{module}!{name}"), "kind": "function" }],
        "message": { "text": frame.text() },
    });
    if let Some(source) = report.and_then(|report| report.sources.get(&frame.addr)) {
        let artifact = if source.file.starts_with('/') {
            json!({ "uri": format!("file://{}", uri(&source.file)) })
        } else {
            json!({ "uri": uri(&source.file), "uriBaseId": ROOT })
        };
        location["physicalLocation"] = json!({ "artifactLocation": artifact, "region": { "startLine": source.line } });
    }
    location
}

/// A path as part of a URI.
fn uri(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    path.bytes().fold(String::new(), |mut out, byte| {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_uris() {
        assert_eq!(uri("drivers/my driver/a+b.c"), "drivers/my%20driver/a%2Bb.c");
    }

    #[test]
    fn a_class_that_is_new_has_a_description() {
        assert_eq!(describe("something-else"), "something else");
    }
}
