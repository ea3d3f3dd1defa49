//! What the catalog knows of machines, against a database in a temporary directory.

mod assignments;
mod boots;
mod health;
mod installations;
mod leases;
mod nodes;
mod personal;
mod rollouts;
mod support;
