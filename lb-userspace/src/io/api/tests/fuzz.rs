//! Whatever is sent to the API, it answers: with what was asked for, or with an error that says what is wrong. What is refused
//! changes nothing.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::core::config;
use crate::core::edit::edited_from;

const TEXT: &str = "[agent]\ninterfaces = [\"eth0\"]\n\n[[service]]\nname = \"web\"\nvips = [\"203.0.113.10:80\"]\n\n\
                    [[service.backend]]\nname = \"web1\"\naddress = \"10.0.1.11\"\n\n\
                    [[service.backend]]\nname = \"web2\"\naddress = \"10.0.1.12\"\n";

/// What an agent does with a change, but for the datapath.
fn carry_out(text: &Mutex<String>, asked: Asked) -> Result<ApplyReport, ApiError> {
    let mut text = text.lock().unwrap();
    let told = |errors: Vec<config::ConfigError>| {
        let errors = errors.iter().map(|error| error.at("sent").to_string()).collect();
        ApiError { kind: ErrorKind::Invalid, errors }
    };
    let is_trial = asked.is_trial();
    let new = match asked {
        Asked::Apply(request) => config::parse(&request.config).map(|_| request.config).map_err(told)?,
        Asked::Edit(request) => {
            let config = config::parse(&text).map_err(told)?;
            edited_from(&text, &config, &request.edit).map_err(ApiError::invalid)?.0
        }
        Asked::Rollback(_) => return Err(ApiError::conflict("there is no change to undo")),
    };
    if !is_trial {
        *text = new;
    }
    Ok(ApplyReport { dry_run: is_trial, ..ApplyReport::default() })
}

fn answer(text: &Mutex<String>, request: Request) {
    match request {
        Request::Change(ChangeRequest { asked, answer, .. }) => drop(answer.send(carry_out(text, asked))),
        Request::Confirm(_, answer) => drop(answer.send(Err(ApiError::conflict("nothing waits")))),
        Request::History(answer) => {
            drop(answer.send(Ok(HistoryReport { revision: 1, unconfirmed: None, entries: Vec::new() })));
        }
        Request::Trend(_, answer) => drop(answer.send(Err(ApiError::invalid("service: there is none")))),
        Request::Explain(_, answer) => drop(answer.send(Err(ApiError::invalid("--iface: none")))),
        Request::Detach(_, answer) => drop(answer.send(Ok(Detached { interfaces: Vec::new() }))),
        Request::Health(answer) => drop(answer.send(Ok(()))),
        Request::Status(_) | Request::Metrics(_) | Request::Capture(_) => panic!("not asked"),
    }
}

/// A request that is as the API wants it, or nearly.
#[derive(Clone, Debug)]
struct Sent {
    method: &'static str,
    path: String,
    body: String,
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..3_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop_oneof!["web", "web1", "web9", "drain", "10.0.1.13", "2s", "\"", "a.b", "health"]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(any_key(), inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "edit",
            "kind",
            "service",
            "backend",
            "set",
            "dry_run",
            "if_revision",
            "config",
            "name",
            "weight",
            "address",
            "state",
            "vips",
            "health.type",
            "health.interval",
            "forwarding",
            "protocol",
            "health",
            "port",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,6}",
    ]
}

/// An edit as it should be.
fn any_edit() -> impl Strategy<Value = Value> {
    let kinds =
        ["service_add", "service_remove", "service_set", "backend_add", "backend_remove", "backend_set"];
    let names = prop::sample::select(vec!["web", "web1", "web2", "web3", "dns"]);
    let set = prop::collection::btree_map(any_key(), any_json(), 0..3);
    let weight = (0..70_000_u32)
        .prop_map(|weight| Value::Object([("weight".to_owned(), weight.into())].into_iter().collect()));
    let set = prop_oneof![
        set.prop_map(|map| Value::Object(map.into_iter().collect())),
        weight,
        Just(json!({"address": "10.0.1.13"})),
        Just(json!({"vips": ["203.0.113.11:53"], "protocol": "udp"})),
    ];
    (prop::sample::select(kinds.to_vec()), prop_oneof![Just("web"), names.clone()], names, set).prop_map(
        |(kind, service, backend, set)| {
            let mut edit = json!({"kind": kind, "service": service});
            if kind.starts_with("backend") {
                edit["backend"] = backend.into();
            }
            if !kind.ends_with("remove") {
                edit["set"] = set;
            }
            json!({ "edit": edit, "dry_run": false })
        },
    )
}

/// The same with something about it changed, at any depth.
fn changed(mut value: Value, at: usize, key: String, new: Option<Value>) -> Value {
    let mut place = &mut value;
    for depth in 0..at {
        let Value::Object(map) = place else { break };
        let Some(next) = map.keys().nth(depth % map.len().max(1)).cloned() else { break };
        let Some(inner) = map.get(&next).filter(|inner| inner.is_object()) else { break };
        let _ = inner;
        place = &mut place[next];
    }
    match (place, new) {
        (Value::Object(map), Some(new)) => drop(map.insert(key, new)),
        (Value::Object(map), None) => {
            let last = map.keys().next_back().cloned();
            drop(last.and_then(|last| map.remove(&last)));
        }
        (place, new) => *place = new.unwrap_or_default(),
    }
    value
}

fn any_body() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => any_edit().prop_map(|edit| edit.to_string()),
        3 => (any_edit(), 0..3_usize, any_key(), prop::option::of(any_json()))
            .prop_map(|(edit, at, key, new)| changed(edit, at, key, new).to_string()),
        1 => (any_edit(), 0..60_usize).prop_map(|(edit, end)| edit.to_string().chars().take(end).collect()),
        1 => any_json().prop_map(|json| json.to_string()),
        1 => (any::<bool>(), "\\PC{0,30}").prop_map(|(valid, noise)| {
            let config = if valid { TEXT.to_owned() } else { noise };
            json!({ "config": config, "name": "sent" }).to_string()
        }),
        1 => "\\PC{0,40}",
    ]
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let path = prop_oneof![
        6 => Just("/v1/edit".to_owned()),
        2 => Just("/v1/apply".to_owned()),
        1 => prop::sample::select(vec!["/v1/rollback", "/v1/confirm", "/v1/history", "/v1/explain", "/v1/detach", "/healthz"])
            .prop_map(str::to_owned),
        1 => "[a-z0-9%=&+]{0,12}".prop_map(|query| format!("/trend?{query}")),
        1 => "/[a-z0-9/%]{0,10}".prop_map(|path| format!("/none{path}")),
    ];
    let method = prop_oneof![8 => Just("POST"), 2 => Just("GET"), 1 => Just("DELETE")];
    (method, path, any_body()).prop_map(|(method, path, body)| Sent { method, path, body })
}

/// Sends a request; status and body.
async fn send(socket: &Path, sent: &Sent) -> (u16, String) {
    let Sent { method, path, body } = sent;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: sluice\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all((head + body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Sends all of them to an agent; how many were done.
async fn check(all: Vec<Sent>) -> usize {
    let folder = Folder::new();
    let socket = folder.0.join("sluice.sock");
    let (_file, mut requests, server) = serve(&socket).await;
    let text = Arc::new(Mutex::new(TEXT.to_owned()));
    let kept = Arc::clone(&text);
    let agent = tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            answer(&kept, request);
        }
    });
    let mut done = 0;
    for sent in &all {
        let before = text.lock().unwrap().clone();
        let (status, body) = send(&socket, sent).await;
        let after = text.lock().unwrap().clone();
        assert!(config::parse(&after).is_ok(), "{sent:?} left {after}");
        if status == 200 {
            done += usize::from(sent.path.starts_with("/v1/edit"));
            continue;
        }
        assert_eq!(before, after, "{sent:?} was refused: {body}");
        let error: ApiError =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{sent:?}: {error}: {body:?}"));
        assert!(!error.errors.is_empty() && error.errors.iter().all(|error| !error.is_empty()), "{sent:?}");
        let expected: &[u16] = match error.kind {
            ErrorKind::Invalid => &[404, 405, 422],
            ErrorKind::Conflict => &[409],
            ErrorKind::Failed => &[],
        };
        assert!(expected.contains(&status), "{sent:?}: {status} {error:?}");
    }
    assert!(!agent.is_finished() && !server.is_finished(), "both go on");
    agent.abort();
    server.abort();
    done
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_sent_is_answered(all in prop::collection::vec(any_sent(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(all));
    }
}

/// What the other test sends is partly what the API wants.
#[tokio::test]
async fn what_is_right_is_done() {
    let edit = json!({"kind": "backend_set", "service": "web", "backend": "web2", "set": {"weight": 7}});
    let sent = |edit: &Value| Sent {
        method: "POST",
        path: "/v1/edit".to_owned(),
        body: json!({ "edit": edit }).to_string(),
    };
    assert_eq!(check(vec![sent(&edit), sent(&json!({"kind": "service_remove", "service": "web"}))]).await, 2);
}
