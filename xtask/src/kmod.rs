//! The kernel module among the fixtures, built for a test kernel.

use std::path::PathBuf;

use anyhow::Result;

/// Builds the fixture module for a kernel series; `None` where it cannot be built for that series.
#[expect(clippy::unnecessary_wraps, reason = "building can fail once there is something to build")]
pub(crate) fn build(_series: &str) -> Result<Option<PathBuf>> {
    Ok(None)
}
