//! A table of the agent's → an address that the program knows from the beginning, so that a record is found by counting.
//!
//! A look-up in an array, even one that the kernel writes out, is fourteen instructions, and in a packet's few hundred there are five.
//! The address of an array's only value can be in the program itself (`BPF_PSEUDO_MAP_VALUE`); so the table is one value. Whoever
//! loads the object puts address and size into the instructions that are left for them.

use core::arch::asm;
use core::hint::assert_unchecked;
use core::marker::PhantomData;

use lb_common::abi::direct;

/// The table with this place in [`direct::ALL`].
pub struct Table<T, const NUMBER: u64>(PhantomData<T>);

impl<T, const NUMBER: u64> Table<T, NUMBER> {
    /// The table, of records of exactly this type.
    #[expect(clippy::new_without_default, reason = "it is made in a constant")]
    pub const fn new() -> Self {
        Self(PhantomData)
    }

    /// The first record, which every table has.
    #[inline(always)]
    pub fn first(&self) -> &T {
        let address: *const T;
        // SAFETY: the loader makes this the address of a table of at least one record, which is not null.
        unsafe {
            asm!("{0} = {1} ll", out(reg) address, const direct::ADDRESS | NUMBER, options(nomem, nostack));
            assert_unchecked(!address.is_null());
            &*address
        }
    }

    /// How many records there are.
    #[inline(always)]
    fn records(&self) -> u64 {
        let records: u64;
        // SAFETY: the loader makes it the number of records.
        unsafe {
            asm!("{0} = {1} ll", out(reg) records, const direct::RECORDS | NUMBER, options(nomem, nostack));
        }
        records
    }

    /// The record that a hash is reduced to ([`lb_common::hash::reduce`]), and its index. The verifier follows: of a number below 2³² times that of
    /// records, the upper half is below the latter.
    #[inline(always)]
    pub fn reduced(&self, hash: u64) -> (u32, &T) {
        let mut index = hash >> 32;
        // SAFETY: the instructions work on the numbers alone. Multiplied the other way round, the verifier of Linux 6.1 would know nothing of the
        // product; and of the shift and the one for a record's size the compiler would make one, and a mask of 64 bits.
        unsafe {
            asm!("{0} *= {1}", "{0} >>= 32", inout(reg) index, in(reg) self.records(), options(pure, nomem, nostack));
        }
        // SAFETY: there are more.
        (index as u32, unsafe { &*core::ptr::from_ref(self.first()).add(index as usize) })
    }

    /// The record with this index.
    #[inline(always)]
    pub fn get(&self, index: u32) -> Option<&T> {
        let mut index = u64::from(index);
        let records = self.records();
        // SAFETY: nothing is added: the compiler is to forget where else it has the index, for the verifier of Linux 6.1 knows only of this place
        // that it was compared.
        unsafe { asm!("{0} += 0", inout(reg) index, options(nomem, nostack)) };
        if index >= records {
            return None;
        }
        // SAFETY: there are so many.
        Some(unsafe { &*core::ptr::from_ref(self.first()).add(index as usize) })
    }
}
