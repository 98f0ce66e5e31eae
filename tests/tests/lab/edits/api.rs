//! The agent's API, asked without a command in between: JSON to a path → status and JSON.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use lb_tests::Lab;
use serde_json::Value;

/// Posts to the agent, which must answer.
pub fn post(lab: &Lab, path: &str, body: &Value) -> (u16, Value) {
    try_post(lab, path, body).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The same of an agent that may be gone before it answers.
pub fn try_post(lab: &Lab, path: &str, body: &Value) -> std::io::Result<(u16, Value)> {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: sluice\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    exchange(lab, &(head + &body))
}

/// Live flows of a backend.
pub fn active_flows(lab: &Lab, service: &str, backend: &str) -> u64 {
    let request = "GET /v1/status HTTP/1.1\r\nhost: sluice\r\nconnection: close\r\n\r\n";
    let (_, status) = exchange(lab, request).expect("an answer");
    let named = |list: &Value, name: &str| {
        list.as_array().and_then(|list| list.iter().find(|item| item["name"] == name)).cloned()
    };
    let backend =
        named(&status["services"], service).and_then(|service| named(&service["backends"], backend));
    backend.and_then(|backend| backend["active_flows"].as_u64()).expect("a count")
}

fn exchange(lab: &Lab, request: &str) -> std::io::Result<(u16, Value)> {
    let mut stream = UnixStream::connect(lab.socket())?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let broken = || std::io::Error::other(format!("not an answer: {answer:?}"));
    Ok((status.ok_or_else(broken)?, serde_json::from_str(body).map_err(|_| broken())?))
}
