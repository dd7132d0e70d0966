//! Reads wire types out of bytes, field by field, without `unsafe`.

/// A value that can stand in a wire struct.
pub trait Field: Copy + Sized {
    /// Reads the value at `at`; `None` when the bytes end before it does.
    fn read(bytes: &[u8], at: usize) -> Option<Self>;
}

/// A whole record.
pub trait Wire: Sized {
    /// Bytes of the record.
    const SIZE: usize;
    /// Decodes the record at the start of `bytes`; `None` when they are too few.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

macro_rules! field_int {
    ($($ty:ty),*) => {$(
        impl Field for $ty {
            fn read(bytes: &[u8], at: usize) -> Option<Self> {
                let end = at.checked_add(size_of::<Self>())?;
                bytes.get(at..end)?.try_into().ok().map(Self::from_le_bytes)
            }
        }
    )*};
}

field_int!(u8, u32, i32, u64, i64);

impl<T: Field + Default, const N: usize> Field for [T; N] {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let mut out = [T::default(); N];
        for (i, slot) in out.iter_mut().enumerate() {
            *slot = T::read(bytes, at.checked_add(i.checked_mul(size_of::<T>())?)?)?;
        }
        Some(out)
    }
}

/// Defines a `repr(C)` struct without implicit padding and its decoder.
macro_rules! wire {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident : $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        // A hole between fields would hand kernel memory to userspace and fail the decoder.
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$ty>())*);

        impl $crate::wire::Field for $name {
            fn read(bytes: &[u8], at: usize) -> Option<Self> {
                Some(Self {
                    $($field: <$ty as $crate::wire::Field>::read(
                        bytes,
                        at.checked_add(core::mem::offset_of!($name, $field))?,
                    )?,)*
                })
            }
        }

        impl $crate::wire::Wire for $name {
            const SIZE: usize = size_of::<$name>();
            fn decode(bytes: &[u8]) -> Option<Self> {
                <Self as $crate::wire::Field>::read(bytes, 0)
            }
        }

        impl Default for $name {
            fn default() -> Self {
                // All-zero bytes are a value of every wire type.
                <Self as $crate::wire::Field>::read(&[0; size_of::<$name>()], 0)
                    .unwrap_or_else(|| unreachable!("the array has the size of the struct"))
            }
        }
    };
}

pub(crate) use wire;
