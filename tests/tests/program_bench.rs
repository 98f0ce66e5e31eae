//! The bench's programs and cases at their smallest: that they load, and that packets become what the bench says they do. How
//! long that takes does not matter here.

#[path = "../benches/measure/object.rs"]
#[allow(dead_code, reason = "the bench uses the rest")]
mod object;
#[path = "../benches/measure/packet.rs"]
#[allow(dead_code, reason = "the bench uses the rest")]
mod packet;
#[path = "../benches/measure/samples.rs"]
#[allow(dead_code, reason = "the bench uses the rest")]
mod samples;
mod support;
#[path = "../../lb-userspace/build/toolchain.rs"]
#[allow(dead_code, reason = "set-up uses the rest")]
mod toolchain;
#[path = "../benches/measure/world.rs"]
#[allow(dead_code, reason = "the bench uses the rest")]
mod world;

use std::path::Path;

use samples::Group;

/// Builds the object where the bench finds it.
fn build() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace");
    let toolchain = toolchain::Toolchain::find(&root.join("target/tools")).expect("a toolchain");
    let mut command = toolchain.build_command(&root.join("lb-ebpf"), &root.join("target/ebpf"));
    let output = command.args(["--features", "bench", "--bin", "bench"]).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_case_of_packets_is_what_it_says() {
    build();
    let mut groups: Vec<Group> = Vec::new();
    packet::run(&packet::SMOKE, &mut |group| groups.push(group)).expect("all cases");
    for way in world::Way::all() {
        for case in [
            "hit, 1 flow",
            "hit, 9 KB frame",
            "later fragment",
            "hit, 64 K flows",
            "SYN flood, table for 64 K",
            "new flow, table for 64 K",
        ] {
            let name = format!("{} {case}", way.name());
            let group =
                groups.iter().find(|group| group.name == name).unwrap_or_else(|| panic!("no case {name}"));
            let measured = ["empty", "sluice"].map(|who| group.series[who].len());
            assert_eq!(measured, [1, 1], "{name}");
            assert_eq!(group.series.contains_key("head growth"), way.growth() > 0, "{name}");
        }
    }
    let all = groups.iter().flat_map(|group| group.series.values().flatten());
    assert!(all.clone().count() > 100 && all.copied().all(|sample| sample > 0.0), "{groups:?}");
}
