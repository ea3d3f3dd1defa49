//! The chunk store: frames by the id of their chunk, in packs.
