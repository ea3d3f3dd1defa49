//! Prints the API's OpenAPI document: `cargo run -p rootstock-server --example openapi > openapi/rootstock.json`.

fn main() {
    let json = rootstock_server::openapi().to_pretty_json();
    println!("{}", json.expect("the document serializes"));
}
