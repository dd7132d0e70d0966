//! The table. Pure.

use super::{
    measure::{Measured, Row, STORMS, Start},
    stats::Sample,
};

/// Renders it for the kernel with this release.
pub(super) fn render(kernel: &str, measured: &Measured) -> String {
    let mut storms = vec![
        ["storm", "kernel", "attach", "plain ns/op median (min-max)", "checked ns/op median (min-max)", "slowdown"]
            .map(str::to_owned),
    ];
    for Row { storm, attach, plain, checked } in &measured.rows {
        let slowdown = format!("{:+.1} %", (checked.median / plain.median - 1.0) * 100.0);
        storms.push([(*storm).into(), kernel.into(), attach.clone(), range(plain), range(checked), slowdown]);
    }
    let mut starts = vec![
        ["start to attached", "kernel", "attach", "programs", "ms median (min-max)", "of these attaching"]
            .map(str::to_owned),
    ];
    for Start { attach, programs, whole, attaching } in &measured.starts {
        let programs = programs.to_string();
        starts.push(["".into(), kernel.into(), attach.clone(), programs, range(whole), range(attaching)]);
    }
    let mut out = format!("{}\n{}\n", columns(&storms), columns(&starts));
    for storm in STORMS {
        out.push_str(&format!("{}: an operation is {}\n", storm.name, storm.operation));
    }
    for run in &measured.not_clean {
        out.push_str(&format!("not clean: {run}\n"));
    }
    for run in &measured.recordings {
        out.push_str(&format!("recorded: {run}\n"));
    }
    out
}

fn range(sample: &Sample) -> String {
    let Sample { median, min, max } = sample;
    format!("{median:.0} ({min:.0}-{max:.0})")
}

/// Cells under each other, two spaces between.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut out = String::new();
    for row in rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_under_their_headings() {
        let sample = |median: f64| Sample { median, min: median - 1.0, max: median + 1.0 };
        let measured = Measured {
            rows: vec![Row {
                storm: "mmap-storm",
                attach: "fentry".into(),
                plain: sample(1000.0),
                checked: sample(1500.0),
            }],
            starts: vec![Start {
                attach: "fentry".into(),
                programs: 20,
                whole: sample(300.0),
                attaching: sample(200.0),
            }],
            not_clean: vec!["x".into()],
            recordings: Vec::new(),
        };
        let text = render("6.12.0", &measured);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("attach"), lines[1].find("fentry"));
        assert!(lines[1].contains("1000 (999-1001)") && lines[1].ends_with("+50.0 %"), "{text}");
        assert!(lines[4].contains("20") && lines[4].ends_with("200 (199-201)"), "{text}");
        assert!(text.ends_with("not clean: x\n"));
    }
}
