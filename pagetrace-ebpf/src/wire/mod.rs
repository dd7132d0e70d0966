//! What crosses from the kernel to userspace.
