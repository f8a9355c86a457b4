//! `tropis explain` says what the proxies do: a thousand random questions, each answered by the program and by the decisions that
//! `ztunnel` and `waypoint` make on what they are sent.

mod decided;
mod drawn;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::mesh::Mesh as State;
use decided::{Decided, Mesh};
use drawn::Question;
use world::World;

/// Worlds of twenty questions each.
const WORLDS: u64 = 50;

#[test]
fn explain_agrees_with_the_proxies_on_a_thousand_random_questions() {
    let (mut asked, mut disagreements) = (0, Vec::new());
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut brought = (0, 0);
    for seed in 0..WORLDS {
        let world = World::new(seed);
        let mesh = Mesh::new(&world.yaml);
        let state = State::new();
        state.write("objects/world.yaml", &world.yaml);
        for question in &world.questions {
            let (decided, explained) = (mesh.decided(question), explained(&state, question));
            asked += 1;
            let way = decided.ways.first().map_or("nowhere", String::as_str);
            *outcomes.entry(format!("{way}: {}", decided.outcome)).or_default() += 1;
            if decided != explained {
                disagreements.push(format!("seed {seed}, {question:?}\n  decided   {decided:?}\n  explained {explained:?}"));
            }
        }
        let (allowed, denied) = mesh.brought.get();
        brought = (brought.0 + allowed, brought.1 + denied);
    }
    println!("{asked} questions: {outcomes:?}; policies of where a route leads allowed and denied {brought:?} draws");
    let first: Vec<&String> = disagreements.iter().take(3).collect();
    assert!(
        disagreements.is_empty(),
        "{} of {asked} disagree:\n{}",
        disagreements.len(),
        first.iter().map(|one| format!("{one}\n")).collect::<String>()
    );
    assert_eq!(asked, 1000);
    // Questions that all end alike would show nothing.
    for way in ["waypoint", "tunnel", "direct", "uncaptured"] {
        assert!(outcomes.keys().any(|outcome| outcome.starts_with(way)), "{way}: {outcomes:?}");
    }
    assert!(brought.0 >= 100 && brought.1 >= 100, "{brought:?}");
    for outcome in ["waypoint: allowed", "waypoint: refused", "waypoint: depends", "tunnel: refused"] {
        assert!(outcomes.get(outcome).is_some_and(|count| *count >= 10), "{outcome}: {outcomes:?}");
    }
}

/// The same in the program's words.
fn explained(state: &State, question: &Question) -> Decided {
    let arguments = question.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let story: Value = serde_json::from_str(&state.done(&arguments)).unwrap();
    let decided = &story["decided"];
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let set = |value: &Value| value.as_array().into_iter().flatten().filter_map(text).collect::<BTreeSet<String>>();
    let endpoint = |one: &Value| (text(&one["pool"]), text(&one["address"]).unwrap(), one["allowed"] == true, set(&one["refusedBy"]));
    Decided {
        ways: set(&decided["ways"]),
        next_hops: set(&decided["nextHops"]),
        route: decided["route"].as_object().map(|route| (route.get("name").and_then(text), text(&route["origin"]).unwrap())),
        path: text(&decided["path"]),
        answer: decided["answer"].as_u64().map(|status| u16::try_from(status).unwrap()),
        location: text(&decided["location"]),
        refused_by: set(&decided["refusedBy"]),
        endpoints: decided["endpoints"].as_array().into_iter().flatten().map(endpoint).collect(),
        empty_pools: set(&decided["emptyPools"]),
        outcome: text(&story["verdict"]["outcome"]).unwrap(),
    }
}
