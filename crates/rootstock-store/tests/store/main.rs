//! The chunk store as its users see it, on memory, on disks that fail, and on a
//! real one.

#[cfg(test)]
mod behaviour;
#[cfg(test)]
mod collection;
#[cfg(test)]
mod concurrency;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod model;
#[cfg(test)]
mod support;
