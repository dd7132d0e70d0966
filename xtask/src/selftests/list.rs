//! Which of the kernel's tests run, and with which arguments, as data; and how the ends of a test are called. Pure.

/// Tests that want arguments, as tools/testing/selftests/mm/run_vmtests.sh gives them, shorter where that takes minutes.
const ARGUMENTS: &[(&str, &str)] =
    &[("gup_test", "-u"), ("ksm_tests", "-M -p 10"), ("transhuge-stress", "-d 5"), ("uffd-stress", "anon 20 4")];

/// What was built and is not run, and why.
pub(super) const LEFT_OUT: &[(&str, &str)] = &[
    ("hugetlb-read-hwpoison", "it makes the kernel believe that memory is broken"),
    ("hugetlb-soft-offline", "it makes the kernel believe that memory is broken"),
    ("on-fault-limit", "it wants to be a plain user"),
    ("write_to_hugetlbfs", "it is a part of a script"),
];

/// The words that run a test; `None` for one that is left out.
pub(super) fn words(name: &str) -> Option<String> {
    if LEFT_OUT.iter().any(|(of, _)| *of == name) {
        return None;
    }
    let arguments = ARGUMENTS.iter().find(|(of, _)| *of == name).map(|(_, arguments)| *arguments);
    Some(arguments.map_or_else(|| name.to_owned(), |arguments| format!("{name} {arguments}")))
}

/// A test's own result by its exit code, as kselftest has it; a test that is killed for its time ends with 137.
pub(super) fn result(code: i64) -> String {
    match code {
        0 => "pass".into(),
        4 => "skip".into(),
        137 => "not finished in time".into(),
        code => format!("fail ({code})"),
    }
}

/// The targets that make says it could not build.
pub(super) fn not_built(output: &str) -> Vec<String> {
    let failed = |line: &str| {
        let rest = line.split_once("*** [")?.1;
        let target = rest.split_once("] Error")?.0;
        Some(target.rsplit(['/', ' ']).next()?.to_owned())
    };
    let mut names: Vec<String> = output.lines().filter_map(failed).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_results() {
        assert_eq!(words("cow").as_deref(), Some("cow"));
        assert_eq!(words("gup_test").as_deref(), Some("gup_test -u"));
        assert_eq!(words("on-fault-limit"), None);
        assert_eq!((result(0).as_str(), result(4).as_str(), result(1).as_str()), ("pass", "skip", "fail (1)"));
    }

    #[test]
    fn make_tells_what_it_could_not_build() {
        let output = "khugepaged.c:1: error: no\nmake: *** [../lib.mk:222: /c/bin/khugepaged] Error 1\nmake: Target 'all' not remade\n";
        assert_eq!(not_built(output), ["khugepaged"]);
    }
}
