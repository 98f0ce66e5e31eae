//! What programs may cost: turns the costs found on a kernel into a comparison with the committed table, or into a new
//! table.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use lb_tests::ProgramCost;
use serde_json::{Map, Value, json};

/// By name of the program.
pub type Costs = BTreeMap<String, ProgramCost>;

/// No supported kernel verifies more than a million; the design keeps every program under half of that.
const MOST_VERIFIED: u32 = 500_000;
/// Growth in percent that needs no word.
const TOLERANCE: u64 = 10;
/// Set to anything, has the table written anew.
const BLESS: &str = "SLUICE_BLESS";
/// Tests of one process write the table one after the other.
static TABLE: Mutex<()> = Mutex::new(());

fn table_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels.json")
}

fn read_table() -> Map<String, Value> {
    let text = std::fs::read_to_string(table_file()).expect("tests/kernels.json");
    serde_json::from_str(&text).expect("tests/kernels.json is a JSON object")
}

/// `6.12` of `6.12.117+deb12-amd64`.
pub fn series(release: &str) -> String {
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// Compares if the table has this kernel, or is to have it.
pub fn compare_if_known(series: &str, found: &Costs) {
    if std::env::var_os(BLESS).is_some() || read_table().contains_key(series) {
        compare(series, found);
    } else {
        println!("kernel {series} is not in the table");
        print(found);
        assert_bounds(series, found);
    }
}

/// Prints what was found, and fails if a program has grown beyond the table.
pub fn compare(series: &str, found: &Costs) {
    println!("kernel {series}");
    print(found);
    assert_bounds(series, found);
    let _one_at_a_time = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut table = read_table();
    if std::env::var_os(BLESS).is_some() {
        table.insert(series.to_owned(), to_json(found));
        let text = serde_json::to_string_pretty(&table).expect("JSON");
        std::fs::write(table_file(), text + "\n").expect("writing tests/kernels.json");
        return;
    }
    let known = table.get(series).map(parse).unwrap_or_default();
    let problems = problems(&known, found);
    assert!(
        problems.is_empty(),
        "kernel {series} against tests/kernels.json: {}.\nIf that is meant, run \
         `{BLESS}=1 cargo test --workspace --test kernels`, commit the table and say why in the commit",
        problems.join("; ")
    );
}

fn assert_bounds(series: &str, found: &Costs) {
    assert!(!found.is_empty(), "kernel {series}: no program was found");
    for (name, cost) in found {
        assert!(cost.verified > 0 && cost.machine_code > 0, "kernel {series}, {name}: {cost:?}");
        assert!(cost.verified < MOST_VERIFIED, "kernel {series}, {name}: {} verified", cost.verified);
    }
}

fn print(found: &Costs) {
    for (name, ProgramCost { verified, instructions, machine_code }) in found {
        println!(
            "  {name:<12} {verified:>7} verified  {instructions:>6} instructions  {machine_code:>6} bytes of machine code"
        );
    }
}

fn problems(known: &Costs, found: &Costs) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, cost) in found {
        let Some(before) = known.get(name) else {
            problems.push(format!("{name} is not in it"));
            continue;
        };
        for (what, before, now) in [
            ("verified instructions", before.verified, cost.verified),
            ("instructions", before.instructions, cost.instructions),
        ] {
            if u64::from(now) * 100 > u64::from(before) * (100 + TOLERANCE) {
                problems.push(format!("{name}: {now} {what}, {before} before"));
            }
        }
    }
    let gone = known.keys().filter(|name| !found.contains_key(*name));
    problems.extend(gone.map(|name| format!("{name} is not there any more")));
    problems
}

/// As it stands in the table.
pub fn to_json(costs: &Costs) -> Value {
    let entry = |(name, cost): (&String, &ProgramCost)| {
        let ProgramCost { verified, instructions, machine_code } = *cost;
        (
            name.clone(),
            json!({"verified": verified, "instructions": instructions, "machine_code": machine_code}),
        )
    };
    Value::Object(costs.iter().map(entry).collect())
}

/// From the table; what is not a number counts as zero, which everything exceeds.
pub fn parse(costs: &Value) -> Costs {
    let number =
        |cost: &Value, name: &str| cost[name].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let entry = |(name, cost): (&String, &Value)| {
        let cost = ProgramCost {
            verified: number(cost, "verified"),
            instructions: number(cost, "instructions"),
            machine_code: number(cost, "machine_code"),
        };
        (name.clone(), cost)
    };
    costs.as_object().into_iter().flatten().map(entry).collect()
}

#[test]
fn a_growth_above_the_tolerance_is_told() {
    let costs = |verified| {
        Costs::from([("prog".to_owned(), ProgramCost { verified, instructions: 100, machine_code: 1 })])
    };
    assert_eq!(problems(&costs(1_000), &costs(1_100)), Vec::<String>::new());
    assert_eq!(problems(&costs(1_000), &costs(500)), Vec::<String>::new());
    assert_eq!(problems(&costs(1_000), &costs(1_101)), ["prog: 1101 verified instructions, 1000 before"]);
    assert_eq!(problems(&Costs::new(), &costs(1)), ["prog is not in it"]);
    assert_eq!(problems(&costs(1), &Costs::new()), ["prog is not there any more"]);
    assert_eq!(parse(&to_json(&costs(7))), costs(7));
    assert_eq!(series("6.12.117+deb12-amd64\n"), "6.12");
}
