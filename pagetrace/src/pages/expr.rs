//! Which pages are meant: `present & file & !huge`. Parsed from text, asked about a page of which perhaps not everything is
//! known. Pure.

use super::{facts::Facts, kpage, scan::category};

/// How deep parentheses and negations may go; what is deeper is refused, since reading it recurses.
const DEPTH: usize = 64;

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// One of these facts holds.
    Any(Facts),
    /// One of these flags of the page's frame is set, as in [`kpage::FLAGS`].
    Frame(u64),
    /// It does not hold.
    Not(Box<Self>),
    /// All hold.
    And(Vec<Self>),
    /// One holds.
    Or(Vec<Self>),
}

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at column {column}; {}", help())]
pub struct ExprError {
    what: String,
    column: usize,
}

fn help() -> String {
    let names: Vec<&str> = Facts::ALL.iter().map(|(_, name)| *name).collect();
    format!(
        "a condition is made of {}, populated, anon, and with --flags of kpf_lru and the like, by & | ! and parentheses",
        names.join(", ")
    )
}

/// What is known of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// The facts that hold.
    pub facts: Facts,
    /// Those that are known to hold or not to.
    pub told: Facts,
    /// The flags of its frame, where they are known.
    pub frame: Option<u64>,
}

impl Expr {
    /// Reads a condition.
    ///
    /// # Errors
    /// When it is none; the error says where.
    pub fn parse(text: &str) -> Result<Self, ExprError> {
        let mut parser = Parser { text, at: 0 };
        let expr = parser.any(0)?;
        match parser.peek() {
            None => Ok(expr),
            Some(found) => Err(parser.error(format!("`{found}` is not expected"))),
        }
    }

    /// Whether it holds; `None` where what is known does not say.
    #[must_use]
    pub fn holds(&self, known: &Known) -> Option<bool> {
        match self {
            Self::Any(facts) if known.facts.any(facts.and(known.told)) => Some(true),
            Self::Any(facts) if facts.without(known.told).is_empty() => Some(false),
            Self::Any(_) => None,
            Self::Frame(flags) => known.frame.map(|frame| frame & flags != 0),
            Self::Not(inner) => inner.holds(known).map(|holds| !holds),
            Self::And(all) => all_of(all.iter().map(|one| one.holds(known))),
            Self::Or(any) => all_of(any.iter().map(|one| one.holds(known).map(|holds| !holds))).map(|none| !none),
        }
    }

    /// The facts that it asks about.
    #[must_use]
    pub fn facts(&self) -> Facts {
        match self {
            Self::Any(facts) => *facts,
            Self::Frame(_) => Facts::NONE,
            Self::Not(inner) => inner.facts(),
            Self::And(list) | Self::Or(list) => list.iter().fold(Facts::NONE, |sum, one| sum.with(one.facts())),
        }
    }

    /// Whether it asks about frames.
    #[must_use]
    pub fn asks_frames(&self) -> bool {
        match self {
            Self::Any(_) => false,
            Self::Frame(_) => true,
            Self::Not(inner) => inner.asks_frames(),
            Self::And(list) | Self::Or(list) => list.iter().any(Self::asks_frames),
        }
    }

    /// Whether it can hold for a place that nothing has been put into.
    #[must_use]
    pub fn takes_holes(&self) -> bool {
        self.holds(&Known { facts: Facts::NONE, told: Facts::from_bits(u32::MAX), frame: Some(0) }) != Some(false)
    }

    /// Categories of a scan without which it cannot hold, and those with which it cannot: the kernel leaves such pages out.
    #[must_use]
    pub fn required(&self) -> (u64, u64) {
        match self {
            Self::Any(facts) => (single(*facts), 0),
            // A place that is empty has no category: to be without one says something.
            Self::Not(inner) => match &**inner {
                Self::Any(facts) => (0, every(*facts)),
                _ => (0, 0),
            },
            Self::And(list) => list.iter().fold((0, 0), |(all, none), one| {
                let (with, without) = one.required();
                (all | with, none | without)
            }),
            Self::Frame(_) | Self::Or(_) => (0, 0),
        }
    }
}

/// Facts and their categories, where one is the other. Not so the page of zeros: kernels differ in what they say of a huge one.
const SAME: [(Facts, u64); 5] = [
    (Facts::PRESENT, category::PRESENT),
    (Facts::SWAPPED, category::SWAPPED),
    (Facts::FILE, category::FILE),
    (Facts::GUARD, category::GUARD),
    (Facts::HUGE, category::HUGE),
];

/// The category of a single fact.
fn single(facts: Facts) -> u64 {
    SAME.iter().find(|(fact, _)| *fact == facts).map_or(0, |(_, category)| *category)
}

/// The categories of all facts in a set; huge is left out, since an empty place of hugetlb memory is scanned as huge.
fn every(facts: Facts) -> u64 {
    let of = SAME.iter().filter(|(fact, _)| *fact != Facts::HUGE && facts.any(*fact));
    of.fold(0, |sum, (_, category)| sum | category)
}

/// Three-valued conjunction.
fn all_of(values: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut sum = Some(true);
    for value in values {
        match value {
            Some(false) => return Some(false),
            None => sum = None,
            Some(true) => {}
        }
    }
    sum
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn error(&self, what: String) -> ExprError {
        let before = self.text.get(..self.at).unwrap_or_default();
        ExprError { what, column: before.chars().count() + 1 }
    }

    fn peek(&mut self) -> Option<char> {
        let rest = self.text.get(self.at..)?;
        self.at += rest.len() - rest.trim_start().len();
        rest.trim_start().chars().next()
    }

    /// Takes an operator, single or doubled.
    fn take(&mut self, operator: char) -> bool {
        let found = self.peek() == Some(operator);
        if found {
            self.at += operator.len_utf8();
            if matches!(operator, '&' | '|') && self.text.get(self.at..).is_some_and(|rest| rest.starts_with(operator))
            {
                self.at += operator.len_utf8();
            }
        }
        found
    }

    fn any(&mut self, depth: usize) -> Result<Expr, ExprError> {
        let mut list = vec![self.all(depth)?];
        while self.take('|') {
            list.push(self.all(depth)?);
        }
        Ok(one_or(list, Expr::Or))
    }

    fn all(&mut self, depth: usize) -> Result<Expr, ExprError> {
        let mut list = vec![self.one(depth)?];
        while self.take('&') {
            list.push(self.one(depth)?);
        }
        Ok(one_or(list, Expr::And))
    }

    fn one(&mut self, depth: usize) -> Result<Expr, ExprError> {
        if depth > DEPTH {
            return Err(self.error(format!("more than {DEPTH} parentheses and negations inside of each other")));
        }
        if self.take('!') {
            return Ok(Expr::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.take('(') {
            let inner = self.any(depth + 1)?;
            return if self.take(')') { Ok(inner) } else { Err(self.error("a `)` is missing".to_owned())) };
        }
        self.name()
    }

    fn name(&mut self) -> Result<Expr, ExprError> {
        let found = self.peek();
        let rest = self.text.get(self.at..).unwrap_or_default();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-')).unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or_default();
        if word.is_empty() {
            return Err(self.error(match found {
                Some(found) => format!("`{found}` stands where a name is expected"),
                None => "it ends where a name is expected".to_owned(),
            }));
        }
        let name = word.to_ascii_lowercase().replace('-', "_");
        let expr = named(&name).ok_or_else(|| self.error(format!("there is nothing called `{word}`")))?;
        self.at += end;
        Ok(expr)
    }
}

fn one_or(mut list: Vec<Expr>, many: impl FnOnce(Vec<Expr>) -> Expr) -> Expr {
    match list.len() {
        1 => list.swap_remove(0),
        _ => many(list),
    }
}

fn named(name: &str) -> Option<Expr> {
    let populated = Facts::PRESENT.with(Facts::SWAPPED);
    match name {
        "populated" => Some(Expr::Any(populated)),
        // A guard region is no memory, though the entry looks like one of swap.
        "anon" => {
            Some(Expr::And(vec![Expr::Any(populated), Expr::Not(Box::new(Expr::Any(Facts::FILE.with(Facts::GUARD))))]))
        }
        _ => {
            if let Some(flag) = name.strip_prefix("kpf_") {
                return kpage::FLAGS.iter().find(|(_, name)| *name == flag).map(|(bit, _)| Expr::Frame(1 << bit));
            }
            Facts::ALL.iter().find(|(_, known)| *known == name).map(|(fact, _)| Expr::Any(*fact))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Expr {
        Expr::parse(text).unwrap()
    }

    fn whole(facts: Facts) -> Known {
        Known { facts, told: Facts::from_bits(u32::MAX), frame: Some(0) }
    }

    fn write(expr: &Expr) -> String {
        let join = |list: &[Expr], by: &str| list.iter().map(write).collect::<Vec<_>>().join(by);
        match expr {
            Expr::Any(facts) => format!("({})", facts.names().collect::<Vec<_>>().join("|")),
            Expr::Frame(flags) => format!("kpf_{}", kpage::names(*flags).next().unwrap()),
            Expr::Not(inner) => format!("!({})", write(inner)),
            Expr::And(list) => format!("({})", join(list, " & ")),
            Expr::Or(list) => format!("({})", join(list, "||")),
        }
    }

    fn exprs() -> impl Strategy<Value = Expr> {
        let leaf = prop_oneof![
            (0..9_u32).prop_map(|bit| Expr::Any(Facts::from_bits(1 << bit))),
            (0..27_u32).prop_map(|bit| Expr::Frame(1 << bit)),
        ];
        leaf.prop_recursive(5, 40, 4, |inner| {
            prop_oneof![
                inner.clone().prop_map(|one| Expr::Not(Box::new(one))),
                prop::collection::vec(inner.clone(), 2..4).prop_map(Expr::And),
                prop::collection::vec(inner, 2..4).prop_map(Expr::Or),
            ]
        })
    }

    #[test]
    fn operators_bind_as_usual() {
        let present = || Expr::Any(Facts::PRESENT);
        let file = || Expr::Any(Facts::FILE);
        let not_huge = || Expr::Not(Box::new(Expr::Any(Facts::HUGE)));
        assert_eq!(parse("present & file & !huge"), Expr::And(vec![present(), file(), not_huge()]));
        assert_eq!(parse("present&&file||!huge"), Expr::Or(vec![Expr::And(vec![present(), file()]), not_huge()]));
        assert_eq!(
            parse(" present & ( file | ! huge ) "),
            Expr::And(vec![present(), Expr::Or(vec![file(), not_huge()])])
        );
        assert_eq!(parse("Soft-Dirty"), Expr::Any(Facts::SOFT_DIRTY));
        assert_eq!(parse("kpf_lru"), Expr::Frame(1 << 5));
    }

    #[test]
    fn what_is_no_condition_is_pointed_at() {
        for (text, column, what) in [
            ("", 1, "ends"),
            ("present &", 10, "ends"),
            ("present file", 9, "not expected"),
            ("prsent", 1, "called `prsent`"),
            ("(present", 9, "`)` is missing"),
            ("present & ) file", 11, "where a name"),
            ("é", 1, "where a name"),
            ("kpf_nothing", 1, "called"),
        ] {
            let error = Expr::parse(text).unwrap_err();
            assert_eq!(error.column, column, "{text}: {error}");
            assert!(error.what.contains(what), "{text}: {error}");
        }
        assert!(Expr::parse(&"!".repeat(100_000)).unwrap_err().what.contains("more than"));
        assert!(Expr::parse(&format!("{}present{}", "(".repeat(60), ")".repeat(60))).is_ok());
    }

    #[test]
    fn anonymous_memory_is_neither_of_a_file_nor_a_guard() {
        let anon = parse("anon");
        assert_eq!(anon.holds(&whole(Facts::SWAPPED)), Some(true));
        for other in [Facts::NONE, Facts::PRESENT.with(Facts::FILE), Facts::SWAPPED.with(Facts::GUARD)] {
            assert_eq!(anon.holds(&whole(other)), Some(false), "{other:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let known = |told| Known { facts: Facts::PRESENT, told, frame: None };
        assert_eq!(parse("huge").holds(&known(Facts::PRESENT)), None);
        assert_eq!(parse("!huge").holds(&known(Facts::PRESENT)), None);
        assert_eq!(parse("swapped & huge").holds(&known(Facts::PRESENT.with(Facts::SWAPPED))), Some(false));
        assert_eq!(parse("present | huge").holds(&known(Facts::PRESENT)), Some(true));
        assert_eq!(parse("kpf_lru").holds(&known(Facts::PRESENT)), None);
    }

    #[test]
    fn the_kernel_is_asked_to_leave_out_what_cannot_match() {
        assert_eq!(parse("present & file & !huge").required(), (category::PRESENT | category::FILE, 0));
        assert_eq!(parse("!present & !(swapped | guard)").required(), (0, category::PRESENT));
        assert_eq!(parse("present | file").required(), (0, 0));
        assert_eq!(parse("populated & !file").required(), (0, category::FILE));
        assert!(parse("!present").takes_holes() && !parse("anon & !huge").takes_holes());
    }

    proptest! {
        #[test]
        fn any_text_has_an_answer(text: String) {
            let _ = Expr::parse(&text);
        }

        #[test]
        fn almost_a_condition_has_an_answer(text in "[()!&| a-z_-]{0,60}") {
            let _ = Expr::parse(&text);
        }

        #[test]
        fn what_is_written_is_read(expr in exprs(), facts in 0..512_u32, frame: u64) {
            let again = parse(&write(&expr));
            let known = Known { facts: Facts::from_bits(facts), told: Facts::from_bits(u32::MAX), frame: Some(frame) };
            prop_assert_eq!(expr.holds(&known), again.holds(&known));
            prop_assert!(expr.holds(&known).is_some(), "all is known");
        }

        /// An answer that is given of less stands when all is known.
        #[test]
        fn knowing_more_never_changes_an_answer(expr in exprs(), facts in 0..512_u32, told in 0..512_u32, frame: u64, see: bool) {
            let (all, told) = (Facts::from_bits(facts), Facts::from_bits(told));
            let less = Known { facts: all.and(told), told, frame: see.then_some(frame) };
            let more = Known { facts: all, told: Facts::from_bits(u32::MAX), frame: Some(frame) };
            if let Some(answer) = expr.holds(&less) {
                prop_assert_eq!(expr.holds(&more), Some(answer));
            }
        }

        /// The kernel's filter may let too much through, never too little.
        #[test]
        fn what_matches_is_not_left_out(expr in exprs(), categories in 0..512_u64, frame: u64) {
            let facts = Facts::of_categories(categories);
            let known = Known { facts, told: Facts::from_bits(u32::MAX), frame: Some(frame) };
            let (all, none) = expr.required();
            if expr.holds(&known) == Some(true) {
                // Of a place that is empty the kernel says no category, but huge.
                let said = if facts.is_empty() { categories & category::HUGE } else { categories };
                prop_assert_eq!(said & all, all);
                prop_assert_eq!(said & none, 0);
            }
        }
    }
}
