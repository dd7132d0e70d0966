//! Annotations for GitHub Actions: workflow commands, one a line, which the runner shows beside a change.

use super::{
    case::{Case, Standing},
    found::Found,
};

/// Renders runs.
///
/// # Errors
/// Never; the signature is that of all renderers.
pub fn render(cases: &[Case<'_>]) -> anyhow::Result<String> {
    let mut out = String::new();
    for case in cases {
        for finding in case.findings() {
            out.push_str(&annotation(case, finding));
        }
        if let Standing::Unknown(why) = case.standing() {
            out.push_str(&command("error", &[("title", &format!("pagetrace on {}", case.name))], &why));
        } else {
            for why in case.incomplete() {
                out.push_str(&command(
                    "warning",
                    &[("title", &format!("pagetrace on {}: incomplete", case.name))],
                    why,
                ));
            }
        }
    }
    Ok(out)
}

fn annotation(case: &Case<'_>, finding: &Found) -> String {
    let title = format!("{}, {} ({})", finding.title(), finding.severity().name(), case.name);
    let message = format!("{}\n{}\nfingerprint {}", finding.summary(), finding.advice(), finding.marks().fingerprint);
    let source = case.report.zip(finding.site()).and_then(|(report, site)| report.sources.get(&site.addr));
    let line = source.map(|source| source.line.to_string());
    let mut properties = Vec::new();
    if let (Some(source), Some(line)) = (source, &line) {
        properties.extend([("file", source.file.as_str()), ("line", line.as_str())]);
    }
    properties.push(("title", &title));
    match &finding.marks().excused {
        None => command("error", &properties, &message),
        Some(excuse) => command("notice", &properties, &format!("{}\n{message}", excuse.text())),
    }
}

/// A workflow command. The runner takes the text apart at these characters.
fn command(kind: &str, properties: &[(&str, &str)], message: &str) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property =
        |(name, value): &(&str, &str)| format!("{name}={}", data(value).replace(':', "%3A").replace(',', "%2C"));
    let properties: Vec<String> = properties.iter().map(property).collect();
    format!("::{kind} {}::{}\n", properties.join(","), data(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_ends_or_begins_a_command() {
        let line = command("error", &[("title", "a:b,c"), ("file", "x%y")], "one\n::error::two 100%");
        assert_eq!(line, "::error title=a%3Ab%2Cc,file=x%25y::one%0A::error::two 100%25\n");
    }
}
