//! What a person's Ctrl-C ends: the machines go with this process, and what they needed on the disk has to go as well.

use std::{fs, path::PathBuf, thread};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::note;

/// From now on SIGINT, SIGTERM and SIGHUP end this process as they would by themselves, but remove `scratch` before.
///
/// # Errors
/// When signals cannot be caught.
pub(super) fn removes(scratch: Option<PathBuf>) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot wait for signals")?;
    let catch = |kind| {
        let _entered = runtime.enter();
        signal(kind).context("cannot catch signals")
    };
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [mut interrupt, mut terminate, mut hangup] = [catch(kinds[0])?, catch(kinds[1])?, catch(kinds[2])?];
    thread::spawn(move || {
        let number = runtime.block_on(async {
            let came = |signal: Option<()>, kind: SignalKind| signal.map_or(0, |()| kind.as_raw_value());
            tokio::select! {
                it = interrupt.recv() => came(it, kinds[0]),
                it = terminate.recv() => came(it, kinds[1]),
                it = hangup.recv() => came(it, kinds[2]),
            }
        });
        if let Some(scratch) = scratch {
            let _ = fs::remove_dir_all(scratch);
        }
        note("stopped by a signal; the guests are gone");
        std::process::exit(128 + number);
    });
    Ok(())
}
