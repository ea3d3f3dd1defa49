//! Versions that nodes do not come up with, for people.

use rootstock_api::{Abandoned, Node};
use rootstock_core::{NodeName, fold};

/// Why a node does not boot what is assigned to it, and what can be done.
pub(super) fn fields(node: &Node) -> Vec<(&'static str, String)> {
    let Some(abandoned) = &node.abandoned else {
        return Vec::new();
    };
    vec![
        ("abandoned", says(abandoned)),
        ("", advice(&node.name.to_string())),
    ]
}

/// The same for many, what is alike said once.
pub(super) fn lines(nodes: &[Node]) -> Vec<String> {
    let mut groups: Vec<(String, Vec<NodeName>)> = Vec::new();
    for node in nodes {
        let Some(abandoned) = &node.abandoned else {
            continue;
        };
        let text = says(abandoned);
        match groups.iter_mut().find(|(other, _)| *other == text) {
            Some((_, names)) => names.push(node.name.clone()),
            None => groups.push((text, vec![node.name.clone()])),
        }
    }
    let line = |(text, names): (String, Vec<NodeName>)| {
        let names = fold(&names);
        format!("{names}: {text}; {}", advice(&names))
    };
    groups.into_iter().map(line).collect()
}

fn says(abandoned: &Abandoned) -> String {
    let Abandoned {
        version, reason, ..
    } = abandoned;
    match &abandoned.instead {
        Some(instead) => format!("{version}, {instead} boots instead: {reason}"),
        None => format!("{version}, and nothing to go back to: {reason}"),
    }
}

fn advice(names: &str) -> String {
    format!("set another image, or try it again with 'rootstock node retry {names}'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use rootstock_api::NodeList;

    fn nodes() -> Vec<Node> {
        let node = |name: &str, abandoned: &str| {
            format!(
                r#"{{"name": "{name}", "state": "up", "macs": [], "settings": {{}}, "effective": {{}},
                "origins": {{}}, "created": "2026-11-21T12:00:00Z"{abandoned}}}"#
            )
        };
        let failed = r#", "abandoned": {"version": "lab:2", "at": "2026-11-21T13:00:00Z",
            "reason": "it failed: no init", "instead": "lab:1"}"#;
        let alone = r#", "abandoned": {"version": "lab:2", "at": "2026-11-21T13:00:00Z",
            "reason": "it was not up within 600 s"}"#;
        let nodes = [("n1", failed), ("n2", ""), ("n3", failed), ("n4", alone)];
        let nodes = nodes
            .map(|(name, abandoned)| node(name, abandoned))
            .join(",");
        let list: NodeList =
            serde_json::from_str(&format!(r#"{{"nodes": [{nodes}]}}"#)).expect("is a list");
        list.nodes
    }

    #[test]
    fn nodes_that_went_back_are_named_with_the_reason() {
        assert_snapshot!(lines(&nodes()).join("\n"), @r"
        n[1,3]: lab:2, lab:1 boots instead: it failed: no init; set another image, or try it again with 'rootstock node retry n[1,3]'
        n4: lab:2, and nothing to go back to: it was not up within 600 s; set another image, or try it again with 'rootstock node retry n4'
        ");
        assert_eq!(fields(&nodes()[1]), []);
        let shown: Vec<String> = fields(&nodes()[0])
            .into_iter()
            .map(|(name, text)| format!("{name} = {text}"))
            .collect();
        assert_snapshot!(shown.join("\n"), @r"
        abandoned = lab:2, lab:1 boots instead: it failed: no init
         = set another image, or try it again with 'rootstock node retry n1'
        ");
    }
}
