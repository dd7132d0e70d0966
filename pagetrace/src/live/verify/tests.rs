//! A command that is followed while it starts, or cannot.

use std::{ffi::OsString, process::Stdio, time::Duration};

use tokio::sync::mpsc;

use super::{
    super::workload::{RunAs, StartError, Workload},
    tracer::{self, Notice},
};

/// Follows a command from before its `execve`, and gives what came of that, its status of wait(2) as the follower tells it.
async fn followed(program: &str) -> (Result<(), StartError>, Option<i32>) {
    let mut workload = Workload::spawn_stopped(&[OsString::from(program)], &RunAs::Caller, Stdio::null()).unwrap();
    let (tell, mut notices) = mpsc::channel(100);
    let follower = tracer::follow(workload.pid(), tell).unwrap();
    let released = workload.release().await;
    let status = loop {
        match notices.recv().await.expect("the end is told") {
            Notice::Finished { status, .. } => break status,
            Notice::Point(_, done) => done.send(()).unwrap(),
            _ => {}
        }
    };
    follower.join();
    (released, status)
}

#[test]
fn why_it_cannot_run_is_known_whoever_sees_its_end_first() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..200 {
        let run = async { tokio::time::timeout(Duration::from_secs(20), followed("/no/such/program")).await.unwrap() };
        let (released, _) = runtime.block_on(run);
        let error = released.unwrap_err();
        assert_eq!(error.shell_code(), Some(127), "{error}");
    }
}

#[test]
fn the_end_of_one_that_runs_is_the_followers() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = async { tokio::time::timeout(Duration::from_secs(20), followed("false")).await.unwrap() };
    let (released, status) = runtime.block_on(run);
    released.unwrap();
    assert_eq!(status, Some(1 << 8));
}
