//! What a packet means and where it goes: frames and tables in, verdicts and rewritten frames out.
//!
//! Everything here runs unchanged in the kernel (through `lb-ebpf`) and in userspace (tests, `sluice explain`):
//! no I/O, no clock, no global state, no allocation.

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch, core_intrinsics))]
#![cfg_attr(target_arch = "bpf", allow(internal_features, reason = "atomics have no other way to BPF"))]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod checksum;
pub mod datapath;
pub mod decap;
pub mod flow;
pub mod hash;
pub mod net;
pub mod slice;
pub mod translations;
pub mod verdict;
