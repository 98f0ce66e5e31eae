//! What the programs share: the XDP context as a packet, and what every program needs to be loaded.
//!
//! Each program is a binary with maps of its own, for whoever loads an object makes all maps in it.

#![no_std]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "whether the compiler knows a value can be asked in no other way")]

pub mod own_packet;
pub mod packet;
pub mod table;

/// Loops, so that the verifier rejects a program from which a panic can be reached.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel asks for: GPL-only helpers are open to it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
