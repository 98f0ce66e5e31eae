use proptest::prelude::*;
use serde_json::json;

use super::*;

const TEXT: &str = r#"# The shop's edge.
[agent]
interfaces = ["eth0"]   # uplink

# ---- the shop ----

# served by everyone
[[service]]
name       = "web"
vips       = [
    "203.0.113.10:80",   # old
    "203.0.113.11:80",
]

[service.health]
type = "tcp"    # cheap
interval = "2s"

# ---- site A ----

# rack 1
[[service.backend]]
name    = "web1"
address = "10.0.1.11"
weight  = 100   # the big one

# rack 2
[[service.backend]]
name    = "web2"
address = "10.0.1.12"

# ---- names ----

[[service]]
name = "dns"
vips = ["203.0.113.53:53"]
protocol = "udp"
backend = [{ name = "ns1", address = "10.0.2.1" }, { name = "ns2", address = "10.0.2.2" }]

# the end
"#;

fn settings(value: serde_json::Value) -> Settings {
    serde_json::from_value(value).unwrap()
}

fn set(service: &str, backend: &str, value: serde_json::Value) -> Edit {
    Edit::BackendSet { service: service.into(), backend: backend.into(), set: settings(value) }
}

fn after(text: &str, edit: &Edit) -> String {
    edited(text, edit).unwrap_or_else(|error| panic!("{error}")).0
}

fn refused(edit: &Edit) -> String {
    edited(TEXT, edit).expect_err("refused").to_string()
}

/// Lines of one text that the other has not, and the other way round.
fn difference(before: &str, after: &str) -> (Vec<String>, Vec<String>) {
    let only = |of: &str, without: &str| {
        let mut without: Vec<&str> = without.lines().collect();
        of.lines()
            .filter(|line| match without.iter().position(|other| other == line) {
                Some(at) => {
                    without.remove(at);
                    false
                }
                None => true,
            })
            .map(str::to_owned)
            .collect()
    };
    (only(before, after), only(after, before))
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(ToString::to_string).collect()
}

#[test]
fn a_value_changes_in_its_place() {
    let text = after(TEXT, &set("web", "web1", json!({"weight": 300, "state": "drain"})));
    let expected = (
        lines(&["weight  = 100   # the big one"]),
        lines(&["weight  = 300   # the big one", "state = \"drain\""]),
    );
    assert_eq!(difference(TEXT, &text), expected);
    assert!(text.find("state = \"drain\"").unwrap() < text.find("# rack 2").unwrap(), "{text}");
    // Within braces, too.
    let text = after(TEXT, &set("dns", "ns2", json!({"weight": 7})));
    assert!(
        text.contains("{ name = \"ns2\", address = \"10.0.2.2\", weight = 7 }]\n\n# the end\n"),
        "{text}"
    );
    // Taken away again, the text is what it was.
    let text = after(TEXT, &set("web", "web2", json!({"weight": 7})));
    assert_eq!(after(&text, &set("web", "web2", json!({"weight": null}))), TEXT);
}

#[test]
fn a_backend_comes_behind_the_last_one() {
    let add = |service: &str| Edit::BackendAdd {
        service: service.into(),
        backend: "new".into(),
        set: settings(json!({"weight": 5, "address": "10.0.1.13"})),
    };
    let text = after(TEXT, &add("web"));
    let place = "address = \"10.0.1.12\"\n\n[[service.backend]]\nname = \"new\"\naddress = \"10.0.1.13\"\nweight = 5\n\n# ---- names ----\n";
    assert!(text.contains(place), "{text}");
    let gone = Edit::BackendRemove { service: "web".into(), backend: "new".into() };
    assert_eq!(after(&text, &gone), TEXT);
    let text = after(TEXT, &add("dns"));
    assert!(
        text.contains(", { name = \"new\", address = \"10.0.1.13\", weight = 5 }]\n\n# the end\n"),
        "{text}"
    );
    let gone = Edit::BackendRemove { service: "dns".into(), backend: "new".into() };
    assert_eq!(after(&text, &gone), TEXT);
}

#[test]
fn what_goes_takes_its_own_comments_along_and_no_others() {
    let gone = Edit::BackendRemove { service: "web".into(), backend: "web1".into() };
    let text = after(TEXT, &gone);
    assert!(
        text.contains("interval = \"2s\"\n\n# ---- site A ----\n\n# rack 2\n[[service.backend]]\n"),
        "{text}"
    );
    assert!(!text.contains("rack 1") && !text.contains("web1"), "{text}");
    // The headline of what comes next stays, and so does the end of the file.
    let gone = Edit::ServiceRemove { service: "web".into() };
    let text = after(TEXT, &gone);
    assert!(
        text.contains("# uplink\n\n# ---- the shop ----\n\n# ---- names ----\n\n[[service]]\nname = \"dns\""),
        "{text}"
    );
    let gone = Edit::ServiceRemove { service: "dns".into() };
    let text = after(TEXT, &gone);
    assert!(text.ends_with("address = \"10.0.1.12\"\n\n# ---- names ----\n\n# the end\n"), "{text}");
}

#[test]
fn a_service_comes_last_and_its_tables_may_come_later() {
    let add = Edit::ServiceAdd {
        service: "tls".into(),
        set: settings(json!({"vips": ["203.0.113.10:443"], "health.type": "none", "forwarding": "ipip"})),
    };
    let text = after(TEXT, &add);
    let new = "\n[[service]]\nname = \"tls\"\nvips = [\"203.0.113.10:443\"]\nforwarding = \"ipip\"\n\n[service.health]\ntype = \"none\"\n\n# the end\n";
    assert!(text.ends_with(new), "{text}");
    let backend = Edit::BackendAdd {
        service: "tls".into(),
        backend: "a".into(),
        set: settings(json!({"address": "10.0.3.1"})),
    };
    let text = after(&text, &backend);
    assert!(
        text.ends_with(
            "type = \"none\"\n\n[[service.backend]]\nname = \"a\"\naddress = \"10.0.3.1\"\n\n# the end\n"
        ),
        "{text}"
    );
    // A table that comes when there are backends already stands before them.
    let bare = "[agent]\ninterfaces = [\"eth0\"]\n\n[[service]]\nname = \"w\"\nvips = [\"1.2.3.4:80\"]\n\n[[service.backend]]\nname = \"a\"\naddress = \"10.0.0.1\"\n";
    let health = Edit::ServiceSet { service: "w".into(), set: settings(json!({"health.type": "none"})) };
    let text = after(bare, &health);
    assert!(
        text.contains("vips = [\"1.2.3.4:80\"]\nhealth.type = \"none\"\n\n[[service.backend]]"),
        "{text}"
    );
}

fn backend_add(service: &str, backend: &str) -> Edit {
    let set = settings(json!({"address": "10.0.9.1"}));
    Edit::BackendAdd { service: service.into(), backend: backend.into(), set }
}

fn backend_remove(service: &str, backend: &str) -> Edit {
    Edit::BackendRemove { service: service.into(), backend: backend.into() }
}

fn service_set(service: &str, value: serde_json::Value) -> Edit {
    Edit::ServiceSet { service: service.into(), set: settings(value) }
}

/// A service of two backends, keys out of use below each table.
const OUT_OF_USE: &str = r#"# The shop's edge.

[[service]]
name = "w"
vips = ["1.2.3.4:80"]
# affinity = "client"

[service.health]
type = "tcp"
# rise = 5

# the old one
[[service.backend]]
name = "web1"
address = "10.0.1.11" # rack 1
# weight = 3
#   (more is too much)

# the new one
[[service.backend]]
name = "web2"
address = "10.0.1.12"
# weight = 4

# Changed by nobody.
[agent]
interfaces = ["eth0"]
# metrics = "127.0.0.1:9184"
"#;

#[test]
fn comments_below_the_last_key_stay_there() {
    let check = |text: &str, edit: &Edit, at: &str, new: &str| {
        assert_eq!(text.matches(at).count(), 1, "{at}");
        assert_eq!(after(text, edit), text.replace(at, &format!("{at}{new}")), "{edit}");
    };
    let web3 = "\n[[service.backend]]\nname = \"web3\"\naddress = \"10.0.9.1\"\n";
    check(OUT_OF_USE, &backend_add("w", "web3"), "# weight = 4\n", web3);
    let vips = settings(json!({"vips": ["1.2.3.4:81"]}));
    let service = "\n[[service]]\nname = \"x\"\nvips = [\"1.2.3.4:81\"]\n";
    let (before, agent) = OUT_OF_USE.split_once("# Changed by nobody.\n").unwrap();
    let agent_first = format!("{agent}\n{}", before.trim_end());
    let edit = Edit::ServiceAdd { service: "x".into(), set: vips };
    assert_eq!(after(&agent_first, &edit), format!("{agent_first}\n{service}"), "no end of line at the end");
    assert_eq!(after(&agent_first, &backend_add("w", "web3")), format!("{agent_first}\n{web3}"));
    let more = format!("{agent_first}\n\n# more");
    assert_eq!(after(&more, &backend_add("w", "web3")), format!("{agent_first}\n{web3}\n# more"));
    // What is within a table does not come between, either.
    check(OUT_OF_USE, &set("w", "web1", json!({"weight": 5})), "# rack 1\n", "weight = 5\n");
    check(
        OUT_OF_USE,
        &service_set("w", json!({"protocol": "tcp"})),
        "vips = [\"1.2.3.4:80\"]\n",
        "protocol = \"tcp\"\n",
    );
    check(OUT_OF_USE, &service_set("w", json!({"health.rise": 4})), "type = \"tcp\"\n", "rise = 4\n");
    let bare = OUT_OF_USE.replace("[service.health]\ntype = \"tcp\"\n# rise = 5\n\n", "");
    let health = service_set("w", json!({"health.type": "none"}));
    check(&bare, &health, "vips = [\"1.2.3.4:80\"]\n", "health.type = \"none\"\n");
    // The last key goes, and they stay.
    let text = OUT_OF_USE.replace("address = \"10.0.1.12\"\n", "address = \"10.0.1.12\"\nweight = 9\n");
    assert_eq!(after(&text, &set("w", "web2", json!({"weight": null}))), OUT_OF_USE);
    let gone = service_set("w", json!({"health.type": null}));
    assert_eq!(after(OUT_OF_USE, &gone), OUT_OF_USE.replace("type = \"tcp\"\n", ""));
}

#[test]
fn what_goes_takes_what_is_below_its_last_key_along() {
    let remove = |edit: &Edit, gone: &str| {
        assert_eq!(OUT_OF_USE.matches(gone).count(), 1, "{gone}");
        assert_eq!(after(OUT_OF_USE, edit), OUT_OF_USE.replace(gone, ""), "{edit}");
    };
    let web1 = "\n# the old one\n[[service.backend]]\nname = \"web1\"\naddress = \"10.0.1.11\" # rack 1\n# weight = 3\n#   (more is too much)\n";
    remove(&backend_remove("w", "web1"), web1);
    let web2 =
        "\n# the new one\n[[service.backend]]\nname = \"web2\"\naddress = \"10.0.1.12\"\n# weight = 4\n";
    remove(&backend_remove("w", "web2"), web2);
    let all = OUT_OF_USE.split_once("\n[[service]]").unwrap().1.split_once("\n# Changed").unwrap().0;
    remove(&Edit::ServiceRemove { service: "w".into() }, &format!("\n[[service]]{all}"));
}

#[test]
fn what_is_below_a_key_and_above_a_header_is_the_tables_as_far_as_it_is_keys() {
    let block =
        |name: &str| format!("[[service.backend]]\nname = \"{name}\"\naddress = \"10.0.1.1{name}\"\n");
    let head = "[agent]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"w\"\nvips = [\"1.2.3.4:80\"]\n";
    let below = "# too much:\n# weight = 3\n";
    let above = "# ==== rack 2 ====\n";
    let text = [head, &block("1"), below, above, &block("2")].concat();
    assert_eq!(after(&text, &backend_remove("w", "1")), [head, above, &block("2")].concat());
    assert_eq!(after(&text, &backend_remove("w", "2")), [head, &block("1"), below].concat());
    let other = "# ==== another ====\n[[service]]\nname = \"x\"\nvips = [\"1.2.3.4:81\"]\n";
    let text = [head, &block("1"), below, other].concat();
    let edit = backend_add("w", "new");
    let new = "[[service.backend]]\nname = \"new\"\naddress = \"10.0.9.1\"\n";
    let expected = [head, &block("1"), below, new, other].concat();
    assert_eq!(after(&text, &edit), expected);
    let alone = part::edited_part(&text, &config::parse(&text).unwrap(), &edit).unwrap();
    assert_eq!(alone.unwrap().0, expected);
}

#[test]
fn what_is_new_is_indented_like_its_neighbours() {
    let head =
        "[agent]\n  interfaces = [\"eth0\"]\n\n[[service]]\n  name = \"w\"\n  vips = [\"1.2.3.4:80\"]\n";
    let backend = |name: &str, address: &str| {
        format!("\n\t[[service.backend]]\n\t\tname = \"{name}\"\n\t\taddress = \"{address}\"\n")
    };
    let (web1, new) = (backend("web1", "10.0.1.1"), backend("new", "10.0.9.1"));
    let text = [head, &web1].concat();
    assert_eq!(after(&text, &backend_add("w", "new")), [head, &web1, &new].concat());
    assert_eq!(
        after(&text, &set("w", "web1", json!({"weight": 5}))),
        [head, &web1, "\t\tweight = 5\n"].concat()
    );
    let health = service_set("w", json!({"health.type": "tcp", "health.rise": 4}));
    let dotted = "  health.rise = 4\n  health.type = \"tcp\"\n";
    assert_eq!(after(&text, &health), [head, dotted, &web1].concat());
    // Without a sibling, like what it is in.
    let table = "\n[service.health]\n  rise = 4\n  type = \"tcp\"\n";
    assert_eq!(after(head, &health), [head, table].concat());
    let first = "\n[[service.backend]]\n  name = \"new\"\n  address = \"10.0.9.1\"\n";
    assert_eq!(after(head, &backend_add("w", "new")), [head, first].concat());
    let service = settings(json!({"vips": ["1.2.3.4:81"], "health.type": "tcp"}));
    let expected =
        "\n[[service]]\n  name = \"x\"\n  vips = [\"1.2.3.4:81\"]\n\n[service.health]\n  type = \"tcp\"\n";
    let edit = Edit::ServiceAdd { service: "x".into(), set: service };
    assert_eq!(after(&text, &edit), [head, &web1, expected].concat());
    // Blanks at the end of a line stay there.
    let text = format!("{}   \n", text.trim_end());
    assert_eq!(after(&text, &set("w", "web1", json!({"weight": 5}))), format!("{text}\t\tweight = 5\n"));
}

/// The lines of a list after `vips` of a service was set.
fn vips_after(list: &str, wanted: &[&str]) -> String {
    let text = format!("[agent]\ninterfaces = [\"eth0\"]\n\n[[service]]\nname = \"w\"\nvips = {list}\n");
    let set = settings(json!({"vips": wanted}));
    let text = after(&text, &Edit::ServiceSet { service: "w".into(), set });
    text.split_once("vips = ").expect("the list").1.trim_end().to_owned()
}

#[test]
fn a_comment_stays_with_the_element_on_its_line() {
    let [a, b, c] = ["203.0.113.10:80", "[2001:db8::10]:80", "203.0.113.12:80"];
    let both = format!("[\n  \"{a}\",   # v4\n  # the new one\n  \"{b}\", # v6\n  # no more\n]");
    let first = format!("[\n  \"{a}\",   # v4\n  # no more\n]");
    let second = format!("[\n  # the new one\n  \"{b}\", # v6\n  # no more\n]");
    assert_eq!(vips_after(&both, &[a]), first);
    assert_eq!(vips_after(&both, &[b]), second);
    assert_eq!(
        vips_after(&both, &[b, c, a]),
        format!("[\n  # the new one\n  \"{b}\", # v6\n  \"{c}\",\n  \"{a}\",   # v4\n  # no more\n]")
    );
    // Without a comma behind the last one, its comment stands before the new comma.
    let bare = format!("[\n  \"{a}\" # v4\n]");
    assert_eq!(vips_after(&bare, &[a, c]), format!("[\n  \"{a}\", # v4\n  \"{c}\"\n]"));
    assert_eq!(vips_after(&format!("[ \"{a}\", \"{b}\" ]"), &[b]), format!("[ \"{b}\" ]"));
    assert_eq!(vips_after(&format!("[\"{a}\", \"{b}\"]"), &[b, a]), format!("[\"{b}\", \"{a}\"]"));
}

#[test]
fn a_comment_stays_with_the_backend_in_braces_on_its_line() {
    let racks = |lines: &[&str]| {
        let list = lines.join("\n  ");
        format!(
            "[agent]\ninterfaces = [\"eth0\"]\n\n[[service]]\nname = \"w\"\nvips = [\"203.0.113.10:80\"]\nbackend = [\n  {list}\n]\n"
        )
    };
    let [one, two, three] =
        [1, 2, 3].map(|n| format!("{{ name = \"web{n}\", address = \"10.0.1.{n}\" }}, # rack {n}"));
    let all = racks(&[&one, &two, &three]);
    let edit = Edit::BackendRemove { service: "w".into(), backend: "web2".into() };
    assert_eq!(after(&all, &edit), racks(&[&one, &three]));
    let set = settings(json!({"address": "10.0.1.4"}));
    let edit = Edit::BackendAdd { service: "w".into(), backend: "web4".into(), set };
    let four = "{ name = \"web4\", address = \"10.0.1.4\" },";
    assert_eq!(after(&all, &edit), racks(&[&one, &two, &three, four]));
}

#[test]
fn a_list_keeps_the_lines_of_what_stays() {
    let vips = |vips: serde_json::Value| {
        let edit = Edit::ServiceSet { service: "web".into(), set: settings(json!({"vips": vips})) };
        after(TEXT, &edit)
    };
    let text = vips(json!(["203.0.113.10:80", "203.0.113.11:80", "203.0.113.12:80"]));
    assert_eq!(difference(TEXT, &text), (Vec::new(), lines(&["    \"203.0.113.12:80\","])));
    assert!(text.contains("203.0.113.11:80\",\n    \"203.0.113.12:80\",\n]\n"), "{text}");
    let text = vips(json!(["203.0.113.10:80"]));
    assert!(text.contains("\"203.0.113.10:80\"") && !text.contains("203.0.113.11"), "{text}");
}

#[test]
fn line_ends_of_windows_stay() {
    let windows = TEXT.replace('\n', "\r\n");
    let edit = Edit::BackendAdd {
        service: "web".into(),
        backend: "web3".into(),
        set: settings(json!({"address": "10.0.1.13"})),
    };
    assert_eq!(after(&windows, &edit), after(TEXT, &edit).replace('\n', "\r\n"));
}

#[test]
fn what_is_impossible_is_said_with_the_way_out() {
    let cases = [
        (set("shop", "web1", json!({})), "there is no service \"shop\"; there are: web, dns"),
        (set("web", "web9", json!({})), "there is no backend of service web \"web9\"; there are: web1, web2"),
        (
            set("web", "web1", json!({"weight": 70_000})),
            "service[web].backend[web1].weight: must be 0 to 65535, not 70000",
        ),
        (
            set("web", "web2", json!({"wieght": 1})),
            "service[web].backend[web2].wieght: unknown key; did you mean \"weight\"?",
        ),
        (set("web", "web2", json!({"a b": 1})), "\"a b\" is no key"),
        (set("web", "web2", json!({"weight": {"a": 1}})), "weight: the value must be"),
        (set("web", "web2", json!({"weight": 1.5})), "weight: the value must be"),
        (
            Edit::ServiceSet { service: "web".into(), set: settings(json!({"backend": null})) },
            "backends are changed one by one",
        ),
        (
            Edit::BackendAdd { service: "web".into(), backend: "web1".into(), set: settings(json!({})) },
            "change it with `sluice backend set web web1`",
        ),
        (
            Edit::BackendAdd { service: "web".into(), backend: "web3".into(), set: settings(json!({})) },
            "service[web].backend[web3].address: missing",
        ),
        (
            Edit::ServiceAdd { service: "web".into(), set: settings(json!({})) },
            "change it with `sluice service set web`",
        ),
    ];
    for (edit, expected) in cases {
        let said = refused(&edit);
        assert!(said.contains(expected), "{edit}: {said}");
    }
}

#[test]
fn an_edit_reads_as_its_command() {
    let edit = set("web", "web1", json!({"weight": 3, "state": "drain", "port": null}));
    assert_eq!(edit.to_string(), "backend set web web1 --unset port state=drain weight=3");
    let json = serde_json::to_value(&edit).unwrap();
    assert_eq!(json["kind"], "backend_set");
    assert_eq!(serde_json::from_value::<Edit>(json).unwrap(), edit);
    assert!(
        serde_json::from_value::<Edit>(json!({"kind": "service_remove", "service": "a", "now": true}))
            .is_err()
    );
}

/// One of the edits that a sequence is made of: which backend, and what of it.
fn any_edit() -> impl Strategy<Value = (u8, u8, u16)> {
    (0..4_u8, 0..6_u8, 0..1_000_u16)
}

/// A value that somebody may send.
fn any_value() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        any::<f64>().prop_map(|value| json!(value)),
        ".{0,12}".prop_map(|text| json!(text)),
        prop::collection::vec(".{0,5}", 0..3).prop_map(|list| json!(list)),
        Just(json!({"type": "tcp"})),
        Just(json!([["a"]])),
    ]
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let keys = vec![
        "name",
        "vips",
        "health",
        "health.type",
        "health.interval",
        "address",
        "weight",
        "state",
        "min_healthy",
    ];
    let key = prop_oneof![4 => prop::sample::select(keys).prop_map(str::to_owned), 1 => ".{0,8}"];
    prop::collection::btree_map(key, any_value(), 0..4)
}

fn any_request() -> impl Strategy<Value = Edit> {
    let names = || prop::sample::select(vec!["web", "dns", "web1", "ns2"]).prop_map(str::to_owned);
    let name = move || prop_oneof![4 => names(), 1 => ".{0,6}"];
    (0..6_u8, name(), name(), any_settings()).prop_map(|(kind, service, backend, set)| match kind {
        0 => Edit::ServiceAdd { service, set },
        1 => Edit::ServiceRemove { service },
        2 => Edit::ServiceSet { service, set },
        3 => Edit::BackendAdd { service, backend, set },
        4 => Edit::BackendRemove { service, backend },
        _ => Edit::BackendSet { service, backend, set },
    })
}

proptest! {
    #[test]
    fn whatever_is_asked_for_the_text_stays_valid_or_the_edit_is_refused(
        edits in prop::collection::vec(any_request(), 1..6)
    ) {
        let mut text = TEXT.to_owned();
        for edit in edits {
            match edited(&text, &edit) {
                Ok((new, config)) => {
                    prop_assert_eq!(config::parse(&new), Ok(config));
                    text = new;
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }

    #[test]
    fn a_document_follows_its_model(edits in prop::collection::vec(any_edit(), 1..40)) {
        let mut text = TEXT.to_owned();
        let mut model: BTreeMap<String, u16> = [("web1".to_owned(), 100), ("web2".to_owned(), 100)].into();
        for (kind, backend, weight) in edits {
            let name = format!("web{backend}");
            let service = "web".to_owned();
            let edit = match kind {
                0 if !model.contains_key(&name) => Edit::BackendAdd {
                    service,
                    backend: name.clone(),
                    set: settings(json!({"address": format!("10.0.1.{}", 10 + backend), "weight": weight})),
                },
                1 if model.contains_key(&name) => Edit::BackendRemove { service, backend: name.clone() },
                _ if model.contains_key(&name) => set("web", &name, json!({"weight": weight})),
                _ => continue,
            };
            let (new, config) = edited(&text, &edit).unwrap();
            // In the service's part alone, the edit comes to the same.
            let before = config::parse(&text).unwrap();
            let alone = part::edited_part(&text, &before, &edit).expect("a text that can be taken apart");
            prop_assert_eq!(alone.unwrap(), (new.clone(), config.clone()));
            prop_assert_eq!(parse_beside(&new, &text, &before), Some(config.clone()));
            text = new;
            if matches!(edit, Edit::BackendRemove { .. }) { model.remove(&name); } else { model.insert(name, weight); }
            let said: BTreeMap<String, u16> =
                config.services[0].backends.iter().map(|backend| (backend.name.clone(), backend.weight)).collect();
            prop_assert_eq!(&said, &model);
        }
        for comment in ["# The shop's edge.", "# uplink", "# ---- the shop ----", "# served by everyone", "# old", "# cheap",
            "# ---- site A ----", "# ---- names ----", "# the end"] {
            prop_assert_eq!(text.matches(comment).count(), 1, "{} in {}", comment, text);
        }
    }
}

/// A table of a file that is made up.
#[derive(Clone, Debug)]
struct Block {
    /// `agent`, or the name of a service and what it is of that.
    owner: String,
    above: bool,
    header: &'static str,
    keys: Vec<String>,
    below: Vec<&'static str>,
}

impl Block {
    fn new(owner: String, header: &'static str, keys: &[String], around: &Around) -> Self {
        let (above, below) = around.clone();
        Self { owner, above, header, keys: keys.to_vec(), below }
    }

    fn service(at: usize, around: &Around) -> Self {
        let keys = [format!("name = \"s{at}\""), format!("vips = [\"1.2.3.4:{}\"]", 80 + at)];
        Self::new(format!("s{at}"), "[[service]]", &keys, around)
    }

    fn backend(service: usize, at: usize, around: &Around) -> Self {
        let keys = [format!("name = \"b{at}\""), format!("address = \"10.0.{service}.{at}\"")];
        Self::new(format!("s{service}.b{at}"), "[[service.backend]]", &keys, around)
    }
}

/// Whether a comment is above a block, and those below it.
type Around = (bool, Vec<&'static str>);

/// How a file is laid out: what headers and keys are indented by, whether an empty line is between blocks, what ends a line,
/// what the file ends with, and whether the agent's keys are in no table.
type Layout = (&'static str, &'static str, bool, &'static str, &'static str, bool);

fn rendered(blocks: &[Block], layout: &Layout) -> String {
    let (header, key, apart, line_end, end, bare) = *layout;
    let mut text = String::new();
    for (at, block) in blocks.iter().enumerate() {
        if at > 0 && apart {
            text.push('\n');
        }
        if at > 0 && block.above {
            text += &format!("{header}# about {}\n", block.owner);
        }
        if at > 0 || !bare {
            text += &format!("{header}{}\n", block.header);
        }
        let prefix = if at == 0 && bare { "agent." } else { "" };
        text.extend(block.keys.iter().map(|line| format!("{key}{prefix}{line}\n")));
        // Without an empty line, what is no key is taken for what the next block is about.
        let below = block.below.iter().filter(|line| apart || line.contains('='));
        text.extend(below.map(|line| format!("{key}{line}\n")));
    }
    (text + end).replace('\n', line_end)
}

fn any_around() -> impl Strategy<Value = Around> {
    let comments = prop::sample::select(vec!["# weight = 3", "#rise=5", "# why not"]);
    (any::<bool>(), prop::collection::vec(comments, 0..3))
}

fn any_layout() -> impl Strategy<Value = Layout> {
    let indent = || prop::sample::select(vec!["", "  ", "\t"]);
    let line_end = prop::sample::select(vec!["\n", "\r\n"]);
    let end = prop::sample::select(vec!["", "\n# the end", "\n# the end\n"]);
    (indent(), indent(), any::<bool>(), line_end, end, any::<bool>())
}

/// An agent and services, each with a health check or none and some backends.
fn any_blocks() -> impl Strategy<Value = Vec<Block>> {
    let backends = prop::collection::vec(any_around(), 0..3);
    let service = (any_around(), prop::option::of(any_around()), backends);
    (any_around(), prop::collection::vec(service, 2..4)).prop_map(|(around, services)| {
        let interfaces = ["interfaces = [\"eth0\"]".to_owned()];
        let mut blocks = vec![Block::new("agent".to_owned(), "[agent]", &interfaces, &around)];
        for (at, (around, health, backends)) in services.iter().enumerate() {
            blocks.push(Block::service(at, around));
            let check = ["type = \"tcp\"".to_owned()];
            blocks.extend(
                health
                    .iter()
                    .map(|around| Block::new(format!("s{at}.health"), "[service.health]", &check, around)),
            );
            blocks.extend(
                backends.iter().enumerate().map(|(number, around)| Block::backend(at, number, around)),
            );
        }
        blocks
    })
}

/// An edit of the block with this number, or of the service it is of, made in the model as well.
fn edit_of_model(blocks: &mut Vec<Block>, at: usize, kind: u8) -> Edit {
    let owner = blocks[at].owner.clone();
    let (service, part) = owner.split_once('.').unwrap_or((&owner, ""));
    let number = service.trim_start_matches('s').parse().unwrap_or_default();
    let service = service.to_owned();
    let none = (false, Vec::new());
    match (part, kind) {
        ("", _) if owner == "agent" => {
            blocks.push(Block::service(9, &none));
            Edit::ServiceAdd { service: "s9".into(), set: settings(json!({"vips": ["1.2.3.4:89"]})) }
        }
        ("", 0) => {
            blocks.retain(|block| !block.owner.starts_with(&owner));
            Edit::ServiceRemove { service }
        }
        ("", 1) => {
            blocks[at].keys.push("affinity = \"client\"".to_owned());
            service_set(&service, json!({"affinity": "client"}))
        }
        ("health", 0) => {
            blocks[at].keys.push("rise = 4".to_owned());
            service_set(&service, json!({"health.rise": 4}))
        }
        ("" | "health", _) => {
            let last = blocks.iter().rposition(|block| block.owner.starts_with(&service)).unwrap();
            blocks.insert(last + 1, Block::backend(number, 9, &none));
            let set = settings(json!({"address": format!("10.0.{number}.9")}));
            Edit::BackendAdd { service, backend: "b9".into(), set }
        }
        (backend, 0) => {
            blocks.remove(at);
            backend_remove(&service, backend)
        }
        (backend, _) => {
            blocks[at].keys.push("weight = 7".to_owned());
            set(&service, backend, json!({"weight": 7}))
        }
    }
}

proptest! {
    #[test]
    fn nothing_else_moves_whatever_the_layout(
        blocks in any_blocks(), layout in any_layout(), at in any::<prop::sample::Index>(), kind in 0..3_u8
    ) {
        let text = rendered(&blocks, &layout);
        let mut model = blocks;
        let at = at.index(model.len());
        // A first table within a service comes behind an empty line.
        prop_assume!(layout.2 || kind < 2 || model[at].owner == "agent" || model[at].owner.contains('.'));
        let edit = edit_of_model(&mut model, at, kind);
        let (new, config) = edited(&text, &edit).unwrap();
        // An end of line may come at the end.
        let expected = rendered(&model, &layout);
        prop_assert_eq!(new.trim_end(), expected.trim_end(), "{} in\n{}", edit, text);
        let before = config::parse(&text).unwrap();
        prop_assert_eq!(edited_from(&text, &before, &edit), Ok((new, config)));
    }
}

/// Whatever is said within strings and arrays, a part is a service's own; what cannot be told apart is edited as a whole.
#[test]
fn only_a_text_whose_parts_are_certain_is_taken_apart() {
    let edit = set("web", "web2", json!({"weight": 7}));
    let taken_apart = |text: &str| {
        let config = config::parse(text).unwrap_or_else(|errors| panic!("{errors:?}"));
        let alone = part::edited_part(text, &config, &edit);
        if let Some(alone) = &alone {
            assert_eq!(alone.as_ref().unwrap(), &edited(text, &edit).unwrap());
        }
        assert_eq!(edited_from(text, &config, &edit).unwrap(), edited(text, &edit).unwrap());
        alone.is_some()
    };
    assert!(taken_apart(TEXT));
    assert!(taken_apart(&TEXT.replace("# rack 2", "#[[service]]")));
    assert!(taken_apart(TEXT.trim_end().trim_end_matches("# the end")));
    let path = "\n[service.health]\ntype = \"http\"\npath = ";
    let http =
        |path_value: &str| TEXT.replace("\n[service.health]\ntype = \"tcp\"", &format!("{path}{path_value}"));
    assert!(taken_apart(&http("\"/[[service]]\"")));
    assert!(!taken_apart(&http("\"\"\"/\\\n[[service]]\"\"\"")));
    assert!(!taken_apart(&TEXT.replace('\n', "\r\n")));
    assert!(!taken_apart(&TEXT.replace("[[service]]\nname = \"dns\"", "[[ service ]]\nname = \"dns\"")));
    let agent = "# The shop's edge.\n[agent]\ninterfaces = [\"eth0\"]   # uplink\n";
    assert!(!taken_apart(&format!("{}{agent}", TEXT.replace(agent, ""))), "the agent's section at the end");
    // Errors are those of the whole.
    let config = config::parse(TEXT).unwrap();
    for edit in [
        set("web", "web9", json!({"weight": 7})),
        set("web", "web2", json!({"weight": 70_000})),
        set("web", "web2", json!({"address": "10.0.1.11"})),
        set("shop", "web2", json!({"weight": 7})),
    ] {
        assert_eq!(edited_from(TEXT, &config, &edit), edited(TEXT, &edit));
    }
}

/// What is read beside a text that is known is what would be read without it, or it is not read so.
#[test]
fn a_text_is_read_beside_the_one_before_where_nothing_else_can_tell() {
    let known = config::parse(TEXT).unwrap();
    let read = |from: &str, to: &str| {
        assert_eq!(TEXT.matches(from).count(), 1, "{from}");
        let text = TEXT.replace(from, to);
        let read = parse_beside(&text, TEXT, &known);
        if let Some(read) = &read {
            assert_eq!(config::parse(&text).as_ref(), Ok(read), "{text}");
        }
        read.is_some()
    };
    assert!(read("# the end", "# that is all"));
    assert!(read("# rack 2", "# rack 3"));
    assert!(read("name    = \"web2\"", "name = \"web3\""));
    let service = "[[service]]\nname = \"dns\"";
    assert!(!read(service, "[[service]]\nname = \"names\""), "a name");
    assert!(!read(service, "[[service]]\nname = \"web\""), "a name that another has");
    assert!(
        !read(service, &format!("[[service]]\nname = \"more\"\nvips = [\"192.0.2.99:9\"]\n{service}")),
        "a service"
    );
    assert!(!read("interfaces = [\"eth0\"]", "interfaces = [\"eth1\"]"), "another head");
    assert!(!read("name    = \"web2\"", "name = \"web1\""), "wrong");
    assert!(!read("name    = \"web2\"", "name = \"web2"), "broken");
}

#[test]
fn only_keys_that_there_are_can_be_taken_away() {
    let message = refused(&set("web", "web1", json!({"wieght": null})));
    assert_eq!(message, "service[web].backend[web1].wieght: unknown key; did you mean \"weight\"?");
    let service = |key: &str| Edit::ServiceSet { service: "dns".into(), set: settings(json!({key: null})) };
    for key in ["colour", "health.colour"] {
        let message = refused(&service(key));
        assert!(message.starts_with(&format!("service[dns].{key}: unknown key; known here: ")), "{message}");
    }
    for key in ["affinity", "health.interval", "health"] {
        assert_eq!(after(TEXT, &service(key)), TEXT, "{key} is not there");
    }
    // The default is the same, but the line goes.
    let text = TEXT.replace("protocol = \"udp\"", "protocol = \"udp\"\naffinity = \"connection\"");
    assert!(service("affinity").takes_away());
    assert_eq!(after(&text, &service("affinity")), TEXT);
}
