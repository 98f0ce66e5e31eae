//! A datapath of a few services, loaded into the kernel or laid out in memory.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod dice;
pub mod frames;
pub mod nat_frames;
pub mod packets;
pub mod parity;
pub mod random_frames;
pub mod random_tables;
pub mod services;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use lb_common::abi::{Forwarding, NextHop};
use lb_common::net::{Address, Protocol};
use lb_userspace::core::image::{Capacity, VipKey, Wanted, WantedBackend, WantedService};
use lb_userspace::core::plan::{self, RingCache};
use lb_userspace::io::datapath::{Datapath, Kernel, PinDir, capacity_for};

use frames::wire::FAMILIES;

/// A pin directory of its own, removed with everything in it.
pub struct Pins(pub PinDir);

impl Pins {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sluice-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let pins = PinDir::new(PathBuf::from("/sys/fs/bpf").join(name));
        pins.create().expect("program tests need root and bpffs");
        Self(pins)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.0.remove_all().ok();
    }
}

pub const SEED: u64 = 7;

pub fn capacity() -> Capacity {
    capacity_for(64, 128, 256, 4_096, 1_024)
}

pub fn vip(address: &str, port: u16, protocol: Protocol) -> VipKey {
    VipKey { address: address.parse::<IpAddr>().unwrap().into(), port, protocol }
}

pub fn hop(last: u8) -> NextHop {
    NextHop::new([2, 0, 0, 0, 1, last], [2, 0, 0, 0, 0, 1], 0)
}

pub fn backend(name: &str, last: u8) -> WantedBackend {
    WantedBackend {
        name: name.into(),
        address: Address::v4([10, 0, 1, last]),
        enabled: true,
        healthy: true,
        probed_healthy: true,
        ring_weight: 100,
        port: 0,
        hop: Some(hop(last)),
    }
}

pub fn service(name: &str, vips: Vec<VipKey>, backends: Vec<WantedBackend>) -> WantedService {
    WantedService { name: name.into(), forwarding: Forwarding::L2Dsr, client_affinity: false, vips, backends }
}

/// web: two VIPs of TCP 80, two backends. dns: UDP 53. all: every TCP port of an address. dark: no backend.
/// lost: a backend without a next hop. Each has a VIP of either family; the rest are [`services`].
pub fn wanted() -> Wanted {
    let mut unresolved = backend("lost1", 9);
    unresolved.hop = None;
    let both = |number: u8, port, protocol| {
        FAMILIES.map(|family| VipKey { address: family.vip(number).into(), port, protocol }).to_vec()
    };
    let web = [both(10, 80, Protocol::TCP), both(11, 80, Protocol::TCP)].concat();
    let plain = vec![
        service("web", web, vec![backend("web1", 1), backend("web2", 2)]),
        service("dns", both(10, 53, Protocol::UDP), vec![backend("dns1", 3), backend("dns2", 4)]),
        service("all", both(20, 0, Protocol::TCP), vec![backend("all1", 5)]),
        service("dark", both(30, 80, Protocol::TCP), vec![]),
        service("lost", both(40, 80, Protocol::TCP), vec![unresolved]),
    ];
    Wanted { ring_seed: SEED, services: [plain, services::services()].concat(), ..Wanted::default() }
}

/// Brings a datapath to what is wanted.
pub fn apply(datapath: &mut impl Datapath, wanted: &Wanted) {
    let plan = plan::plan(&datapath.tables().image(), wanted, &mut RingCache::default()).unwrap();
    for action in &plan.actions {
        datapath.apply(action).unwrap();
    }
}

/// The program in the kernel, with these services.
pub fn kernel(pins: &Pins, wanted: &Wanted) -> Kernel {
    let (mut kernel, adopted) = Kernel::load(&pins.0, capacity(), false).unwrap();
    assert!(!adopted);
    kernel.set_ring_seed(wanted.ring_seed);
    apply(&mut kernel, wanted);
    kernel
}
