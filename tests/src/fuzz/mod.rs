//! A loop that damages sound inputs and reads them: no input may make a reader panic, or take a damaged recording for a
//! whole one, and what is read fast must be what is read slowly. Every case is told by its number, so that it can be repeated alone.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod btf;
mod maps;
mod mutate;
mod pagemap;
mod recording;

use std::{env, process::ExitCode, time::Instant};

use self::mutate::Dice;

/// A reader to be fed.
trait Target {
    /// Reads the damaged input of this case; panics, or says what is wrong.
    fn case(&self, dice: &mut Dice) -> Result<(), String>;
}

/// The program: `pagetrace-fuzz recording|btf|pagemap|maps CASES [FIRST]`.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let parsed = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [name, cases] => cases.parse().ok().map(|cases| (*name, cases, 0)),
        [name, cases, first] => cases.parse().ok().zip(first.parse().ok()).map(|(cases, first)| (*name, cases, first)),
        _ => None,
    };
    let Some((target, cases, first)) = parsed.and_then(|(name, cases, first)| Some((target(name)?, cases, first)))
    else {
        eprintln!("usage: pagetrace-fuzz recording|btf|pagemap|maps CASES [FIRST]");
        return ExitCode::from(2);
    };
    let since = Instant::now();
    match run(&*target, first, cases) {
        Ok(()) => {
            println!("{cases} cases, all sound, in {:.1} s", since.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn target(name: &str) -> Option<Box<dyn Target>> {
    match name {
        "recording" => Some(Box::new(recording::Recording)),
        "btf" => Some(Box::new(btf::Blob::new())),
        "pagemap" => Some(Box::new(pagemap::Entries)),
        "maps" => Some(Box::new(maps::Texts)),
        _ => None,
    }
}

fn run(target: &dyn Target, first: u64, cases: u64) -> Result<(), String> {
    (first..first.saturating_add(cases)).try_for_each(|case| {
        let work = std::panic::AssertUnwindSafe(|| target.case(&mut Dice::new(case)));
        match std::panic::catch_unwind(work) {
            Ok(done) => done.map_err(|why| format!("case {case}: {why}")),
            Err(_) => Err(format!("case {case}: a panic")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_thousand_cases_of_each() {
        for (name, cases) in [("recording", 3_000), ("btf", 5_000), ("pagemap", 10_000), ("maps", 5_000)] {
            assert_eq!(run(&*target(name).expect("it exists"), 0, cases), Ok(()), "{name}");
        }
    }
}
