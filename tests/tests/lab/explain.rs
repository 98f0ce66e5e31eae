//! What `sluice explain` tells of captures, of rewritten headers, and of what would make a packet be forwarded.

use std::fs;
use std::path::{Path, PathBuf};

use etherparse::PacketBuilder;
use lb_tests::Lab;
use serde_json::Value;

fn explain(lab: &Lab, arguments: &[&str]) -> Value {
    let output = lab.sluice(&[&["explain", "-o", "json"], arguments].concat()).expect("sluice");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A TCP packet to the VIP with this port, that opens a connection.
fn opening(to: [u8; 6], port: u16) -> Vec<u8> {
    let packet =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], to).ipv4([198, 51, 100, 7], [203, 0, 113, 10], 64);
    let mut frame = Vec::new();
    packet.tcp(40_000, port, 1, 1_024).syn().write(&mut frame, &[]).expect("a frame");
    frame
}

/// A capture of these frames, captured from a link of this type.
fn pcap(lab: &Lab, name: &str, link: u32, frames: &[Vec<u8>]) -> PathBuf {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, link] {
        bytes.extend(u32::to_le_bytes(word));
    }
    for frame in frames {
        let length = u32::try_from(frame.len()).expect("length");
        for word in [1, 0, length, length] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(frame);
    }
    let path = lab.directory().join(name);
    fs::write(&path, bytes).expect("write");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("path")
}

#[test]
fn captures_are_explained_frame_by_frame_and_told_what_is_missing() {
    let lab = Lab::builder().start().expect("a lab");
    let config = lab.config().forwarding("gue").all_down("drop");
    let agent = lab.start_healthy_agent(&config).expect("an agent");
    let own = lab.edge().mac("eth0").expect("MAC");
    let frames = [opening(own, 80), opening(own, 81), opening([2, 9, 9, 9, 9, 9], 443)];
    let capture = pcap(&lab, "three.pcap", 1, &frames);
    let told = explain(&lab, &["--frame", text(&capture)]);
    let verdicts: Vec<_> = told.as_array().expect("three").iter().map(|one| one["verdict"].clone()).collect();
    assert_eq!(verdicts, ["forward", "pass.not_vip", "pass.other_host"], "{told}");

    let headers: Vec<&str> =
        told[0]["headers"].as_array().expect("headers").iter().filter_map(Value::as_str).collect();
    let begins = |start: &str| headers.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(
        (begins("Ethernet"), begins("IPv4"), begins("GUE"), begins("TCP 40000 → 80 SYN")),
        (1, 2, 1, 1),
        "{told}"
    );
    assert!(headers[1].starts_with("IPv4 10.0.1.2 → 10.0.1.1"), "the outer header: {told}");
    assert_eq!(told[0]["advice"], "");

    let advice = |at: usize| told[at]["advice"].as_str().expect("advice");
    assert!(advice(1).contains("\"203.0.113.10:81\""), "{}", advice(1));
    assert!(advice(1).contains("tcp port 80 (service web)"), "{}", advice(1));
    assert!(advice(2).contains("not 02:09:09:09:09:09"), "{}", advice(2));

    // One frame of a capture is still a list; one in hexadecimal is not.
    let one = pcap(&lab, "one.pcap", 1, &frames[..1]);
    assert_eq!(explain(&lab, &["--frame", text(&one)]).as_array().map(Vec::len), Some(1));
    let hex: String = frames[0].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(explain(&lab, &["--frame", &hex])["verdict"], "forward");
    let cooked = pcap(&lab, "cooked.pcap", 113, &frames);
    let refused = lab.sluice(&["explain", "--frame", text(&cooked)]).expect("sluice");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Ethernet"), "{refused:?}");

    // Without an agent that answers, the pinned tables tell: of all frames, and it is asked but once.
    agent.pause().expect("SIGSTOP");
    let pins = text(lab.pins());
    let arguments = ["explain", "-o", "json", "--frame", text(&capture), "--pin-dir", pins];
    let output = agent.sluice(&arguments).expect("sluice");
    agent.resume().expect("SIGCONT");
    let notes = String::from_utf8_lossy(&output.stderr);
    assert_eq!((notes.matches("kill -CONT").count(), notes.matches("read from").count()), (1, 1), "{notes}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).expect("JSON"), told);

    for web in lab.webs() {
        web.stop_nginx().expect("stop");
    }
    agent.wait_for_status("web", "down", 4 * Lab::FAILOVER).expect("down");
    agent.kill9().expect("kill -9");
    let dropped = explain(&lab, &["--frame", &hex, "--pin-dir", pins]);
    assert_eq!(dropped["verdict"], "drop.no_backend", "{dropped}");
    let advice = dropped["advice"].as_str().expect("advice");
    assert!(advice.contains("web1 is unhealthy, web2 is unhealthy"), "{advice}");
}
