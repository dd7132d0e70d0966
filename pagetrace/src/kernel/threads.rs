//! How many tasks this machine has, and so how many there should be room for. Must not size anything itself.

use std::fs;

/// Room where the machine does not say how many tasks it has.
const UNKNOWN: u32 = 16384;
/// Never less: a machine at rest may start a build the next moment.
pub const LEAST: u32 = 4096;
/// More than this has to be asked for: an entry takes about two kilobytes, all of it set aside at the start.
const MOST: u32 = 262_144;

/// Room for the tasks of this machine: for twice those that exist, and [`LEAST`] besides.
pub fn room() -> u32 {
    fs::read_to_string("/proc/loadavg").ok().and_then(|text| existing(&text)).map_or(UNKNOWN, room_for)
}

/// The tasks that exist: behind the slash in `/proc/loadavg` (fs/proc/loadavg.c, `nr_threads`).
fn existing(loadavg: &str) -> Option<u32> {
    loadavg.split_ascii_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

fn room_for(tasks: u32) -> u32 {
    tasks.saturating_mul(2).saturating_add(LEAST).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tasks_stand_behind_the_slash() {
        assert_eq!(existing("0.20 0.18 0.12 1/80 11206\n"), Some(80));
        for odd in ["", "0.20 0.18 0.12", "0.20 0.18 0.12 180 11206", "0.20 0.18 0.12 1/x 11206"] {
            assert_eq!(existing(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn the_room_grows_with_the_machine_and_ends_somewhere() {
        assert_eq!(room_for(0), LEAST);
        assert_eq!(room_for(1000), 2 * 1000 + LEAST);
        assert_eq!(room_for(u32::MAX), MOST);
    }
}
