//! One document, written as it comes.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{Head, Render, Sums, Tail, View, name, permissions, seen};
use crate::pages::{Facts, Vma, gather::Line, kpage, summary::Counts};

/// The form of the document.
pub const SCHEMA: &str = "pagetrace.pagemap/1";

/// The writer.
pub struct Json<W> {
    out: W,
    view: View,
    page_size: u64,
    untold: Facts,
    mappings: u64,
    lines: u64,
}

impl<W: Write> Json<W> {
    /// Writes there.
    pub fn new(out: W) -> Self {
        Self { out, view: View::Summary, page_size: 4096, untold: Facts::NONE, mappings: 0, lines: 0 }
    }

    /// A number that stands for nothing is null.
    fn counts(&self, counts: &Counts) -> Value {
        let mut value = json!(counts);
        let told = [
            ("exclusive", Facts::EXCLUSIVE),
            ("soft_dirty", Facts::SOFT_DIRTY),
            ("uffd_wp", Facts::UFFD_WP),
            ("guard", Facts::GUARD),
        ];
        for (field, fact) in told {
            if self.untold.any(fact) {
                value[field] = Value::Null;
            }
        }
        value
    }

    /// `"key":value`, without the braces of what it is in.
    fn field(&mut self, key: &str, value: &Value) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, key)?;
        write!(self.out, ":")?;
        serde_json::to_writer(&mut self.out, value)?;
        Ok(())
    }

    fn has_lines(&self) -> bool {
        matches!(self.view, View::Runs | View::Entries)
    }
}

impl<W: Write> Render for Json<W> {
    fn head(&mut self, head: &Head<'_>) -> io::Result<()> {
        self.view = head.view;
        self.page_size = head.page_size;
        self.untold = head.ability.untold().into_iter().fold(Facts::NONE, |sum, (fact, _)| sum.with(fact));
        let view = clap::ValueEnum::to_possible_value(&head.view);
        let fields = [
            ("schema", json!(SCHEMA)),
            ("process", json!({ "pid": head.pid, "comm": head.comm })),
            ("kernel", json!({ "release": head.release, "bits": head.ability })),
            ("page_size", json!(head.page_size)),
            ("view", json!(view.map(|view| view.get_name().to_owned()))),
            ("where", json!(head.filter)),
        ];
        write!(self.out, "{{")?;
        for (key, value) in &fields {
            self.field(key, value)?;
            write!(self.out, ",")?;
        }
        write!(self.out, "\"mappings\":[")
    }

    fn begin(&mut self, vma: &Vma) -> io::Result<()> {
        write!(self.out, "{}\n{{", if self.mappings == 0 { "" } else { "," })?;
        self.mappings += 1;
        self.lines = 0;
        let fields = [
            ("start", json!(vma.start)),
            ("end", json!(vma.end)),
            ("permissions", json!(permissions(vma))),
            ("offset", json!(vma.offset)),
            ("inode", json!(vma.inode)),
            ("name", json!(name(vma))),
        ];
        for (key, value) in &fields {
            self.field(key, value)?;
            write!(self.out, ",")?;
        }
        if self.has_lines() {
            write!(self.out, "\"pages\":[")?;
        }
        Ok(())
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        write!(self.out, "{}\n ", if self.lines == 0 { "" } else { "," })?;
        self.lines += 1;
        let mut value = json!({
            "address": line.first.saturating_mul(self.page_size),
            "count": line.count,
            "is": line.facts.names().collect::<Vec<_>>(),
            "not_told": Facts::from_bits(u32::MAX).without(line.told).with(self.untold).names().collect::<Vec<_>>(),
        });
        if line.count == 1 {
            value["entry"] = json!(line.entry.raw());
        }
        if line.count == 1 || line.contiguous {
            value["pfn"] = json!(line.entry.pfn());
        }
        if line.count == 1
            && let Some(slot) = line.entry.swap_slot()
        {
            value["swap"] = json!({ "area": slot.area, "offset": slot.offset });
        }
        if let Some(frame) = line.frame {
            value["frame"] = json!({ "mapped": frame.count, "flags": kpage::names(frame.flags).collect::<Vec<_>>() });
        }
        serde_json::to_writer(&mut self.out, &value)?;
        Ok(())
    }

    fn end(&mut self, _vma: &Vma, sums: &Sums<'_>) -> io::Result<()> {
        if self.has_lines() {
            write!(self.out, "],")?;
        }
        if let Some(density) = &sums.density {
            self.field("cells", &json!(density.cells))?;
            write!(self.out, ",")?;
        }
        if let Some(flags) = &sums.flags {
            let seen: serde_json::Map<String, Value> =
                seen(flags).map(|(name, count)| (name.to_owned(), json!(count))).collect();
            self.field("frames", &Value::Object(seen))?;
            write!(self.out, ",")?;
        }
        if let Some(smaps) = sums.smaps {
            self.field("smaps", &json!({ "bytes": smaps.sizes, "flags": smaps.flags }))?;
            write!(self.out, ",")?;
        }
        self.field("unreadable", &json!(sums.unreadable))?;
        write!(self.out, ",")?;
        let counts = self.counts(&sums.counts);
        self.field("counts", &counts)?;
        write!(self.out, "}}")
    }

    fn finish(&mut self, tail: &Tail) -> io::Result<()> {
        write!(self.out, "\n],")?;
        let mut value = json!(tail);
        value["totals"] = self.counts(&tail.totals);
        let fields = value.as_object().cloned().unwrap_or_default();
        for (at, (key, value)) in fields.iter().enumerate() {
            if at != 0 {
                write!(self.out, ",")?;
            }
            self.field(key, value)?;
        }
        writeln!(self.out, "}}")?;
        self.out.flush()
    }
}
