//! `rootstock status`.

use clap::Args;
use rootstock_api::{RecipeList, Site, StoreReport};
use serde_json::json;

use crate::{output, session::Session};

/// Nothing to choose.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {}

/// Shows the daemon, its store and who uses it.
pub(crate) fn run(_: &StatusArgs, session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    let (site, store, clients) = (client.site()?, client.store()?, client.clients()?);
    let recipes = client.recipes()?;
    if session.json() {
        return output::json(&json!({
            "site": site, "store": store, "clients": clients.clients, "recipes": recipes,
        }));
    }
    let mut text = text(&site, &store, &recipes);
    for client in &clients.clients {
        text.push_str(&format!(
            "\nclient       {} has {} open since {}",
            client.address,
            client.export,
            output::time(&client.since)
        ));
    }
    output::line(&text)
}

fn text(site: &Site, store: &StoreReport, recipes: &RecipeList) -> String {
    let saved = match store.stored_bytes {
        0 => String::new(),
        _ => format!(" for {} of versions", output::bytes(store.used_bytes)),
    };
    output::fields(&[
        (
            "daemon",
            format!(
                "release {}, running since {}",
                site.release,
                output::time(&site.started)
            ),
        ),
        (
            "nbd",
            output::or_dash((!site.nbd.is_empty()).then(|| site.nbd.join(", "))),
        ),
        (
            "iscsi",
            output::or_dash((!site.iscsi.is_empty()).then(|| site.iscsi.join(", "))),
        ),
        ("site key", site.public_key.clone()),
        ("you are", site.role.as_str().to_owned()),
        (
            "stored",
            format!(
                "{} in {}{saved}",
                output::bytes(store.stored_bytes),
                output::count(store.chunk_count, "chunk")
            ),
        ),
        (
            "packs",
            format!(
                "{} in {}",
                output::bytes(store.pack_bytes),
                output::count(store.pack_count, "pack")
            ),
        ),
        ("free", output::or_dash(store.free_bytes.map(output::bytes))),
        (
            "cache",
            format!(
                "{} of {}",
                output::bytes(store.cache_bytes),
                output::bytes(store.cache_bytes_max)
            ),
        ),
        ("recipes", recipes_text(recipes)),
    ])
}

/// How many recipes there are, and what becomes of the others.
fn recipes_text(recipes: &RecipeList) -> String {
    let mut text = format!("{} made", recipes.recipes.len());
    if let Some(making) = &recipes.making {
        let done = making.done_chunk_count * 100;
        let percent = done.checked_div(making.total_chunk_count).unwrap_or(0);
        text.push_str(&format!(
            ", {percent} % of that from {} to {}",
            making.from, making.to
        ));
    }
    if recipes.waiting_count > 0 {
        text.push_str(&format!(", {} waiting", recipes.waiting_count));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rootstock_api::{RecipeProgress, TokenRole};

    #[test]
    fn a_status() {
        let site = Site {
            release: "0.1.0".to_owned(),
            public_key: "ab".repeat(32),
            started: "now".to_owned(),
            role: TokenRole::Admin,
            nbd: vec!["127.0.0.1:10809".to_owned()],
            iscsi: Vec::new(),
        };
        let store = StoreReport {
            chunk_count: 8000,
            stored_bytes: 790_000_000,
            used_bytes: 4_100_000_000,
            pack_count: 50,
            pack_bytes: 800_000_000,
            cache_bytes_max: 256 << 20,
            ..StoreReport::default()
        };
        let recipes = RecipeList {
            recipes: Vec::new(),
            making: Some(RecipeProgress {
                from: "lab:1".parse().expect("a version"),
                to: "lab:2".parse().expect("a version"),
                done_chunk_count: 400,
                total_chunk_count: 1000,
            }),
            waiting_count: 2,
            load_percent: 50,
        };
        insta::assert_snapshot!(text(&site, &store, &recipes), @r"
        daemon    release 0.1.0, running since now
        nbd       127.0.0.1:10809
        iscsi     -
        site key  abababababababababababababababababababababababababababababababab
        you are   admin
        stored    790 MB in 8000 chunks for 4.10 GB of versions
        packs     800 MB in 50 packs
        free      -
        cache     0 B of 268 MB
        recipes   0 made, 40 % of that from lab:1 to lab:2, 2 waiting
        ");
    }
}
