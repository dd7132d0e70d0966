//! Commands held back, released, killed and failed; users; targets in a made-up `/proc`.

use std::{ffi::OsString, fs, path::Path, process::Stdio, time::Duration};

use super::{
    Ended, RunAs, StartError, Workload,
    targets::{Selection, Stat, TargetError, Targets},
    user::{Sudo, User, UserError},
};

fn argv(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn start(words: &[&str]) -> Workload {
    Workload::spawn_stopped(&argv(words), &RunAs::Caller, Stdio::inherit()).unwrap()
}

/// Runs with a limit, so that a hang is a failure.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.unwrap() })
}

#[test]
fn nothing_executes_before_release() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ran");
    let mut workload = start(&["sh", "-c", &format!("echo $$ > {}", file.display())]);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!file.exists());
    assert!(workload.try_wait().unwrap().is_none());
    assert!(matches!(workload.state(Path::new("/proc")), Some('S' | 'R')));
    let ended = run(async {
        workload.release().await.unwrap();
        workload.release().await.unwrap();
        workload.wait().await.unwrap()
    });
    assert_eq!(ended, Ended::Exited(0));
    assert_eq!(fs::read_to_string(file).unwrap().trim(), workload.pid().to_string(), "exec keeps the id");
    assert_eq!(workload.state(Path::new("/proc")), None);
}

#[test]
fn codes_and_signals_are_told_apart() {
    run(async {
        let mut workload = start(&["sh", "-c", "exit 7"]);
        workload.release().await.unwrap();
        assert_eq!(workload.wait().await.unwrap(), Ended::Exited(7));
        assert_eq!(workload.wait().await.unwrap(), Ended::Exited(7), "asked again");

        let mut workload = start(&["sleep", "100"]);
        workload.release().await.unwrap();
        let limit = tokio::time::timeout(Duration::from_millis(30), workload.wait()).await;
        assert!(limit.is_err(), "a wait may be given up and begun anew");
        workload.kill().unwrap();
        let ended = workload.wait().await.unwrap();
        assert_eq!((ended, ended.code()), (Ended::Signalled(9), Some(137)));
        workload.kill().unwrap();
    });
}

#[test]
fn a_command_that_cannot_run_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "text").unwrap();
    run(async {
        let mut workload = start(&["no-such-command-here"]);
        let error = workload.release().await.unwrap_err();
        assert!(matches!(&error, StartError::Exec { source, .. } if source.raw_os_error() == Some(libc::ENOENT)));
        assert_eq!(error.shell_code(), Some(127));
        assert!(error.to_string().contains("no-such-command-here"), "{error}");
        assert_eq!(workload.wait().await.unwrap(), Ended::Unknown);

        let error = start(&[plain.to_str().unwrap()]).release().await.unwrap_err();
        assert_eq!(error.shell_code(), Some(126));
        assert!(error.to_string().contains("not executable"), "{error}");
    });
    assert!(matches!(Workload::spawn_stopped(&[], &RunAs::Caller, Stdio::inherit()), Err(StartError::Empty)));
}

#[test]
fn a_dropped_workload_never_executes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ran");
    let workload = start(&["touch", file.to_str().unwrap()]);
    let stat = format!("/proc/{}/stat", workload.pid());
    drop(workload);
    let gone = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        !Path::new(&stat).exists()
    });
    assert!(gone, "it ends and is waited for");
    assert!(!file.exists());
}

#[test]
fn killed_at_the_gate_is_killed() {
    let mut workload = start(&["true"]);
    workload.kill().unwrap();
    let ended = run(async {
        let _ = workload.release().await;
        workload.wait().await.unwrap()
    });
    assert_eq!(ended, Ended::Signalled(9));
}

#[test]
fn the_command_becomes_the_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("who");
    fs::write(&file, "").unwrap();
    std::os::unix::fs::chown(&file, Some(12_345), None).unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let user =
        User { name: "guest".into(), uid: 12_345, gid: 12_346, groups: vec![12_346, 12_347], home: "/nowhere".into() };
    let script = format!("(id -u; id -g; id -G; echo $HOME $USER $LOGNAME) > {}", file.display());
    let mut workload =
        Workload::spawn_stopped(&argv(&["sh", "-c", &script]), &RunAs::User(user), Stdio::inherit()).unwrap();
    run(async {
        workload.release().await.unwrap();
        assert_eq!(workload.wait().await.unwrap(), Ended::Exited(0));
    });
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), ["12345", "12346", "12346 12347", "/nowhere guest guest"]);
}

#[test]
fn sudo_names_its_caller() {
    let env = |uid: Option<&str>, gid: Option<&str>| {
        let (uid, gid) = (uid.map(OsString::from), gid.map(OsString::from));
        Sudo::parse(move |name| if name == "SUDO_UID" { uid.clone() } else { gid.clone() })
    };
    assert_eq!(env(None, None).unwrap(), None);
    assert_eq!(env(Some("1000"), Some("100")).unwrap(), Some(Sudo { uid: 1000, gid: 100 }));
    assert_eq!(env(Some("0"), Some("0")).unwrap(), None, "root through sudo stays root");
    for (uid, gid) in
        [(Some("x"), Some("1")), (Some("1"), None), (Some("4294967295"), Some("1")), (Some("-1"), Some("1"))]
    {
        assert!(matches!(env(uid, gid), Err(UserError::Variable { .. })));
    }
}

fn process(proc: &Path, pid: u32, ppid: u32, comm: &str) {
    let task = proc.join(format!("{pid}/task/{pid}"));
    fs::create_dir_all(&task).unwrap();
    fs::write(proc.join(format!("{pid}/stat")), format!("{pid} ({comm}) S {ppid} 1 1 0\n")).unwrap();
    fs::write(proc.join(format!("{pid}/status")), format!("Name:\t{comm}\nTgid:\t{pid}\n")).unwrap();
    fs::write(task.join("comm"), format!("{comm}\n")).unwrap();
}

#[test]
fn targets_include_descendants() {
    let proc = tempfile::tempdir().unwrap();
    let proc = proc.path();
    for (pid, ppid, comm) in
        [(1, 0, "init"), (10, 1, "db) S 7"), (11, 10, "worker"), (12, 11, "worker"), (20, 1, "other")]
    {
        process(proc, pid, ppid, comm);
    }
    fs::create_dir_all(proc.join("13")).unwrap();
    fs::write(proc.join("13/status"), "Tgid:\t10\n").unwrap();
    fs::write(proc.join("uptime"), "1").unwrap();

    let resolve = |selection: Selection| Targets::resolve(&selection, proc);
    let targets = resolve(Selection { pids: vec![10], ..Selection::default() }).unwrap();
    assert_eq!(targets.tgids.into_iter().collect::<Vec<_>>(), [10, 11, 12]);
    let error = resolve(Selection { pids: vec![13], ..Selection::default() }).unwrap_err();
    assert!(error.to_string().contains("-p 10"), "{error}");
    assert!(matches!(resolve(Selection { pids: vec![99], ..Selection::default() }), Err(TargetError::NoProcess(99))));
    assert!(matches!(resolve(Selection { tids: vec![99], ..Selection::default() }), Err(TargetError::NoThread(99))));
    let threads = resolve(Selection { tids: vec![13], ..Selection::default() }).unwrap();
    assert_eq!(threads.tids.into_iter().collect::<Vec<_>>(), [13]);
    let named = resolve(Selection { comms: vec!["worker".to_owned()], ..Selection::default() }).unwrap();
    assert_eq!(named.comm_tids.into_iter().collect::<Vec<_>>(), [11, 12]);
    assert_eq!(&named.comms[0][..7], b"worker\0");
    assert!(resolve(Selection::default()).unwrap().whole_machine());
}

#[test]
fn long_names_are_cut_as_the_kernel_cuts_them() {
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 5, 1, "a-name-of-fifte");
    let selection = Selection { comms: vec!["a-name-of-fifteen-and-more".to_owned()], ..Selection::default() };
    let targets = Targets::resolve(&selection, proc.path()).unwrap();
    assert_eq!(&targets.comms[0], b"a-name-of-fifte\0");
    assert!(targets.comm_tids.contains(&5));
}

#[test]
fn names_with_parentheses_do_not_confuse() {
    let stat = Stat::parse(b"7 (a) b (c) R 3 7 7").unwrap();
    assert_eq!((stat.comm.as_slice(), stat.state, stat.ppid), (&b"a) b (c"[..], 'R', 3));
    assert_eq!(Stat::parse(b""), None);
    assert_eq!(Stat::parse(b"7 )x( R 3"), None);
}

#[test]
fn users_and_groups_are_read_from_their_tables() {
    use super::user::{group_memberships, passwd_entry};
    let passwd =
        b"root:x:0:0:root:/root:/bin/sh\nbroken line\n:x:7:7::/:\nann:x:1000:1000:Ann,,,:/home/ann:/bin/bash\n";
    assert_eq!(passwd_entry(passwd, 1000), Some(("ann".into(), "/home/ann".into())));
    assert_eq!(passwd_entry(passwd, 7), None, "no name");
    assert_eq!(passwd_entry(passwd, 12), None);
    let group = b"adm:x:4:syslog,ann\nannex:x:5:anna\nempty:x:6:\nbad\nkvm:x:104:ann\n";
    assert_eq!(group_memberships(group, "ann".as_ref()), [4, 104]);
}
