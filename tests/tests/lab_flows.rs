//! What `sluice flows` counts is what customers have open, with and without an agent.

use lb_tests::{HttpConnection, Lab};
use serde_json::Value;

fn flows(lab: &Lab, arguments: &[&str]) -> Value {
    let pins = lab.pins().to_str().expect("path");
    let output =
        lab.sluice(&[&["flows", "-o", "json", "--pin-dir", pins], arguments].concat()).expect("sluice");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn open_connections_are_counted_by_backend_state_and_idleness() {
    let lab = Lab::builder().start().expect("a lab");
    let agent = lab.start_healthy_agent(&lab.config()).expect("an agent");
    let open = || {
        let mut connection = HttpConnection::open(lab.customer(), lab.vip(80), None).expect("connect");
        let server = connection.get("/").expect("answer").served_by().to_owned();
        (connection, server)
    };
    let connections: Vec<_> = (0..40).map(|_| open()).collect();
    let (mut closed, _) = open();
    let on = |name: &str| connections.iter().filter(|(_, server)| server == name).count() as u64;
    assert!(closed.get("/").is_ok());
    drop(closed);

    let check = |when: &str| {
        let report = flows(&lab, &["--service", "web"]);
        for line in report["lines"].as_array().expect("lines") {
            let backend = line["backend"].as_str().expect("backend");
            assert_eq!(line["service"], "web", "{when}: {report}");
            assert_eq!(line["established"], on(backend), "{when}: {report}");
        }
        assert_eq!(report["lines"].as_array().map(Vec::len), Some(2), "{when}: {report}");
        assert!(report["entries"].as_u64() >= Some(40), "{when}: {report}");
        assert_eq!(report["size"], 65_536, "{when}: {report}");
        assert!(report["unknown"].as_str().is_some_and(|text| text.contains("clients")), "{when}: {report}");
        let by_state = flows(&lab, &["--by", "state", "--state", "established"]);
        assert_eq!(by_state["lines"][0]["flows"], 40, "{when}: {by_state}");
        assert_eq!(by_state["lines"][0]["of"], "established", "{when}: {by_state}");
        assert_eq!(flows(&lab, &["--idle", "60m"])["flows"], 0, "{when}");
    };
    check("with an agent");
    for name in ["web1", "web2"] {
        assert_eq!(agent.backend("web", name).expect("backend")["active_flows"], on(name), "as status says");
    }
    agent.kill9().expect("kill -9");
    check("without an agent");
    let nothing = lab.sluice(&["flows", "--pin-dir", "/sys/fs/bpf/sluice-none"]).expect("sluice");
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing is loaded there"), "{nothing:?}");
}
