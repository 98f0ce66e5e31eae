use std::collections::BTreeMap;

use super::*;
use crate::core::image::{LoadedBackend, LoadedService};

fn names() -> Image {
    let service = |name: &str| LoadedService { name: name.into(), ring: None };
    let backend = LoadedBackend::well;
    Image {
        services: BTreeMap::from([(0, service("web")), (1, service("web-tls"))]),
        backends: BTreeMap::from([(5, backend("web1", 0)), (6, backend("web2", 0)), (7, backend("web1", 1))]),
        ..Image::default()
    }
}

fn request() -> CaptureRequest {
    CaptureRequest::default()
}

fn ids(request: &CaptureRequest) -> (bool, u32, Vec<u16>) {
    let WantedIds { by_backend, service, backends } = request.ids(&names());
    (by_backend, service, backends.into_iter().collect())
}

#[test]
fn names_become_the_ids_that_are_looked_for() {
    let some = |name: &str| Some(name.to_owned());
    assert_eq!(ids(&request()), (false, NO_SERVICE, vec![]));
    assert_eq!(ids(&CaptureRequest { service: some("web"), ..request() }), (true, 0, vec![5, 6]));
    assert_eq!(ids(&CaptureRequest { backend: some("web1"), ..request() }), (true, NO_SERVICE, vec![5, 7]));
    let both = CaptureRequest { service: some("web-tls"), backend: some("web1"), ..request() };
    assert_eq!(ids(&both), (true, NO_SERVICE, vec![7]), "not what goes to no backend");
}

#[test]
fn verdicts_go_by_name_or_kind() {
    let bits = |names: &[&str]| verdicts(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(bits(&[]), Ok(u64::MAX));
    assert_eq!(bits(&["forward"]), Ok(1 << Verdict::Forward.index()), "not forward.return");
    let drops = bits(&["drop"]).unwrap();
    assert!(Verdict::ALL.iter().all(|verdict| (drops >> verdict.index() & 1 != 0) == verdict.is_dropped()));
    assert_eq!(bits(&["drop", "forward"]), Ok(drops | 1));
    assert!(bits(&["drop.weather"]).unwrap_err().contains("drop.weather"));
}

#[test]
fn every_error_is_told() {
    let wrong = CaptureRequest {
        service: Some("nothing".into()),
        backend: Some("nobody".into()),
        address: Some("10.0.0.1/8".into()),
        port: Some(0),
        verdicts: vec!["weather".into()],
        snap: 0,
        sample: 0,
        count: 0,
        seconds: 0,
    };
    let errors = wrong.wanted(&names()).unwrap_err();
    let expected = ["service", "backend", "address", "verdict", "snap", "sample", "seconds", "port"];
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    for (error, name) in errors.iter().zip(expected) {
        assert!(error.starts_with(&format!("{name}: ")), "{error}");
    }
    let all = request().wanted(&names()).unwrap();
    assert_eq!((all.network.mask, all.port, all.verdicts), ([0; 4], 0, u64::MAX));
}

/// A record as the programs write it.
fn record(fields: [u32; 12], body: &[u8]) -> Vec<u8> {
    let words = fields.iter().flat_map(|word| word.to_ne_bytes());
    1_000_u64.to_ne_bytes().into_iter().chain(words).chain(body.iter().copied()).collect()
}

#[test]
fn a_record_becomes_a_packet_with_its_story() {
    // Verdict, action, in, out, service, backend, lengths before and after, bytes of each, new flow, padding.
    let forward = record([0, 3, 2, 2, 0, 6, 60, 80, 2, 3, 1, 0], &[0xab, 1, 2, 3, 4]);
    let read = |bytes: &[u8]| CapturedPacket::read(bytes, 7, 500, &names(), |index| format!("eth{index}"));
    let packet = read(&forward).unwrap();
    assert_eq!((packet.time_ns, packet.egress.as_deref()), (1_500, Some("eth2")));
    assert_eq!(packet.before, CapturedBytes { length: 60, hex: "ab01".into() });
    let after = packet.after.clone().unwrap();
    assert_eq!((after.length, after.bytes().unwrap()), (80, vec![2, 3, 4]));
    assert_eq!(
        packet.comment(),
        "#7 forward: sent to a backend; service web; backend web2 (10.0.1.11); new flow"
    );
    // An answer is known by its backend alone; one that is gone, by its id.
    let verdict = Verdict::ForwardReturn as u32;
    let answer = record([verdict, 3, 2, 2, NO_SERVICE, 7, 60, 60, 0, 0, 0, 0], &[]);
    assert_eq!(read(&answer).unwrap().service.as_deref(), Some("web-tls"));
    let gone = record([0, 3, 2, 2, 9, 99, 60, 60, 0, 0, 0, 0], &[]);
    assert!(read(&gone).unwrap().comment().ends_with("; service #9; backend #99"));
    let dropped = record([Verdict::DropNoBackend as u32, 1, 2, 2, 0, 0, 60, 0, 1, 0, 0, 0], &[1]);
    let dropped = read(&dropped).unwrap();
    assert_eq!((dropped.after, dropped.egress, dropped.backend), (None, None, None));
    // What is cut short is none.
    assert!((0..forward.len()).all(|length| read(&forward[..length]).is_none()));
}
