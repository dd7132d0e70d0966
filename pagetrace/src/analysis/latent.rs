//! Tells which user access a stack belongs to, whether it was seen at its entry or when it faulted.
//!
//! One access passes through several functions that each could be told (`_copy_from_iter`, then the assembly loop),
//! and it may fault in the innermost. What all of these have in common is the caller.

use super::Stacks;

/// Frames between two functions of one access: local helpers of the iterators.
const GAP: usize = 2;

/// The stack from the caller of the access on; `None` when no function of it is one that accesses user memory.
pub(super) fn caller<'a>(stack: &'a [u64], stacks: &dyn Stacks) -> Option<&'a [u64]> {
    let first = stack.iter().position(|address| stacks.is_user_access(*address))?;
    let mut outermost = first;
    for (index, address) in stack.iter().enumerate().skip(first) {
        if index > outermost + GAP + 1 {
            break;
        }
        if stacks.is_user_access(*address) {
            outermost = index;
        }
    }
    stack.get(outermost + 1..)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;

    impl Stacks for Fake {
        fn stack(&self, _id: i32) -> Option<Vec<u64>> {
            None
        }
        fn is_fault_entry(&self, _address: u64) -> bool {
            false
        }
        fn is_user_access(&self, address: u64) -> bool {
            address >= 0x100
        }
        fn function(&self, address: u64) -> Option<u64> {
            Some(address)
        }
    }

    #[test]
    fn the_caller_of_the_outermost_function_counts() {
        for stack in
            [&[0x100, 1, 2, 3][..], &[0x100, 0x101, 1, 2, 3], &[0x100, 9, 8, 0x101, 1, 2, 3], &[7, 6, 0x100, 1, 2, 3]]
        {
            assert_eq!(caller(stack, &Fake), Some(&[1, 2, 3][..]), "{stack:x?}");
        }
        assert_eq!(caller(&[0x100], &Fake), Some(&[][..]));
        assert_eq!(caller(&[1, 2], &Fake), None);
    }

    #[test]
    fn another_access_further_out_is_another_access() {
        assert_eq!(caller(&[0x100, 1, 2, 3, 0x101, 4], &Fake), Some(&[1, 2, 3, 0x101, 4][..]));
    }
}
